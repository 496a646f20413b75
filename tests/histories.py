"""Writes drawn by chance, for tests in which nobody chose what happens."""

from collections.abc import Callable, Sequence
from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
from school import School

Draw = Callable[[int], int]
"""Return a number from 0 up to, but not including, its argument."""

KNOWN_REFUSALS = {"SC002", "SC003", "SC004", "SC005", "SC006", "SC007", "SC008", "SC013", "40001"}
"""What a write may meet when another one removed its pupil, group or unit first, or moved its assignment."""

_DAYS = [date(2026, 1, 10), date(2026, 2, 10), date(2026, 3, 10)]


async def write(school: School, draw: Draw, functions: Sequence[str] | None = None) -> str | None:
    """Call a write function with arguments drawn from what exists; return the SQLSTATE if it was refused."""
    names = list(functions or ARGUMENTS)
    name = names[draw(len(names))]
    arguments = [await _argument(school, draw, kind) for kind in ARGUMENTS[name]]
    try:
        async with school.db.transaction():
            await getattr(school, name)(*arguments)
    except asyncpg.PostgresError as error:
        if error.sqlstate not in KNOWN_REFUSALS:
            raise
        return error.sqlstate
    return None


ARGUMENTS = {
    "record_feedback": ["assignment", "student", "score", "comment"],
    "retract_feedback": ["assignment", "student"],
    "join_group": ["student", "class_group"],
    "leave_group": ["student", "class_group"],
    "move_cohort": ["student", "cohort"],
    "set_assignment": ["class_group", "unit", "level", "kind", "day"],
    "edit_assignment": ["assignment", "class_group?", "unit?", "level", "kind", "day"],
    "delete_assignment": ["assignment"],
    "edit_unit": ["unit", "subject", "subject"],
    "add_student": ["cohort", "subject"],
    "remove_student": ["student"],
    "add_timeframe": ["subject", "first day", "last day"],
    "edit_timeframe": ["timeframe", "subject", "first day", "last day"],
    "delete_timeframe": ["timeframe"],
    "delete_unit": ["unit"],
    "delete_group": ["class_group"],
    "add_unit": ["subject", "subject"],
    "add_group": ["subject"],
}
"""Every function that may change a report, and two that make room for more."""

_VALUES: dict[str, list[Any]] = {
    "score": [Decimal(0), Decimal("0.3333"), Decimal("0.5"), Decimal(1)],
    "comment": [None, "good"],
    "level": [1, 2, 3],
    "kind": ["activity", "assessment"],
    "subject": ["Mathematics", "Music"],
    "day": _DAYS,
    "first day": [date(2026, 1, 1), _DAYS[1]],
    "last day": [_DAYS[1], date(2026, 3, 31)],
}

_IDS = {"class_group": "group_id"}


async def _argument(school: School, draw: Draw, kind: str) -> Any:
    if kind in _VALUES:
        return _VALUES[kind][draw(len(_VALUES[kind]))]
    if kind.endswith("?") and draw(2):
        return None
    table = kind.rstrip("?")
    column = _IDS.get(table, f"{table}_id")
    rows = await school.db.fetch(f"select {column} from school.{table} order by {column}")
    ids: list[UUID] = [row[0] for row in rows]
    return ids[draw(len(ids))] if ids else None
