"""From commit to true report while writes arrive at a fixed rate, whoever keeps up or not: recalcd and its rivals."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.bench import Bench, asleep
from benchmarks.figures import Part, Row, Series, Verdict, interleaved
from benchmarks.pgbench import Load
from benchmarks.rivals import QUEUES, available, plain
from benchmarks.rivals.contest import WRITE, Contest, contest
from benchmarks.rivals.system import RECALCD, System

STUDENTS = 10_000
WRITES_PER_S = (50, 200, 1_000, 2_000)
DECIDING, BEYOND = WRITES_PER_S[-2:]
SECONDS = 3.0
"""Of writing, a turn; at the highest rate that is 6,000 pupils, each once."""
CLIENTS = 16
PATIENCE_S = 3.0
"""After the last write; a report that is stale even then counts as true at that moment."""
MOST_LATE = 50
"""In percent: who is late with more at DECIDING in the first round is not tried BEYOND."""
IDLE_WRITES = 4
"""A turn."""
IDLE_S = 1.2
"""Between two of them: until every worker sleeps."""
MOST_P99_MS = 100
NEAR_FLOOR = 2

# Each pupil is written at most once a turn. So the rows say all, by the server's clock: the feedback's xmin is the
# write, and the youngest xmin among the rows of the pupil's report is the transaction that made it true.
FRESHNESS = """
select extract(epoch from r.true_at - w.written_at)::float8 * 1000 as ms,
       extract(epoch from clock_timestamp() - w.written_at)::float8 * 1000 as at_least_ms
from (
    select w.student_id, pg_xact_commit_timestamp(f.xmin) as written_at
    from bench.work as w
    join school.feedback as f on f.assignment_id = w.assignment_id and f.student_id = w.student_id
    where w.turn between $1 and $2
) as w
cross join lateral (
    select max(pg_xact_commit_timestamp(r.xmin)) as true_at from {report} as r where r.student_id = w.student_id
) as r
"""


# The pupils are dealt to the clients like cards.
SCRIPT = f"""
\\set turn :turn + 1
\\set pupil :turn * :clients + :client_id + 1
{WRITE.format(turn=":pupil")};
"""


@dataclass(frozen=True)
class Outcome:
    """Of one turn."""

    freshness: Series
    late: float
    """Share of the reports, in percent, that were not true when our patience ended."""
    writes_per_s: float
    """As the writers got them in: below the rate that was asked for, they are what could not keep up."""


async def measure(bench: Bench) -> Part:
    """Write at each rate while each contestant works, in turns; then one write at a time."""
    queues = [queue for queue in QUEUES if not queue.dedupes]  # each pupil is written once
    rivals = (*queues, plain.IN_THE_TRANSACTION, plain.MATERIALIZED_VIEW, plain.RECOMPUTE_ALL)
    systems = [RECALCD, *available(rivals, bench.beside)]
    students = bench.scaled(STUDENTS, least=100)
    async with contest(bench, systems, students) as ground:
        turns: dict[str, Callable[[], Awaitable[Outcome | None]]] = {}
        is_late: dict[str, bool] = {}
        for rate in WRITES_PER_S:
            for system in systems:
                turns[_side(rate, system)] = partial(_within_reach, ground, system, rate, is_late)
        for system in systems:
            turns[_idle(system)] = partial(_one_by_one, ground, system)
        tried = await interleaved("freshness", bench.rounds, turns)
        measured = {name: [each for each in outcomes if each] for name, outcomes in tried.items() if any(outcomes)}
        floor = Series.of("ms", [await _floor_ms(ground, turn) for turn in range(2, 22)])
    return Part(
        name="freshness",
        question="How old is a report while writes arrive regardless of progress, and how soon is it true from idle?",
        how=f"pgbench writes for {SECONDS:g} s, each to a pupil of its own, so nothing coalesces. From the write's"
        f" commit to the commit that made the report true; after {PATIENCE_S:g} s more it counts as true. Not tried at"
        f" {BEYOND:,}/s: who had more than {MOST_LATE} % late at {DECIDING:,}/s.",
        rows=[*(_row(name, outcomes) for name, outcomes in measured.items()), Row("floor", {"floor": floor})],
        verdicts=_verdicts(measured, systems, floor),
    )


async def _within_reach(ground: Contest, system: System, rate: int, is_late: dict[str, bool]) -> Outcome | None:
    """Measure a contestant at a rate, unless its reports were late at a lower one already."""
    if rate == BEYOND and is_late.get(system.name):
        return None
    outcome = await _open_loop(ground, system, rate)
    if rate == DECIDING:
        is_late.setdefault(system.name, outcome.late > MOST_LATE)
    return outcome


async def _open_loop(ground: Contest, system: System, rate: int) -> Outcome:
    await ground.give_turn(system)
    writes = min(int(rate * SECONDS), ground.students - 1)  # the first pupil is who the contestants warm up with
    clients = min(CLIENTS, writes)
    load = Load(SCRIPT, {"turn": -1, "clients": clients}, clients)
    async with ground.working(system):
        written = await load.at_rate(ground.dsn, rate, each=writes // clients)
        return await _outcome(ground, system, writes // clients * clients, written)


async def _one_by_one(ground: Contest, system: System) -> Outcome:
    """Write, wait until it is true, wait until all sleep; again."""
    await ground.give_turn(system)
    async with ground.working(system):
        for turn in range(1, IDLE_WRITES + 1):
            if system is RECALCD:
                await asleep(ground.connection)
            await asyncio.sleep(IDLE_S)
            await ground.connection.execute(WRITE.format(turn="$1"), turn)
            await _patiently(ground, system, turn, turn)
        return await _outcome(ground, system, IDLE_WRITES, 0)


async def _patiently(ground: Contest, system: System, first: int, last: int) -> list[tuple[float, float]]:
    """Wait until the reports of these turns are true, but no longer than our patience; return their ages."""
    query, deadline = FRESHNESS.format(report=system.report), time.monotonic() + PATIENCE_S
    while True:
        rows = [(row["ms"], row["at_least_ms"]) for row in await ground.connection.fetch(query, first, last)]
        if all(ms >= 0 for ms, _ in rows) or time.monotonic() > deadline:
            return rows
        await asyncio.sleep(0.25 if last > first else 0.005)


async def _outcome(ground: Contest, system: System, writes: int, written: float) -> Outcome:
    rows = await _patiently(ground, system, 1, writes)
    assert len(rows) == writes, "a write is missing"
    late = sum(1 for ms, _ in rows if ms < 0)
    ages = Series.of("ms", (ms if ms >= 0 else at_least for ms, at_least in rows))
    return Outcome(ages, 100 * late / writes, written)


async def _floor_ms(ground: Contest, turn: int) -> float:
    """Return what one fresh report takes at least: a NOTIFY's round trip and a bare call for one stale pupil."""
    async with ground.bench.connection(ground.database) as listening:
        arrived = asyncio.Event()
        await listening.add_listener("bench", lambda *_: arrived.set())
        await ground.connection.execute(UNNOTICED, turn)
        key = await ground.connection.fetchval("select w.student_id::text from bench.work as w where w.turn = $1", turn)
        started = time.perf_counter()
        await ground.connection.execute("select pg_notify('bench', '')")
        await arrived.wait()
        await ground.connection.fetchval("call reports.recalculate_students($1::text[], null)", [key])
        return (time.perf_counter() - started) * 1000


