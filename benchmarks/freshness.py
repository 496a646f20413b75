"""From commit to true report while writes arrive at a fixed rate, whoever keeps up or not: recalcd and its rivals."""

import asyncio
import math
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
WARM_UP_S, SECONDS = 0.5, 2.0
"""Of writing at each rate; in all that is 8,125 pupils, each once. The warm-up is not measured: pgbench's sessions are
new, and compile and plan what they run, which takes both cores from whoever works for a tenth of a second."""
CLIENTS = 16
PATIENCE_S = 3.0
"""After the last write; a report that is stale even then counts as true at that moment."""
MOST_LATE = 50
"""In percent: who is late with more at one rate is not tried at a higher one."""
IDLE = "from idle"
IDLE_WRITES = 3
"""A turn."""
IDLE_S = 1.2
"""Between two of them: until every worker sleeps."""
FLOOR = "floor"
"""What one fresh report takes at least, instead of a contestant: a NOTIFY, and a bare call once it has arrived."""
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
\\set pupil :turn * :clients + :client_id + :first
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
        turns: dict[str, Callable[[], Awaitable[dict[str, Outcome]]]] = {
            FLOOR: partial(_floor, ground),
            **{system.name: partial(_turn, ground, system) for system in systems},
        }
        tried = await interleaved("freshness", bench.rounds, turns)
    measured = _by_pace(tried)
    return Part(
        name="freshness",
        question="How old is a report while writes arrive regardless of progress, and how soon is it true from idle?",
        how=f"pgbench writes for {SECONDS:g} s at each rate, {WARM_UP_S:g} s after it began to, each to a pupil of its"
        " own, so nothing coalesces. From the write's commit to the commit that made the report true; after"
        f" {PATIENCE_S:g} s more it counts as true."
        f" From idle first, then at one rate after the other, with what is not done yet, and no higher once more than"
        f" {MOST_LATE} % were late.",
        rows=[_row(name, outcomes) for name, outcomes in measured.items()],
        verdicts=_verdicts(measured, systems),
    )


async def _turn(ground: Contest, system: System) -> dict[str, Outcome]:
    """Measure a contestant from idle, then at rising rates while it keeps up; each pupil is written once at most."""
    await ground.give_turn(system)
    outcomes: dict[str, Outcome] = {}
    async with ground.working(system):
        outcomes[IDLE] = await _one_by_one(ground, system)
        first = 1 + IDLE_WRITES  # pupil 0 is who the contestants warm up with
        for rate in WRITES_PER_S:
            pupils = (ground.students - first) * 3 // 4  # of a small school; others have enough
            writes = min(int(rate * (WARM_UP_S + SECONDS)), pupils)
            outcomes[_at(rate)] = outcome = await _open_loop(ground, system, rate, range(first, first + writes))
            if outcome.late > MOST_LATE:
                break
            first += writes
    return outcomes


def _by_pace(tried: Mapping[str, Sequence[Mapping[str, Outcome]]]) -> dict[str, list[Outcome]]:
    """Sort by rate, then by contestant; leave out what nobody tried."""
    measured = {
        _side(pace, name): [each[pace] for each in rounds if pace in each]
        for pace in (*map(_at, WRITES_PER_S), IDLE)
        for name, rounds in tried.items()
    }
    return {name: outcomes for name, outcomes in measured.items() if outcomes}


async def _open_loop(ground: Contest, system: System, rate: int, pupils: range) -> Outcome:
    clients = min(CLIENTS, len(pupils))
    each = len(pupils) // clients
    warm_up = int(each * WARM_UP_S / (WARM_UP_S + SECONDS))
    load = Load(SCRIPT, {"turn": -1, "clients": clients, "first": pupils.start}, clients)
    written = await load.at_rate(ground.dsn, rate, each=each)
    return await _outcome(ground, system, pupils[warm_up * clients : each * clients], written)


async def _one_by_one(ground: Contest, system: System) -> Outcome:
    """Write, wait until it is true, wait until all sleep; again."""
    turns = range(1, 1 + IDLE_WRITES)
    for turn in turns:
        if system is RECALCD:
            await asleep(ground.connection)
        await asyncio.sleep(IDLE_S)
        await ground.connection.execute(WRITE.format(turn="$1"), turn)
        await _patiently(ground, system, range(turn, turn + 1))
    return await _outcome(ground, system, turns, 0)


