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
from benchmarks.pace import (
    ALL_PUPILS,
    CLEAN,
    ONE_EACH,
    Backlog,
    Case,
    Outcome,
    has_a_job_an_event,
    is_job_by_job,
    measured_on,
    outcome,
)
from benchmarks.rivals import QUEUES, available, plain
from benchmarks.rivals.contest import WARM_UP_JOBS, WARM_UP_WRITES, WARM_UPS, Contest, TooSlow, contest
from benchmarks.rivals.system import RECALCD, System

STUDENTS = 10_000
LIMIT_S = 3.0
"""For one turn of a queue that works job by job; who is not done by then is measured by what it has done."""
LONG_LIMIT_S = 25.0
"""For all others, of no worth until they are done; and where reports are true already, so that nothing says when the
last job was done but that none is left."""
LOOK_EVERY_S = 0.1
WARM_UP_EVENTS = WARM_UPS * WARM_UP_JOBS + WARM_UP_WRITES
FLOOR = "psql"
FLOOR_RATIO = 0.9
BACKLOGS: tuple[Case, ...] = (
    ONE_EACH,
    ALL_PUPILS,
    ("uniform", 1_000_000),
    ("Zipf", 100_000),
    ("Zipf", 1_000_000),
)
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
       (select count(*) from outbox.batch as b) as batches,
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
    batches: float
    """recalcd's calls, exactly, and the pupils in them."""
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
    """Let each contestant work off backlogs, in turns."""
    rivals = (*QUEUES, plain.MATERIALIZED_VIEW, plain.RECOMPUTE_ALL)
    systems = [RECALCD, *available(rivals, bench.beside)]
    students = bench.scaled(STUDENTS, least=100)
    async with contest(bench, systems, students) as ground:
        rows = await ground.connection.fetch("select w.student_id::text from bench.work as w order by w.turn")
        backlogs = _backlogs(bench, [row[0] for row in rows])
        measured = await interleaved("saturation", bench.rounds, _turns(ground, systems, backlogs))
    outcomes = {(case, system): _outcome(system, case, backlogs, measured) for case in BACKLOGS for system in systems}
    return Part(
        name="saturation",
        question=f"How fast is a backlog of events of {students:,} pupils worked off, and when is every report true?",
        how="Workers running; from the commit of the backlog to that of the last report. A queue that works job by"
        f" job is watched for {LIMIT_S:g} s, and credited with what it ends while it stops. `By its pace`: a queue's"
        f" jobs/s are measured on {ONE_EACH[1]:,} events where each is a job (and on as many whose reports are true"
        f" already, as they are for all but a pupil's first job), on {ALL_PUPILS[1]:,} where a pupil has one job at a"
        " time, and taken to be the same for other backlogs. Commits: from before the workers start until they have"
        " ended, for an event of the backlog or of the warm-up.",
        rows=[Row(name, _figures(drains)) for name, drains in measured.items()]
        + [
            Row(f"{_side(*case, system.name)}, by its pace", {"events_per_s": each.events_per_s})
            for (case, system), each in outcomes.items()
            if measured_on(system, case) != case
        ]
        + [
            Row(f"{_side(*case, system.name)}: every report true", {"true_after": each.true_after})
            for (case, system), each in outcomes.items()
        ],
        verdicts=[verdict for case in BACKLOGS for verdict in _verdicts(case, backlogs[case], outcomes, measured)],
    )


def _backlogs(bench: Bench, pupils: Sequence[str]) -> dict[Case, Backlog]:
    backlogs = {
        (shape, events): Backlog(backlog_keys(shape, bench.scaled(events, least=100), pupils))
        for shape, events in BACKLOGS
    }
    return backlogs | {CLEAN: replace(backlogs[ONE_EACH], leaves_reports_stale=False)}


def _turns(
    ground: Contest, systems: Sequence[System], backlogs: Mapping[Case, Backlog]
) -> dict[str, Callable[[], Awaitable[Drain]]]:
    turns: dict[str, Callable[[], Awaitable[Drain]]] = {}
    for case, backlog in backlogs.items():
        for system in systems:
            if case == measured_on(system, case) and (case != CLEAN or has_a_job_an_event(system)):
                within_s = LONG_LIMIT_S if case == CLEAN else _limit_s(system)
                turns[_side(*case, system.name)] = partial(worked_off, ground, system, backlog, within_s=within_s)
        if case != CLEAN:
            turns[_side(*case, FLOOR)] = partial(_floor, ground, backlog)
    return turns


def _outcome(
    system: System, case: Case, backlogs: Mapping[Case, Backlog], measured: Mapping[str, Sequence[Drain]]
) -> Outcome:
    speeds = {
        each: Series.of("events/s", (drain.events_per_s for drain in measured[_side(*each, system.name)]))
        for each in backlogs
        if _side(*each, system.name) in measured
    }
    return outcome(system, case, backlogs, speeds)


def _limit_s(system: System) -> float:
    is_slow = system in QUEUES and not system.coalesces and (system.calls_each or not system.dedupes)
    return LIMIT_S if is_slow else LONG_LIMIT_S


