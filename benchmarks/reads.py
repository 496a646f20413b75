"""Reading a report: one row of the cached table, against adding it up for every reader as one would without a cache."""

import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from uuid import UUID

import asyncpg

from benchmarks.bench import Bench, load_school
from benchmarks.figures import Part, Row, Series, Verdict, interleaved

SCHOOLS = (100, 10_000, 1_000_000)
"""Pieces of feedback in the whole school; a pupil has 40 of them."""
EACH = 40
PUPILS = (10, 100, 1_000, 10_000)
"""Pieces of feedback of one pupil, of 20."""
COURSE = 20
READS = 200
"""A turn, of pupils drawn at random."""
READ, QUERY = "/reports/{pupil}, cached", "/reports/{pupil}, added up"
COHORT, COHORT_QUERY = "/reports/cohorts/{cohort}, cached", "/reports/cohorts/{cohort}, added up"
FASTER = 1

CACHED = "select r.* from reports.student_report($1) as r"
CACHED_COHORT = "select r.* from reports.cohort_report($1) as r"

# What the page shows, from the tables, as it is written for a page: of each pupil the averages, the counts, the
# subjects with their levels, and the latest piece. {pupils} is who. Every join has an index that serves it.
ADDED_UP = """
with pupil as materialized (
    {pupils}
), work as (
    select p.student_id, u.subject, a.unit_id, a.level, a.kind, a.assignment_id, f.score, f.comment, f.given_at
    from pupil as p
    join school.group_membership as m on m.student_id = p.student_id
    join school.assignment as a on a.group_id = m.group_id
    join school.unit as u on u.unit_id = a.unit_id
    left join school.feedback as f on f.student_id = p.student_id and f.assignment_id = a.assignment_id
), by_level as (
    select w.student_id, w.subject, w.unit_id, w.level, count(*) as assignment_count, count(w.score) as feedback_count,
           count(*) filter (where w.score > 0) as positive_count, sum(w.score) as score_sum
    from work as w
    group by w.student_id, w.subject, w.unit_id, w.level
), by_unit as (
    select l.student_id, l.subject, l.unit_id, sum(l.assignment_count) as assignment_count,
           sum(l.feedback_count) as feedback_count, sum(l.score_sum) as score_sum,
           max(l.level) filter (where l.positive_count * 2 > l.assignment_count) as working_level
    from by_level as l
    group by l.student_id, l.subject, l.unit_id
), by_subject as (
    select b.student_id, b.subject, sum(b.assignment_count) as assignment_count,
           sum(b.feedback_count) as feedback_count, sum(b.score_sum) as score_sum, count(*) as unit_count,
           mode() within group (order by b.working_level desc) as working_level
    from by_unit as b
    group by b.student_id, b.subject
), subjects as (
    select s.student_id, jsonb_object_agg(s.subject, jsonb_build_object(
        'average', round(s.score_sum / nullif(s.feedback_count, 0), 4), 'unit_count', s.unit_count,
        'feedback_count', s.feedback_count, 'assignment_count', s.assignment_count, 'working_level', s.working_level
    )) as subjects
    from by_subject as s
    group by s.student_id
), total as (
    select w.student_id, round(avg(w.score), 4) as average,
           round(avg(w.score) filter (where w.kind = 'activity'), 4) as activity_average,
           round(avg(w.score) filter (where w.kind = 'assessment'), 4) as assessment_average,
           count(w.score) as feedback_count, count(*) as assignment_count
    from work as w
    group by w.student_id
), latest as (
    select distinct on (w.student_id) w.student_id, w.assignment_id, w.score, w.comment, w.given_at
    from work as w
    where w.given_at is not null
    order by w.student_id, w.given_at desc, w.assignment_id desc
)
select t.student_id, t.average, t.activity_average, t.assessment_average, t.feedback_count, t.assignment_count,
       s.subjects, l.assignment_id as latest_assignment_id, l.score as latest_score, l.comment as latest_comment,
       l.given_at as latest_given_at
from total as t
join subjects as s on s.student_id = t.student_id
left join latest as l on l.student_id = t.student_id
"""
ONE_PUPIL = ADDED_UP.format(pupils="select s.student_id from school.student as s where s.student_id = $1")
ONE_COHORT = ADDED_UP.format(pupils="select s.student_id from school.student as s where s.cohort_id = $1")
FIGURES = ("average", "activity_average", "assessment_average", "feedback_count", "assignment_count", "subjects")


