"""What freshness costs under a trickle of writes: the pause between two looks, against the processor time it takes."""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import asyncpg

from benchmarks.bench import Bench, asleep, drained, forget_history, load_school
from benchmarks.figures import Part, Row, Series, interleaved
from benchmarks.latency import RECORD
from benchmarks.process import Daemon, cpu_s, daemon

STUDENTS = 2_000
WRITES_PER_S = (50, 200)
SECONDS = 6.0
WRITERS = 4
SIDES: dict[str, dict[str, object]] = {
    "bell muted for a crowd, then a look every 20 ms": {"linger_poll_s": 0.02},
    "every 10 ms": {"linger_poll_s": 0.01},
    "every 5 ms": {"linger_poll_s": 0.005},
    "bell never muted": {"wake": "always"},
}

# Each pupil is written once a turn, so the batch that made it fresh is the first that has its key.
FRESHNESS = """
select extract(epoch from min(pg_xact_commit_timestamp(b.xmin) - pg_xact_commit_timestamp(w.xid::xid)))::float8 * 1000
           as ms
from unnest($1::text[], $2::text[]) as w (xid, key)
join (select b.xmin, unnest(b.keys) as key from outbox.batch as b) as b on b.key = w.key
group by w.key
"""

BACKENDS = "select a.pid from pg_stat_activity as a where a.application_name in ('recalcd worker', 'recalcd listener')"


@dataclass
class Trickle:
    """Writes at a fixed rate, whether or not the daemon keeps up."""

    connections: Sequence[asyncpg.Connection]
    works: Sequence[tuple[str, str]]
    per_s: int
    written: list[tuple[str, str]] = field(default_factory=list)

    async def run(self) -> None:
        """Deal the writes out to the connections."""
        started = time.perf_counter()
        step = len(self.connections)
        lanes = (
            self._lane(connection, started, range(lane, len(self.works), step))
            for lane, connection in enumerate(self.connections)
        )
        await asyncio.gather(*lanes)

    async def _lane(self, connection: asyncpg.Connection, started: float, turns: range) -> None:
        for turn in turns:
            await asyncio.sleep(max(0.0, started + turn / self.per_s - time.perf_counter()))
            assignment_id, student_id = self.works[turn]
            xid = await connection.fetchval(RECORD, assignment_id, student_id)
            self.written.append((xid, str(student_id)))


@dataclass(frozen=True)
class Outcome:
    """One turn: the freshness of every write, and the share of a core that each process took."""

    freshness_ms: tuple[float, ...]
    daemon_cpu: float
    backends_cpu: float
    batches: int


async def measure(bench: Bench) -> Part:
    """Write at fixed rates while the daemon looks more or less often, in turns."""
    async with bench.database() as database, bench.connection(database) as connection:
        await load_school(connection, bench.scaled(STUDENTS, least=100))
        sides = {
            f"{rate}/s, {name}": partial(_turn, bench, database, connection, rate, settings)
            for rate in WRITES_PER_S
            for name, settings in SIDES.items()
        }
        measured = await interleaved("wake", bench.rounds, sides)
    return Part(
        name="wake",
        question="What does looking more often buy in freshness, and cost in processor time?",
        how=f"Writes at a fixed rate for {SECONDS:g} s a turn; freshness from commit to commit.",
        rows=[_row(name, outcomes) for name, outcomes in measured.items()],
    )


def _row(name: str, outcomes: Sequence[Outcome]) -> Row:
    return Row(
        name,
        {
            "freshness": Series.of("ms", (ms for each in outcomes for ms in each.freshness_ms)),
            "freshness p99": Series.of("ms", (Series.of("ms", each.freshness_ms).percentile(99) for each in outcomes)),
            "daemon": Series.of("% of a core", (each.daemon_cpu for each in outcomes)),
            "its backends": Series.of("% of a core", (each.backends_cpu for each in outcomes)),
            "batches": Series.of("", (each.batches for each in outcomes)),
        },
    )


async def _turn(
    bench: Bench, database: str, connection: asyncpg.Connection, rate: int, settings: dict[str, object]
) -> Outcome:
    await forget_history(connection)
    works = await connection.fetch(
        "select distinct on (f.student_id) f.assignment_id, f.student_id from school.feedback as f order by 2, 1"
    )
    chosen = random.Random(rate).sample(works, min(len(works), int(rate * SECONDS)))
    async with daemon(bench.server.dsn(database), settings) as running:
        await asleep(connection)
        connections = [await asyncpg.connect(bench.server.dsn(database)) for _ in range(WRITERS)]
        trickle = Trickle(connections, [(row[0], row[1]) for row in chosen], rate)
        before, started = await _processor_s(running, connection), time.perf_counter()
        await trickle.run()
        elapsed, after = time.perf_counter() - started, await _processor_s(running, connection)
        await drained(connection)
        for each in connections:
            await each.close()
    xids, keys = zip(*trickle.written, strict=True)
    freshness = await connection.fetch(FRESHNESS, list(xids), list(keys))
    assert len(freshness) == len(chosen), "a write has no batch"
    daemon_cpu, backends_cpu = (100 * (late - early) / elapsed for early, late in zip(before, after, strict=True))
    batches = await connection.fetchval("select count(*) from outbox.batch")
    return Outcome(tuple(row["ms"] for row in freshness), daemon_cpu, backends_cpu, batches)


async def _processor_s(running: Daemon, connection: asyncpg.Connection) -> tuple[float, float]:
    """Return the processor time so far, of the daemon and of its backends."""
    pids = await connection.fetch(BACKENDS)
    return cpu_s(running.pid), sum(cpu_s(row["pid"]) for row in pids)