async def worked_off(ground: Contest, system: System, backlog: Backlog, *, within_s: float) -> Drain:
    """Give a contestant a backlog, and watch it for so long at most."""
    await ground.give_turn(system)
    await ground.fill(backlog.keys)
    idle = await Counters.now(ground)
    async with ground.working(system):
        async with ground.connection.transaction():
            if backlog.leaves_reports_stale:
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
            await ground.drained(system, within_s=within_s, every_s=LOOK_EVERY_S)
        seconds, left = await ground.connection.fetchval(SINCE, xid), await ground.left(system)
    after = await Counters.now(ground)
    if backlog.leaves_reports_stale:
        # What was in hand when the workers were told to stop counts, and the time it took.
        left = await ground.left(system)
        finished_s = await ground.connection.fetchval(FINISHED.format(report=system.report), xid)
        seconds = finished_s if finished_s and finished_s > 0 else seconds
    if left == 0:
        assert await ground.stale(system) == [], f"{system.name} left reports that are not true"
    return _drain(system, backlog.events, seconds, done=1 - left / jobs, counters=(idle, before, filled, after))


def _drain(system: System, events: int, seconds: float, *, done: float, counters: Sequence[Counters]) -> Drain:
    """Put a turn into figures; what the server counted includes what was done while the workers stopped.

    Sessions report what they count once a second at most, so only before they begin and after they end is it known.
    """
    idle, before, filled, after = counters
    counted = max(1.0, events * done)
    calls = after.calls - idle.calls - (WARM_UP_EVENTS if system.calls_each else 0)
    pupils = calls if system.calls_each else None
    if system is RECALCD:
        calls, pupils = after.batches - filled.batches, after.pupils - filled.pupils
    return Drain(
        events_per_s=counted / seconds,
        seconds=seconds,
        done=100 * done,
        recalculations=pupils,
        calls=calls,
        wal_bytes_per_event=(after.wal_bytes - filled.wal_bytes) / counted,
        enqueue_bytes_per_event=(filled.wal_bytes - before.wal_bytes) / events,
        commits_per_event=(after.commits - idle.commits) / (counted + WARM_UP_EVENTS),
    )


async def _floor(ground: Contest, backlog: Backlog) -> Drain:
    """Call the procedure from psql on two connections, for arrays of the backlog's pupils that somebody else made."""
    await ground.give_turn(RECALCD)
    await ground.fill(backlog.keys)
    await ground.connection.execute(TOUCH)
    filled = await Counters.now(ground)
    arrays = chunks(list(dict.fromkeys(backlog.keys)), BATCH_KEYS)
    scripts = [script(arrays[first::2]) for first in range(2)]
    printed = await asyncio.gather(*(ground.bench.psql(ground.database, each) for each in scripts))
    times = [datetime.fromisoformat(line) for output in printed for line in output.split("\n") if line]
    seconds = (max(times) - min(times)).total_seconds()
    after = await Counters.now(ground)
    assert await ground.stale(RECALCD) == [], "psql left reports that are not true"
    counted = _drain(RECALCD, backlog.events, seconds, done=1, counters=(filled, filled, filled, after))
    return replace(counted, calls=float(len(arrays)), recalculations=float(backlog.pupils))


def _side(shape: str, events: int, name: str) -> str:
    return f"{shape}, {events:,}, {name}"


def _figures(drains: Sequence[Drain]) -> dict[str, Series]:
    unknown = {name for name in UNITS if getattr(drains[0], name) is None}
    return columns({name: unit for name, unit in UNITS.items() if name not in unknown}, drains)


def _pace(backlog: Backlog, drains: Sequence[Drain]) -> Series:
    """Return pupils a second; one who was recalculated twice counts once."""
    return Series.of("pupils/s", (backlog.pupils * each.done / 100 / each.seconds for each in drains))


def _verdicts(
    case: Case,
    backlog: Backlog,
    outcomes: Mapping[tuple[Case, System], Outcome],
    measured: Mapping[str, Sequence[Drain]],
) -> list[Verdict]:
    """Compare with the best of each kind: that of the best median."""
    rivals = {system: each for (of, system), each in outcomes.items() if of == case and system is not RECALCD}
    mine, name = outcomes[case, RECALCD], f"{case[0]}, {case[1]:,}"
    verdicts = []
    for kind, some in (
        ("plain jobs", {system: each for system, each in rivals.items() if is_job_by_job(system)}),
        ("all", rivals),
    ):
        if some:
            best, fastest = max(some.items(), key=lambda item: item[1].events_per_s.median)
            target = TARGETS.get(case, 1) if kind == "plain jobs" else 1
            ratio = mine.events_per_s.over(fastest.events_per_s)
            verdicts.append(Verdict(f"{name}: recalcd / best of {kind}, {best.name}", ratio, ">", target))
            best, soonest = min(some.items(), key=lambda item: item[1].true_after.median)
            ratio = soonest.true_after.over(mine.true_after)
            verdicts.append(Verdict(f"{name}, until all is true: best of {kind}, {best.name} / recalcd", ratio, ">", 1))
    pace, floor = (_pace(backlog, measured[_side(*case, side)]) for side in (RECALCD.name, FLOOR))
    return [*verdicts, Verdict(f"{name}: recalcd's recalculations / {FLOOR}", pace.over(floor), ">=", FLOOR_RATIO)]
