"""What the cached report tables must hold, worked out row by row, in another language and another shape.

It shares nothing with reports.recalculate_students but the words of the rule: whatever both agree on is likely true.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import asyncpg

Row = dict[str, Any]
Key = tuple[Any, ...]

PUPILS = "reports.report_student_rollups"
UNITS = "reports.report_student_unit_rollups"


@dataclass(frozen=True)
class Piece:
    """An assignment as it concerns one pupil: set for the pupil, or with feedback, or both."""

    assignment: Mapping[str, Any]
    is_set: bool
    feedback: Mapping[str, Any] | None


async def truth(connection: asyncpg.Connection) -> dict[str, dict[Key, Row]]:
    """Return what both tables must hold, by table and key."""
    source = {name: await _rows(connection, f"school.{name}") for name in SOURCE}
    subjects = {row["unit_id"]: row["subject"] for row in source["unit"]}
    pieces = _pieces(source)
    expected: dict[str, dict[Key, Row]] = {PUPILS: {}, UNITS: {}}
    for student in source["student"]:
        for timeframe in source["timeframe"]:
            key = (student["student_id"], timeframe["timeframe_id"])
            mine = [
                piece
                for piece in pieces[student["student_id"]]
                if timeframe["starts_on"] <= piece.assignment["assigned_on"] <= timeframe["ends_on"]
            ]
            by_unit = _grouped(mine, lambda piece: piece.assignment["unit_id"])
            for unit_id, of_unit in by_unit.items():
                expected[UNITS][*key, unit_id] = _unit_row(of_unit)
            expected[PUPILS][key] = _pupil_row(student["cohort_id"], mine, by_unit, subjects)
    return expected


SOURCE = ["student", "group_membership", "timeframe", "unit", "assignment", "feedback"]


async def cached(connection: asyncpg.Connection) -> dict[str, dict[Key, Row]]:
    """Return what both tables hold, by table and key, but for calculated_at."""
    found: dict[str, dict[Key, Row]] = {}
    for table, width in ((PUPILS, 2), (UNITS, 3)):
        rows = await _rows(connection, table)
        found[table] = {tuple(row.values())[:width]: dict(list(row.items())[width:-1]) for row in rows}
    for row in found[PUPILS].values():
        row["subjects"] = json.loads(row["subjects"], parse_float=Decimal)
    return found


async def drift(connection: asyncpg.Connection) -> list[str]:
    """Return every difference between what is cached and what is true, both ways; [] when there is none.

    Looks at one snapshot, unless the connection is in a transaction already.
    """
    if connection.is_in_transaction():
        expected, found = await truth(connection), await cached(connection)
    else:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            expected, found = await truth(connection), await cached(connection)
    return [
        f"{table} {[str(part) for part in key]}: cached {found[table].get(key)}, true {expected[table].get(key)}"
        for table in (PUPILS, UNITS)
        for key in expected[table].keys() | found[table].keys()
        if expected[table].get(key) != found[table].get(key)
    ]


def working_level(pieces: Iterable[Piece]) -> int | None:
    """Return the highest level at which more than half of what is set carries a positive score."""
    by_level = _grouped([piece for piece in pieces if piece.is_set], lambda piece: piece.assignment["level"])
    reached = [
        level
        for level, of_level in by_level.items()
        if sum(1 for piece in of_level if piece.feedback and piece.feedback["score"] > 0) > len(of_level) / 2
    ]
    return max(reached, default=None)


def most_frequent(levels: Iterable[int | None]) -> int | None:
    """Return the most frequent level, the higher on a tie."""
    counts = Counter(level for level in levels if level is not None)
    return max(counts, key=lambda level: (counts[level], level), default=None)


async def _rows(connection: asyncpg.Connection, table: str) -> list[Row]:
    return [dict(row) for row in await connection.fetch(f"select * from {table}")]


def _pieces(source: Mapping[str, list[Row]]) -> dict[Any, list[Piece]]:
    by_group = _grouped(source["assignment"], lambda row: row["group_id"])
    by_id = {row["assignment_id"]: row for row in source["assignment"]}
    feedback = {(row["student_id"], row["assignment_id"]): row for row in source["feedback"]}
    pieces: dict[Any, list[Piece]] = defaultdict(list)
    for member in source["group_membership"]:
        for row in by_group.get(member["group_id"], []):
            given = feedback.pop((member["student_id"], row["assignment_id"]), None)
            pieces[member["student_id"]].append(Piece(row, is_set=True, feedback=given))
    for (student_id, assignment_id), given in feedback.items():
        pieces[student_id].append(Piece(by_id[assignment_id], is_set=False, feedback=given))
    return pieces


def _grouped(items: Iterable[Any], key: Any) -> dict[Any, list[Any]]:
    groups: dict[Any, list[Any]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _mean(scores: list[Decimal]) -> Decimal | None:
    if not scores:
        return None
    return (sum(scores, Decimal()) / len(scores)).quantize(Decimal("0.0001"), ROUND_HALF_UP)


def _figures(pieces: list[Piece]) -> Row:
    given = [(piece.assignment["kind"], piece.feedback["score"]) for piece in pieces if piece.feedback]
    activities = [score for kind, score in given if kind == "activity"]
    assessments = [score for kind, score in given if kind == "assessment"]
    return {
        "activity_average": _mean(activities),
        "assessment_average": _mean(assessments),
        "average": _mean(activities + assessments),
        "activity_count": len(activities),
        "assessment_count": len(assessments),
        "feedback_count": len(given),
        "assignment_count": sum(piece.is_set for piece in pieces),
    }


def _latest(pieces: list[Piece]) -> Mapping[str, Any]:
    """Return the latest feedback, the one on the assignment with the greater id on a tie; {} without any."""

    def order(row: Mapping[str, Any]) -> tuple[datetime, Any]:
        return row["given_at"], row["assignment_id"]

    return max((piece.feedback for piece in pieces if piece.feedback), key=order, default={})


def _unit_row(pieces: list[Piece]) -> Row:
    latest = _latest(pieces)
    return _figures(pieces) | {
        "working_level": working_level(pieces),
        "latest_given_at": latest.get("given_at"),
    }


def _pupil_row(cohort_id: Any, pieces: list[Piece], by_unit: Mapping[Any, list[Piece]], subjects: Any) -> Row:
    latest = _latest(pieces)
    by_subject = _grouped(by_unit, lambda unit_id: subjects[unit_id])
    return (
        {"cohort_id": cohort_id}
        | _figures(pieces)
        | {"subjects": {name: _subject([by_unit[unit_id] for unit_id in ids]) for name, ids in by_subject.items()}}
        | {f"latest_{name}": latest.get(name) for name in ("assignment_id", "score", "comment", "given_at")}
    )


def _subject(units: list[list[Piece]]) -> Row:
    figures = _figures([piece for unit in units for piece in unit])
    return {name: figures[name] for name in ("average", "feedback_count", "assignment_count")} | {
        "unit_count": len(units),
        "working_level": most_frequent(working_level(unit) for unit in units),
    }
