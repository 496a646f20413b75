"""A backlog of feedback: how long until every report is true, and what that takes, for recalcd and its rivals."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

from benchmarks.bench import Bench
from benchmarks.figures import Part, Row, Series, Verdict, columns, interleaved
from benchmarks.floor import BATCH_KEYS, chunks, script
from benchmarks.rivals import QUEUES, available, plain
from benchmarks.rivals.contest import Contest, TooSlow, contest
from benchmarks.rivals.system import RECALCD, System

STUDENTS = 10_000
ONE_EACH, ALL_PUPILS = ("uniform", 10_000), ("uniform", 100_000)
"""By which backlog a rival is measured: one with a job an event by the first, one with a job a pupil by the second. How
many jobs it does in a second is the same for a longer queue; adding a million would take most of them a minute."""
LIMIT_S = 4.0
"""For one turn of a queue that works job by job; who is not done by then is measured by what it has done."""
LONG_LIMIT_S = 30.0
"""For all others: the same whatever the number of events, and of no worth until they are done."""
LOOK_EVERY_S = 0.2
FLOOR = "psql"
FLOOR_RATIO = 0.9
BACKLOGS = (
    ("uniform", 10_000),
    ("uniform", 100_000),
    ("uniform", 1_000_000),
    ("Zipf", 100_000),
    ("Zipf", 1_000_000),
)
Case = tuple[str, int]
"""How the pupils of a backlog are drawn, and its events."""
TARGETS: dict[Case, float] = {
    ("uniform", 1_000_000): 100,
    ("uniform", 100_000): 15,
    ("uniform", 10_000): 3,
    ("Zipf", 1_000_000): 200,
}
"""Of the best queue with plain jobs, in events/s."""

# The pupils of the backlog get one changed score each, so that each report has something to become.
TOUCH = """
with changed as (
    update school.feedback as f
    set score = case when f.score = 0.5 then 0.6 else 0.5 end
    from bench.work as w
    where w.student_id in (select t.student_id from bench.touched as t)
      and f.assignment_id = w.assignment_id and f.student_id = w.student_id
    returning f.student_id
)
insert into bench.dirty (student_id) select c.student_id from changed as c on conflict do nothing
"""

COUNTERS = """
select pg_current_wal_insert_lsn() - '0/0'::pg_lsn as wal_bytes,
       (select d.xact_commit from pg_stat_database as d where d.datname = current_database()) as commits,
       (select coalesce(sum(f.calls), 0) from pg_stat_user_functions as f
        where f.funcid = 'reports.recalculate_students'::regproc) as calls,
       (select coalesce(sum(cardinality(b.keys)), 0) from outbox.batch as b) as pupils