@dataclass(frozen=True)
class Library:
    """A school, and who reads in it."""

    connection: asyncpg.Connection
    pupils: Sequence[UUID]
    cohort: UUID

    async def read(self, query: str) -> Series:
        """Ask for pupils drawn at random; return the milliseconds of each."""
        return await self._time(query, random.Random(1).choices(self.pupils, k=READS))

    async def read_cohort(self, query: str) -> Series:
        """Ask for a cohort; return the milliseconds."""
        return await self._time(query, [self.cohort] * 3)

    async def _time(self, query: str, ids: Sequence[UUID]) -> Series:
        prepared = await self.connection.prepare(query)
        await prepared.fetch(ids[0])
        times = []
        for each in ids:
            started = time.perf_counter()
            await prepared.fetch(each)
            times.append((time.perf_counter() - started) * 1000)
        return Series.of("ms", times)

    async def compare(self) -> None:
        """See that both ways say the same of every pupil whom they are asked about."""
        for pupil in self.pupils[:20]:
            cached = await self.connection.fetchrow(CACHED, pupil)
            added_up = await self.connection.fetchrow(ONE_PUPIL, pupil)
            assert cached is not None
            assert added_up is not None
            for figure in FIGURES:
                assert cached[figure] == added_up[figure], f"{figure}: {cached[figure]} and {added_up[figure]}"


async def measure(bench: Bench) -> Part:
    """Read a pupil's and a cohort's report in schools of several sizes, both ways, in turns."""
    async with AsyncExitStack() as stack:
        turns: dict[str, Callable[[], Awaitable[Series]]] = {}
        for feedback in SCHOOLS:
            rows = bench.scaled(feedback, least=EACH)
            library = await stack.enter_async_context(_library(bench, max(1, rows // EACH), EACH))
            turns |= _turns(f"school of {rows:,}", library)
            turns |= {
                f"school of {rows:,}, {name}": partial(library.read_cohort, query)
                for name, query in ((COHORT, CACHED_COHORT), (COHORT_QUERY, ONE_COHORT))
            }
        for each in PUPILS:
            pieces = bench.scaled(each, least=10)
            library = await stack.enter_async_context(_library(bench, COURSE, pieces))
            turns |= _turns(f"pupil of {pieces:,}", library)
        measured = await interleaved("reads", bench.rounds, turns)
    return Part(
        name="reads",
        question="How long does reading a report take, from the cached table and added up anew?",
        how=f"One connection, prepared statements, {READS} pupils at random a turn; both ways give the same figures.",
        rows=[
            *_ratios(measured),
            *(Row(name, {"p50": _of(turns, 50), "p99": _of(turns, 99)}) for name, turns in measured.items()),
        ],
        verdicts=[Verdict(row.name, row.figures["ratio"], ">", FASTER) for row in _ratios(measured)],
    )


def _turns(where: str, library: Library) -> dict[str, Callable[[], Awaitable[Series]]]:
    return {f"{where}, {name}": partial(library.read, query) for name, query in ((READ, CACHED), (QUERY, ONE_PUPIL))}


def _of(turns: Sequence[Series], percent: float) -> Series:
    return Series.of("ms", (each.percentile(percent) for each in turns))


def _ratios(measured: Mapping[str, Sequence[Series]]) -> list[Row]:
    """Divide what adding up takes by what the cached row takes."""
    rows = []
    for name, turns in measured.items():
        other = name.replace(", cached", ", added up")
        if other != name:
            where = name.removesuffix(", cached")
            rows.append(Row(f"{where}: added up / cached", {"ratio": _of(measured[other], 50).over(_of(turns, 50))}))
    return rows


@asynccontextmanager
async def _library(bench: Bench, students: int, each: int) -> AsyncIterator[Library]:
    async with bench.database() as database, bench.connection(database) as connection:
        await load_school(connection, students, each)
        pupils = [row[0] for row in await connection.fetch("select s.student_id from school.student as s order by 1")]
        cohort = await connection.fetchval("select s.cohort_id from school.student as s order by 1 limit 1")
        library = Library(connection, pupils, cohort)
        await library.compare()
        yield library
