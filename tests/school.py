"""A small school to write to, through the functions that applications call."""

from dataclasses import dataclass, field
from datetime import date
from typing import Any
from uuid import UUID

import asyncpg

ALL = UUID(int=0)
"""The timeframe that holds everything."""

NOBODY = UUID(int=0xDEAD)
"""An id that nothing has."""

DAY = date(2026, 1, 15)

CLOSE = """
truncate reports.report_student_unit_rollups, reports.report_student_rollups,
    school.feedback, school.assignment, school.group_membership, school.student, school.cohort, school.class_group,
    school.unit;
delete from school.timeframe where ends_on <> 'infinity';
"""
"""Leaves nothing of any school."""


@dataclass
class School:
    """One connection's view of the school. Every method is the function of that name."""

    db: asyncpg.Connection
    pupils: list[UUID] = field(default_factory=list)
    groups: list[UUID] = field(default_factory=list)
    units: list[UUID] = field(default_factory=list)
    cohorts: list[UUID] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        async def call(*positional: Any, **named: Any) -> Any:
            values = [*positional, *named.values()]
            slots = [f"${number}" for number in range(1, len(positional) + 1)]
            slots += [f"p_{key} => ${number}" for number, key in enumerate(named, len(positional) + 1)]
            return await self.db.fetchval(f"select school.{name}({', '.join(slots)})", *values)

        return call

    async def assign(
        self, group: int = 0, unit: int = 0, level: int = 1, kind: str = "activity", day: date = DAY
    ) -> UUID:
        """Set an assignment for one of our groups, from one of our units."""
        assignment_id: UUID = await self.set_assignment(self.groups[group], self.units[unit], level, kind, day)
        return assignment_id

    async def events(self) -> list[tuple[str, str]]:
        """Take all events out of the outbox: key and reason of each, sorted."""
        rows = await self.db.fetch("delete from outbox.event where topic = 'reports.student' returning key, reason")
        return sorted((row["key"], row["reason"]) for row in rows)

    async def affected(self) -> tuple[set[UUID], str | None]:
        """Take all events out of the outbox: whom they name, each once, and their one reason."""
        events = await self.events()
        assert len({key for key, _ in events}) == len(events), "somebody was enqueued twice"
        assert len({reason for _, reason in events}) <= 1
        return {UUID(key) for key, _ in events}, events[0][1] if events else None

    async def settle(self) -> list[str]:
        """Recalculate whom the outbox names, as a daemon would; return the keys that changed."""
        return await self.recalculate(sorted({key for key, _ in await self.events()}))

    async def recalculate(self, keys: list[str] | list[UUID] | None = None) -> list[str]:
        """Recalculate pupils, all of ours unless told which; return the keys that changed."""
        names = [str(key) for key in (self.pupils if keys is None else keys)]
        changed: list[str] = await self.db.fetchval("call reports.recalculate_students($1, null)", names)
        return changed


async def found(
    db: asyncpg.Connection, *, pupils: int = 3, groups: int = 2, units: int = 2, cohorts: int = 2
) -> School:
    """Found a school without assignments, all pupils in the first group and the first cohort; its reports are true."""
    school = School(db)
    school.cohorts = [await school.add_cohort(f"Cohort {number}") for number in range(cohorts)]
    school.groups = [await school.add_group(f"Group {number}") for number in range(groups)]
    school.units = [await school.add_unit("Mathematics", f"Unit {number}") for number in range(units)]
    school.pupils = [await school.add_student(school.cohorts[0], f"Pupil {number}") for number in range(pupils)]
    for pupil in school.pupils:
        await school.join_group(pupil, school.groups[0])
    await school.settle()
    return school
