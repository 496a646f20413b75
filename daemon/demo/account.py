"""What happened in the demo, and whether all of it is as it should be."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

import asyncpg

from daemon.demo import freshness
from daemon.demo.freshness import DoneBatch, Freshness
from daemon.demo.stage import Reach
from daemon.demo.writers import Work, Writers
from daemon.reports import read_report
from daemon.sql import statement
from daemon.verify import Verdict

BATCHES = statement("demo_batches")
COMMITS = statement("demo_commits")
PUPILS_SHOWN = 8
UNITS_SHOWN = 5

Report = Mapping[str, Any]


@dataclass(frozen=True)
class Wrote:
    """What the writers did."""

    write_count: int
    seconds: float
    unchanged_count: int
    failed: list[str]

    @property
    def rate_per_s(self) -> float:
        """How many writes a second there were."""
        return self.write_count / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Recalculated:
    """What the daemon did of it. event_count: what was taken; lost_count: writes that no batch can have taken."""

    batch_count: int
    event_count: int
    recalculation_count: int
    freshness_ms: Freshness | None
    lost_count: int

    @property
    def events_per_recalculation(self) -> float | None:
        """How much work the gathering of events saved."""
        return round(self.event_count / self.recalculation_count, 2) if self.recalculation_count else None


@dataclass(frozen=True)
class Cell:
    """How a pupil does in a unit."""

    average: float | None
    working_level: int | None


@dataclass(frozen=True)
class Grid:
    """A corner of a group's report: some of its pupils by some of its units."""

    name: str
    group_id: UUID
    pupil_count: int
    unit_count: int
    units: list[str]
    pupils: dict[str, float | None]
    """Id and average of each."""
    cells: dict[str, list[Cell]]


@dataclass
class Account:
    """Everything that is told in the end."""

    student_count: int
    wrote: Wrote
    recalculated: Recalculated
    pending_count: int
    failing_count: int
    before: Report
    after: Report
    group: Grid
    verdict: Verdict
    daemon_trouble: str = ""
    reach: Reach | None = None

    @property
    def problems(self) -> list[str]:
        """Everything that is off, in sentences; [] when all is well."""
        wrote, done, verdict = self.wrote, self.recalculated, self.verdict
        enqueued_count = wrote.write_count - wrote.unchanged_count - len(wrote.failed)
        first_error = wrote.failed[0] if wrote.failed else ""
        found = {
            f"{len(wrote.failed):,} of {wrote.write_count:,} writes failed; the first: {first_error}": wrote.failed,
            "nothing was recalculated": not done.recalculation_count,
            f"events left in the outbox: {self.pending_count:,}": self.pending_count,
            f"pupils whose recalculation is owed (outbox.failure): {self.failing_count:,}": self.failing_count,
            f"events written: {enqueued_count:,}, but taken: {done.event_count:,}": enqueued_count != done.event_count,
            f"writes that were never recalculated: {done.lost_count:,}": done.lost_count,
            "the pupil's report is not fresh": not self.after["is_fresh"],
            "the pupil's report is as it was": self.after == self.before,
            f"{len(verdict.drifted):,} of {self.student_count:,} pupils drifted": verdict.drifted,
            f"the recalculation fails for {len(verdict.failed):,} of {self.student_count:,} pupils": verdict.failed,
            f"{verdict.checked_count:,} of {self.student_count:,} pupils were verified": (
                verdict.checked_count != self.student_count
            ),
            f"the daemon {self.daemon_trouble}": self.daemon_trouble,
        }
        return [problem for problem, is_one in found.items() if is_one]

    def as_json(self) -> dict[str, Any]:
        """Return what --json prints; its keys are public."""
        done = self.recalculated
        return {
            "problems": self.problems,
            "writes": self.wrote.write_count,
            "unchanged_writes": self.wrote.unchanged_count,
            "failed_writes": self.wrote.failed,
            "seconds": self.wrote.seconds,
            "writes_per_s": round(self.wrote.rate_per_s, 1),
            "events": done.event_count,
            "recalculations": done.recalculation_count,
            "batches": done.batch_count,
            "events_per_recalculation": done.events_per_recalculation,
            "freshness_ms": asdict(done.freshness_ms) if done.freshness_ms else None,
            "pupil": {"before": self.before, "after": self.after},
            "group": asdict(self.group),
            "verify": asdict(self.verdict) | {"drift": len(self.verdict.drifted)},
            "kept": asdict(self.reach) if self.reach else None,
        }


def wrote(writers: Writers) -> Wrote:
    """Sum up the writers."""
    return Wrote(writers.count, round(writers.seconds, 3), writers.unchanged_count, writers.failed)


async def read_recalculated(opened: asyncpg.Connection, writers: Writers) -> Recalculated:
    """Ask the history, and the commit times of writes and batches."""
    batches = [DoneBatch(**row) for row in await opened.fetch(BATCHES)]
    commits = await opened.fetch(COMMITS, [write.xid for write in writers.done])
    committed = ((write.key, row["committed_at"]) for write, row in zip(writers.done, commits, strict=True))
    waited_s, lost_count = freshness.measure(committed, batches)
    return Recalculated(
        batch_count=len(batches),
        event_count=sum(batch.event_count for batch in batches),
        recalculation_count=sum(len(batch.keys) for batch in batches),
        freshness_ms=freshness.summarise(waited_s),
        lost_count=lost_count,
    )


async def read_pupil(opened: asyncpg.Connection, pupil: Work) -> Report:
    """Read the report as an application would."""
    (row,) = await read_report(opened, "student", pupil.student_id, "all")
    return dict(row) | {"subjects": json.loads(row["subjects"])}


async def read_group(opened: asyncpg.Connection, pupil: Work) -> Grid:
    """Read the report of the pupil's group, and cut out a corner, the pupil first."""
    rows = await read_report(opened, "group", pupil.group_id, "all")
    by_pupil: dict[str, list[asyncpg.Record]] = {str(pupil.student_id): []}
    for row in rows:
        by_pupil.setdefault(str(row["student_id"]), []).append(row)
    shown = dict(list(by_pupil.items())[:PUPILS_SHOWN])
    units = [row["title"] for row in by_pupil[str(pupil.student_id)]]
    return Grid(
        name=pupil.group_name,
        group_id=pupil.group_id,
        pupil_count=len(by_pupil),
        unit_count=len(units),
        units=units[:UNITS_SHOWN],
        pupils={key: _number(cells[0]["pupil_average"]) for key, cells in shown.items()},
        cells={key: _cells(rows[:UNITS_SHOWN]) for key, rows in shown.items()},
    )


def _cells(rows: Sequence[asyncpg.Record]) -> list[Cell]:
    return [Cell(_number(row["average"]), row["working_level"]) for row in rows]


def _number(value: object) -> float | None:
    return None if value is None else float(str(value))