"""


# The youngest row among the reports is the last that the backlog made true.
FINISHED = """
select extract(epoch from max(pg_xact_commit_timestamp(r.xmin)) - pg_xact_commit_timestamp($1::text::xid))::float8
from {report} as r
"""
SINCE = "select extract(epoch from clock_timestamp() - pg_xact_commit_timestamp($1::text::xid))::float8"


@dataclass(frozen=True)
class Counters:
    """What the server has counted so far."""

    wal_bytes: float
    commits: float
    calls: float
    pupils: float

    @classmethod
    async def now(cls, ground: Contest) -> "Counters":
        """Ask the server, from a new session: sessions report their counts when they end, at the latest."""
        async with ground.bench.connection(ground.database) as connection:
            row = await connection.fetchrow(COUNTERS)
        assert row is not None
        return cls(*(float(value) for value in row.values()))


@dataclass(frozen=True)
class Drain:
    """One backlog, worked off or worked at until our patience ended."""

    events_per_s: float
    seconds: float
    done: float
    recalculations: float | None
    """Pupils; unknown where a call of the procedure is of many."""
    calls: float
    wal_bytes_per_event: float
    enqueue_bytes_per_event: float
    commits_per_event: float


UNITS = {
    "events_per_s": "events/s",
    "seconds": "s",
    "done": "% of the events",
    "recalculations": "pupils",
    "calls": "of the procedure",
    "wal_bytes_per_event": "WAL bytes/event",
    "enqueue_bytes_per_event": "WAL bytes/event",
    "commits_per_event": "commits/event",
}


def backlog_keys(shape: str, events: int, students: Sequence[str]) -> list[str]:
    """Draw the pupil of each event, the same ones each time: evenly, or the n-th an n-th as often as the first."""
    draw = random.Random(events)
    weights = None if shape == "uniform" else [1 / rank for rank in range(1, len(students) + 1)]
    return draw.choices(students, weights, k=events)


async def measure(bench: Bench) -> Part:
    """Let each contestant work off the same backlogs, in turns."""
    rivals = (*QUEUES, plain.MATERIALIZED_VIEW, plain.RECOMPUTE_ALL)
    systems = [RECALCD, *available(rivals, bench.beside)]
    students = bench.scaled(STUDENTS, least=100)
    async with contest(bench, systems, students) as ground:
        rows = await ground.connection.fetch("select w.student_id::text from bench.work as w order by w.turn")
        pupils = [row[0] for row in rows]
        backlogs = {
            (shape, events): backlog_keys(shape, bench.scaled(events, least=100), pupils) for shape, events in BACKLOGS
        }
        turns = _turns(ground, systems, backlogs)
        measured = await interleaved("saturation", bench.rounds, turns)
    return Part(
        name="saturation",
        question=f"How long until every report is true after many events of {students:,} pupils at once?",
        how="Workers running; from the commit of the backlog to that of the last report. A queue that works job by"
        f" job is watched for {LIMIT_S:g} s, and credited with what it ends while it stops. Its pace in jobs/s is"
        f" measured once, on {ONE_EACH[1]:,} events where each is a job, on {ALL_PUPILS[1]:,} where a pupil has one"
        " job at a time, and stands for the other backlogs: `by its pace`.",
        rows=[Row(name, _figures(drains)) for name, drains in measured.items()]
        + [
            Row(f"{_side(*case, system.name)}, by its pace", {"events_per_s": speed})
            for case in backlogs
            for system in systems
            if _measured_on(system, case) != case
            for speed in [_speed(measured, backlogs, system, case)]
        ],
        verdicts=_verdicts(measured, backlogs, systems),
    )


def _turns(
    ground: Contest, systems: Sequence[System], backlogs: Mapping[Case, Sequence[str]]
) -> dict[str, Callable[[], Awaitable[Drain]]]:
    turns: dict[str, Callable[[], Awaitable[Drain]]] = {}
    for case, backlog in backlogs.items():
        for system in systems:
            if case == _measured_on(system, case):
                turns[_side(*case, system.name)] = partial(_turn, ground, system, backlog)
        turns[_side(*case, FLOOR)] = partial(_floor, ground, backlog)
    return turns


def _measured_on(system: System, case: Case) -> Case:
    """Return the backlog by which a contestant is measured: that one, or one that stands for it."""
    if system is RECALCD:
        return case
    if system.dedupes or system not in QUEUES:
        return ALL_PUPILS
    if system.calls_each or case[0] == ONE_EACH[0]:
        return ONE_EACH
    return case[0], ALL_PUPILS[1]  # a batch's handler finds the fewer pupils in it, the more unequal they are


def _speed(
    measured: Mapping[str, Sequence[Drain]], backlogs: Mapping[Case, Sequence[str]], system: System, case: Case
) -> Series:
    """Return the events/s of a contestant, by its pace where another backlog stands for this one."""
    stand_in = _measured_on(system, case)
    times = 1.0
    if stand_in != case and (system.dedupes or system not in QUEUES):  # the same pupils are all that there is to do
        times = _events_a_pupil(backlogs[case]) / _events_a_pupil(backlogs[stand_in])
    drains = measured[_side(*stand_in, system.name)]
    return Series.of("events/s", (each.events_per_s * times for each in drains))


def _events_a_pupil(backlog: Sequence[str]) -> float:
    return len(backlog) / len(set(backlog))


async def _turn(ground: Contest, system: System, backlog: Sequence[str]) -> Drain:
    await ground.give_turn(system)
    await ground.fill(backlog)
    async with ground.working(system):
        async with ground.connection.transaction():
            await ground.connection.execute(TOUCH)
            before = await Counters.now(ground)
            await ground.connection.execute(system.enqueue_all)
            jobs = await ground.left(system)
            await ground.connection.execute(system.analyze)
            filled = await Counters.now(ground)
            xid = await ground.connection.fetchval("select pg_current_xact_id()::text")
            if system is RECALCD:
                await ground.connection.execute("select outbox.ring('reports.student')")
        with suppress(TooSlow):
            limit_s = LIMIT_S if system in QUEUES and (system.calls_each or not system.dedupes) else LONG_LIMIT_S
            await ground.drained(system, within_s=limit_s, every_s=LOOK_EVERY_S)
        seconds = await ground.connection.fetchval(SINCE, xid)
        is_done = await ground.left(system) == 0
    after, done = await Counters.now(ground), 1 - await ground.left(system) / jobs
    if is_done:
        seconds = await ground.connection.fetchval(FINISHED.format(report=system.report), xid)
        assert await ground.stale(system) == [], f"{system.name} left reports that are not true"
    return _drain(system, len(backlog), seconds, done=done, counters=(before, filled, after))


def _drain(system: System, events: int, seconds: float, *, done: float, counters: Sequence[Counters]) -> Drain:
    """Put a turn into figures; what the server counted includes what was done while the workers stopped."""
    before, filled, after = counters
    counted = max(1.0, events * done)
    calls = after.calls - filled.calls
    return Drain(
        events_per_s=events * done / seconds,
        seconds=seconds,
        done=100 * done,
        recalculations=after.pupils - filled.pupils if system is RECALCD else calls if system.calls_each else None,
        calls=calls,
        wal_bytes_per_event=(after.wal_bytes - filled.wal_bytes) / counted,
        enqueue_bytes_per_event=(filled.wal_bytes - before.wal_bytes) / events,
        commits_per_event=(after.commits - filled.commits) / counted,
    )


async def _floor(ground: Contest, backlog: Sequence[str]) -> Drain:
    """Call the procedure from psql on two connections, for arrays of the backlog's pupils that somebody else made."""
    await ground.give_turn(RECALCD)
    await ground.fill(backlog)
    await ground.connection.execute(TOUCH)
    filled = await Counters.now(ground)
    arrays = chunks(list(dict.fromkeys(backlog)), BATCH_KEYS)
    scripts = [script(arrays[first::2]) for first in range(2)]
    printed = await asyncio.gather(*(ground.bench.psql(ground.database, each) for each in scripts))
    times = [datetime.fromisoformat(line) for output in printed for line in output.split("\n") if line]
    seconds = (max(times) - min(times)).total_seconds()
    after = await Counters.now(ground)
    assert await ground.stale(RECALCD) == [], "psql left reports that are not true"
    figures = _drain(RECALCD, len(backlog), seconds, done=1, counters=(filled, filled, after))
    return replace(figures, recalculations=float(len(set(backlog))))