UNNOTICED = """
update school.feedback as f
set score = case when f.score = 0.5 then 0.6 else 0.5 end
from bench.work as w
where w.turn = $1 and f.assignment_id = w.assignment_id and f.student_id = w.student_id
"""


def _side(rate: int, system: System) -> str:
    return f"{rate:,}/s, {system.name}"


def _idle(system: System) -> str:
    return f"from idle, {system.name}"


def _percentiles(outcomes: Sequence[Outcome], percent: float) -> Series:
    return Series.of("ms", (each.freshness.percentile(percent) for each in outcomes))


def _row(name: str, outcomes: Sequence[Outcome]) -> Row:
    figures = {f"p{percent}": _percentiles(outcomes, percent) for percent in (50, 95, 99)}
    figures["max"] = _percentiles(outcomes, 100)
    figures["late"] = Series.of("%", (each.late for each in outcomes))
    figures["written"] = Series.of("writes/s", (each.writes_per_s for each in outcomes))
    return Row(name, figures)


def _verdicts(measured: Mapping[str, Sequence[Outcome]], systems: Sequence[System], floor: Series) -> list[Verdict]:
    verdicts = []
    rivals = [system for system in systems if system not in (RECALCD, plain.IN_THE_TRANSACTION)]
    for percent in (50, 99):
        mine = _percentiles(measured[_side(200, RECALCD)], percent)
        theirs = {system.name: _percentiles(measured[_side(200, system)], percent) for system in rivals}
        if theirs:
            best, figures = min(theirs.items(), key=lambda item: item[1].median)
            verdicts.append(Verdict(f"200/s, p{percent}: recalcd / {best}", mine.over(figures), "<", 1))
    p99 = _percentiles(measured[_side(1_000, RECALCD)], 99)
    verdicts.append(Verdict("1,000/s, p99: recalcd", p99, "<", MOST_P99_MS))
    idle = Series.of("x", (ms / floor.median for each in measured[_idle(RECALCD)] for ms in each.freshness.values))
    verdicts.append(Verdict("from idle: recalcd / floor", idle, "<=", NEAR_FLOOR))
    return verdicts