async def _patiently(ground: Contest, system: System, turns: range) -> list[tuple[float, float]]:
    """Wait until the reports of these turns are true, but no longer than our patience; return their ages."""
    query, deadline = FRESHNESS.format(report=system.report), time.monotonic() + PATIENCE_S
    while True:
        rows = [(row["ms"], row["at_least_ms"]) for row in await ground.connection.fetch(query, turns[0], turns[-1])]
        if all(ms >= 0 for ms, _ in rows) or time.monotonic() > deadline:
            return rows
        await asyncio.sleep(0.25 if len(turns) > 1 else 0.005)


async def _outcome(ground: Contest, system: System, turns: range, written: float) -> Outcome:
    rows = await _patiently(ground, system, turns)
    assert len(rows) == len(turns), "a write is missing"
    late = sum(1 for ms, _ in rows if ms < 0)
    ages = Series.of("ms", (ms if ms >= 0 else at_least for ms, at_least in rows))
    return Outcome(ages, 100 * late / len(turns), written)


async def _floor(ground: Contest) -> dict[str, Outcome]:
    """Measure the floor, so many times as a contestant is measured from idle."""
    await ground.give_turn(RECALCD)
    ages = [await _floor_ms(ground, turn) for turn in range(1, 1 + IDLE_WRITES)]
    return {IDLE: Outcome(Series.of("ms", ages), 0.0, 0.0)}


async def _floor_ms(ground: Contest, turn: int) -> float:
    async with ground.bench.connection(ground.database) as listening:
        arrived = asyncio.Event()
        await listening.add_listener("bench", lambda *_: arrived.set())
        key = await ground.connection.fetchval("select w.student_id::text from bench.work as w where w.turn = $1", turn)
        await listening.fetchval(CALL, [key])  # prepared, compiled and planned, as by a worker at rest
        await asyncio.sleep(IDLE_S)
        await ground.connection.execute(UNNOTICED, turn)
        await arrived.wait()
        await listening.fetchval(CALL, [key])
        return float(await ground.connection.fetchval(FRESHNESS.format(report=RECALCD.report), turn, turn))


CALL = "call reports.recalculate_students($1::text[], null)"
UNNOTICED = """
with written as (
    update school.feedback as f
    set score = case when f.score = 0.5 then 0.6 else 0.5 end
    from bench.work as w
    where w.turn = $1 and f.assignment_id = w.assignment_id and f.student_id = w.student_id
    returning f.student_id
)
select pg_notify('bench', '') from written
"""


def _at(rate: int) -> str:
    return f"{rate:,}/s"


def _side(pace: str, name: str) -> str:
    return f"{pace}, {name}"


def _percentiles(outcomes: Sequence[Outcome], percent: float) -> Series:
    return Series.of("ms", (each.freshness.percentile(percent) for each in outcomes))


def _row(name: str, outcomes: Sequence[Outcome]) -> Row:
    figures = {f"p{percent}": _percentiles(outcomes, percent) for percent in (50, 95, 99)}
    figures["max"] = _percentiles(outcomes, 100)
    figures["late"] = Series.of("%", (each.late for each in outcomes))
    figures["written"] = Series.of("writes/s", (each.writes_per_s for each in outcomes))
    figures["tried"] = Series.of("rounds", [len(outcomes)])
    return Row(name, figures)


def _verdicts(measured: Mapping[str, Sequence[Outcome]], systems: Sequence[System]) -> list[Verdict]:
    verdicts = []
    rivals = [system.name for system in systems if system not in (RECALCD, plain.IN_THE_TRANSACTION)]
    mine = measured[_side(_at(200), RECALCD.name)]
    others = {name: measured.get(_side(_at(200), name), []) for name in rivals}
    kept_up = {name: outcomes for name, outcomes in others.items() if len(outcomes) == len(mine)}
    for percent in (50, 99) if kept_up else ():
        theirs = {name: _percentiles(outcomes, percent) for name, outcomes in kept_up.items()}
        best, figures = min(theirs.items(), key=lambda item: item[1].median)
        ratio = _percentiles(mine, percent).over(figures)
        verdicts.append(Verdict(f"200/s, p{percent}: recalcd / {best}", ratio, "<", 1))
    tried = measured.get(_side(_at(1_000), RECALCD.name), [])
    p99 = _percentiles(tried, 99) if len(tried) == len(mine) else Series.of("ms", [math.inf])
    verdicts.append(Verdict("1,000/s, p99: recalcd", p99, "<", MOST_P99_MS))
    from_idle, floor = (_percentiles(measured[_side(IDLE, name)], 50) for name in (RECALCD.name, FLOOR))
    verdicts.append(Verdict("from idle: recalcd / floor", from_idle.over(floor), "<=", NEAR_FLOOR))
    return verdicts