def _side(shape: str, events: int, name: str) -> str:
    return f"{shape}, {events:,}, {name}"


def _figures(drains: Sequence[Drain]) -> dict[str, Series]:
    unknown = {name for name in UNITS if getattr(drains[0], name) is None}
    return columns({name: unit for name, unit in UNITS.items() if name not in unknown}, drains)


def _pace(drains: Sequence[Drain]) -> Series:
    return Series.of("pupils/s", ((each.recalculations or 0) / each.seconds for each in drains))


def _verdicts(
    measured: Mapping[str, Sequence[Drain]], backlogs: Mapping[Case, Sequence[str]], systems: Sequence[System]
) -> list[Verdict]:
    """Compare with the best of each kind: that of the largest median."""
    verdicts = []
    for shape, events in backlogs:
        of = {system: _speed(measured, backlogs, system, (shape, events)) for system in systems}
        mine = of.pop(RECALCD)
        plain_jobs = {
            system: of[system] for system in of if system in QUEUES and system.calls_each and not system.dedupes
        }
        case = f"{shape}, {events:,}: recalcd"
        for kind, rivals, target in (("plain jobs", plain_jobs, TARGETS.get((shape, events), 1)), ("all", of, 1)):
            if rivals:
                best, speed = max(rivals.items(), key=lambda rival: rival[1].median)
                verdicts.append(Verdict(f"{case} / best of {kind}, {best.name}", mine.over(speed), ">", target))
        pace = _pace(measured[_side(shape, events, RECALCD.name)])
        floor = _pace(measured[_side(shape, events, FLOOR)])
        verdicts.append(Verdict(f"{case}'s recalculations / {FLOOR}", pace.over(floor), ">=", FLOOR_RATIO))
    return verdicts
