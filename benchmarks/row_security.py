"""What row security costs a page that reads one report: the same reads with and without it, as an end user."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import asyncpg

from benchmarks.bench import Bench
from benchmarks.figures import Part, Row, Series, Verdict, interleaved
from daemon import sample_school

STUDENTS = 1_000
GROUPS = 40
FEEDBACK = 40_000
READS = 200
"""One after another in a turn of a side."""
TURNS = 20
"""A round."""

READ = "select average, subjects, calculated_at, is_fresh from reports.student_report($1)"
ROLE = "bench_row_security"
PUPIL, TEACHER = "a pupil", "a teacher of two groups"
TARGET_RATIOS = {PUPIL: 1.5, TEACHER: 2.0}
"""Of a read that takes a tenth of a millisecond in all: well above what was measured, to notice a change."""


async def measure(bench: Bench) -> Part:
    """Read reports as a pupil and as a teacher, in a database with row security and in its twin without."""
    async with AsyncExitStack() as stack:
        sides = {}
        for is_on in (False, True):
            name = await stack.enter_async_context(_school(bench, is_on=is_on))
            for who in (PUPIL, TEACHER):
                connection = await stack.enter_async_context(bench.connection(name))
                pupils = await _pretend(connection, who)
                sides[_side(who, is_on=is_on)] = partial(_read_us, connection, pupils)
        measured = await interleaved("row_security", bench.rounds * TURNS, sides)
    series = {name: Series.of("µs", values) for name, values in measured.items()}
    return Part(
        name="row_security",
        question="What does row security cost the read of one report?",
        how=f"reports.student_report of a prepared statement, {READS} times a turn, claims in settings of the session.",
        rows=[Row(name, {"one read": each}) for name, each in series.items()],
        verdicts=[
            Verdict(
                f"{who}: with / without",
                series[_side(who, is_on=True)].over(series[_side(who, is_on=False)]),
                "<=",
                ratio,
            )
            for who, ratio in TARGET_RATIOS.items()
        ],
    )


def _side(who: str, *, is_on: bool) -> str:
    return f"{who}, {'with' if is_on else 'without'} row security"


@asynccontextmanager
async def _school(bench: Bench, *, is_on: bool) -> AsyncIterator[str]:
    async with bench.database() as name, bench.connection(name) as connection:
        await sample_school.load(
            connection,
            students=bench.scaled(STUDENTS, least=20),
            groups=GROUPS,
            timeframes=2,
            units=40,
            feedback=bench.scaled(FEEDBACK, least=20),
        )
        await connection.execute("call reports.backfill_student_rollups()")
        await connection.execute("vacuum (analyze) reports.report_student_rollups")
        await connection.execute(
            f"do $$ begin create role {ROLE} in role recalcd_reader; exception when duplicate_object then null; end $$"
        )
        if is_on:
            await connection.execute("call reports.enable_row_security()")
        yield name


async def _pretend(connection: asyncpg.Connection, who: str) -> list[str]:
    """Become somebody of the school; return the pupils whom they ask for."""
    groups = await connection.fetch("select distinct group_id from school.group_membership order by group_id limit 2")
    ids = [row["group_id"] for row in groups]
    members = "select distinct student_id from school.group_membership where group_id = any ($1) order by student_id"
    pupils = [row["student_id"] for row in await connection.fetch(members, ids)]
    if who == PUPIL:
        pupils = pupils[:1]
        await connection.execute("select set_config('recalcd.student_id', $1, false)", str(pupils[0]))
    else:
        await connection.execute("select set_config('recalcd.group_ids', $1, false)", ",".join(map(str, ids)))
    await connection.execute(f"set role {ROLE}")
    return pupils


async def _read_us(connection: asyncpg.Connection, pupils: list[str]) -> float:
    """Return the microseconds of a read, round trip included, on average over many."""
    started = time.perf_counter()
    for number in range(READS):
        row = await connection.fetchrow(READ, pupils[number % len(pupils)])
        assert row is not None
        assert row["is_fresh"], "somebody may not see what they are to read"
    return (time.perf_counter() - started) / READS * 1e6
