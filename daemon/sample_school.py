"""A believable school of any size, the same one for the same seed: for the demo, the benchmarks and the tests."""

from collections.abc import Callable

import asyncpg

from daemon.sql import statement

COHORTS = statement("sample_school_cohorts")
STUDENTS = statement("sample_school_students")
GROUPS = statement("sample_school_groups")
MEMBERSHIPS = statement("sample_school_memberships")
TIMEFRAMES = statement("sample_school_timeframes")
UNITS = statement("sample_school_units")
ASSIGNMENTS = statement("sample_school_assignments")
FEEDBACK = statement("sample_school_feedback")
STEPS = 9
"""Eight tables, and the counting."""


async def load(
    connection: asyncpg.Connection,
    *,
    students: int,
    groups: int,
    timeframes: int,
    units: int,
    feedback: int,
    seed: int = 1,
    advanced: Callable[[int], None] = lambda _: None,
) -> None:
    """Fill an empty school, in one transaction; then let the planner count it.

    It writes the tables directly, without events: backfill afterwards. timeframes counts the one that is always there.
    Raises ValueError for a school without a pupil, group, timeframe or unit, and asyncpg's errors: UniqueViolationError
    when a school of this seed is there already. advanced is told of every one of the STEPS that is done.
    """
    if min(students, groups, timeframes, units) < 1 or feedback < 0:
        raise ValueError(
            "A school needs at least one pupil, group, timeframe and unit, and no negative amount of feedback."
        )
    steps = (
        (COHORTS, seed),
        (STUDENTS, seed, students),
        (GROUPS, seed, groups),
        (MEMBERSHIPS, seed, students, groups),
        (TIMEFRAMES, seed, timeframes),
        (UNITS, seed, units),
        (ASSIGNMENTS, seed, groups, units, feedback),
        (FEEDBACK, seed, feedback),
    )
    async with connection.transaction():
        for query, *numbers in steps:
            await connection.execute(query, *numbers)
            advanced(1)
    await connection.execute(
        "analyze school.cohort, school.student, school.class_group, school.group_membership,"
        " school.timeframe, school.unit, school.assignment, school.feedback"
    )
    advanced(1)
