"""Bad days: a trickle and a backlog while a forgotten transaction is open, and while Postgres restarts.

What a claim takes on such a day is `horizon`; this is what an application sees of it, with recalcd and its rivals.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count

import asyncpg

from benchmarks.bench import Bench
from benchmarks.figures import Part, Row, Series, Verdict, columns, interleaved
from benchmarks.freshness import FRESHNESS
from benchmarks.process import DaemonFailed
from benchmarks.rivals import QUEUES, available
from benchmarks.rivals.contest import Contest, contest, rest
from benchmarks.rivals.system import RECALCD, System
from benchmarks.saturation import FINISHED, SINCE, TOUCH, backlog_keys
from daemon.database import CONNECTION_ERRORS
from daemon.embedded import EmbeddedPostgres

STUDENTS = 10_000
PROCESSED, PROCESSED_BY_RIVALS = 1_000_000, 100_000
"""Events that are gone, and can't be vacuumed while the forgotten transaction is open; rivals take long to add them."""
WRITES_PER_S = 200
WARM_UP_S, SECONDS = 0.5, 3.0
"""Of writing; a restart is in the middle. What is written by sessions that are new is not measured."""
LANES = 8
EVENTS = 100_000
RESTART_AFTER_S = 0.5
"""Into a backlog."""
LIMIT_S = 5.0
"""For a backlog of a queue that works job by job; it is measured by what it has done."""
LONG_LIMIT_S = 20.0
"""For any other's."""
PATIENCE_S = 10.0
"""For the reports to become true after the last write; what is left then counts as late."""
LOOK_EVERY_S = 0.1
GLANCE_EVERY_S = 0.02
REVIVE_S = 1.0
"""Until whoever looks after the workers starts one again that has ended."""
DAYS = ("clean", "pinned", "restarted")
TARGET_RATIO = 1.5
LOST = (*CONNECTION_ERRORS, asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError)

# A score that says what it is: who does not know whether it came to pass may write it again.
WRITE = """
select school.record_feedback(w.assignment_id, w.student_id, $2::numeric, null, null)
from bench.work as w
where w.turn = $1
"""
GLANCE = "select r.average, r.is_fresh from reports.student_report($1) as r"

_turn_numbers = count(1)


@dataclass(frozen=True)
class Outcome:
    """One turn."""

    fresh_p50: float
    fresh_p99: float
    late: float
    events_per_s: float
    done: float
    bystander_p50: float
    bystander_p99: float
    bystander_max: float
    """Of the glances that were answered."""


UNITS = {
    "fresh_p50": "ms",
    "fresh_p99": "ms",
    "late": "%",
    "events_per_s": "events/s",
    "done": "% of the events",
    "bystander_p50": "ms",
    "bystander_p99": "ms",
    "bystander_max": "ms",
}


@dataclass
class Client:
    """A connection of an application, which comes back when it is lost."""

    dsn: str
    _connection: asyncpg.Connection | None = None

    async def fetch(self, query: str, *values: object) -> list[asyncpg.Record]:
        """Ask until there is an answer; what may have come to pass is asked for again."""
        while True:
            try:
                if self._connection is None or self._connection.is_closed():
                    self._connection = await asyncpg.connect(self.dsn)
                return list(await self._connection.fetch(query, *values))
            except LOST:
                await self.close()
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        """Let the connection go, in whatever state it is."""
        if self._connection:
            self._connection.terminate()
        self._connection = None


@dataclass
class Bystander:
    """Somebody who reads one report again and again, and has nothing to do with all this."""

    client: Client
    student_id: str
    glances_ms: list[float] = field(default_factory=list)
    is_counting: bool = False

    async def look_on(self) -> None:
        """Glance for ever; a glance during which the server was gone says nothing of those who share it."""
        while True:
            connection = self.client._connection
            started = time.perf_counter()
            await self.client.fetch(GLANCE, self.student_id)
            if self.is_counting and connection is self.client._connection:
                self.glances_ms.append((time.perf_counter() - started) * 1000)
            await asyncio.sleep(GLANCE_EVERY_S)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what glances take in the block: what goes before it is ours, not the contestant's."""
        self.is_counting = True
        yield
        self.is_counting = False


async def measure(bench: Bench) -> Part:
    """Give each contestant a clean day, one with a forgotten transaction, and one with a restart, in turns."""
    queues = [queue for queue in QUEUES if not queue.dedupes]
    systems = [RECALCD, *available(queues, bench.beside)]
    students = bench.scaled(STUDENTS, least=100)
    async with contest(bench, systems, students) as ground:
        pupils = await ground.connection.fetch("select w.student_id::text from bench.work as w order by w.turn")
        backlog = backlog_keys("uniform", bench.scaled(EVENTS, least=100), [row[0] for row in pupils])
        turns: dict[str, Callable[[], Awaitable[Outcome]]] = {
            _side(day, system): partial(_turn, ground, system, day, backlog)
            for day in DAYS
            for system in systems
            if day != "pinned" or not system.starts_over
        }
        measured = await interleaved("baddays", bench.rounds, turns)
    rows = {name: Row(name, columns(UNITS, outcomes)) for name, outcomes in measured.items()}
    return Part(
        name="baddays",
        question="What do a forgotten transaction and a restart of Postgres do to freshness, backlog and bystanders?",
        how=f"{WRITES_PER_S} writes/s for {SECONDS:g} s, then {bench.scaled(EVENTS):,} events at once. Pinned: a"
        f" snapshot held since before {bench.scaled(PROCESSED):,} events came and went,"
        f" {bench.scaled(PROCESSED_BY_RIVALS):,} of a rival; without AWA, whose ledger knows of no other deletion than"
        " its own. Bystander: reads one report while the writes arrive, and"
        " while the backlog is worked off.",
        rows=list(rows.values()),
        verdicts=_verdicts({day: rows[_side(day, RECALCD)] for day in DAYS}),
    )


def _side(day: str, system: System) -> str:
    return f"{day}: {system.name}"


def _verdicts(rows: dict[str, Row]) -> list[Verdict]:
    clean, pinned, restarted = (rows[day].figures for day in DAYS)
    return [
        Verdict(
            "recalcd, clean / pinned: events/s", clean["events_per_s"].over(pinned["events_per_s"]), "<=", TARGET_RATIO
        ),
        *(
            Verdict(f"recalcd, pinned / clean: {name}", pinned[name].over(clean[name]), "<=", TARGET_RATIO)
            for name in ("fresh_p50", "fresh_p99", "bystander_p50")
        ),
        Verdict("recalcd, restarted: late reports", restarted["late"], "<=", 0),
        Verdict("recalcd, restarted: done", restarted["done"], ">=", 100),
    ]


async def _turn(common: Contest, system: System, day: str, backlog: Sequence[str]) -> Outcome:
    """Write at a rate, then all at once; on a connection of this turn, since the last may have ended in a restart."""
    server = common.bench.server
    async with common.bench.connection(common.database) as connection:
        await replace(common, connection=connection).give_turn(system)
        pupil = await connection.fetchval("select w.student_id from bench.work as w where w.turn = 0")
    bystander = Bystander(Client(common.dsn), pupil)
    restarts = (WARM_UP_S + SECONDS / 2, RESTART_AFTER_S) if day == "restarted" else (None, None)
    async with (
        _pinned(common, system) if day == "pinned" else nullcontext(),
        _kept_working(system, common.dsn),
        _beside(bystander.look_on()),
    ):
        await _warm_up(common, system)
        async with _restarting(server, restarts[0]):
            with bystander.counting():
                writes = await _trickle(common)
            ages = await _ages(common, system, writes)
        xid, jobs = await _add_backlog(common, system, backlog)
        async with _restarting(server, restarts[1]):
            with bystander.counting():
                await _wait(common, system)
        watched_s = await _ask(common, SINCE, xid)
    # What was in hand when the workers were told to stop counts, and the time it took.
    done = 1 - await _ask(common, f"select count(*) {system.left}") / jobs
    finished_s = await _ask(common, FINISHED.format(report=system.report), xid)
    seconds = finished_s if finished_s > 0 else watched_s
    await bystander.client.close()
    fresh, glances = Series.of("ms", (abs(ms) for ms in ages)), Series.of("ms", bystander.glances_ms)
    late = 100 * sum(1 for ms in ages if ms < 0) / len(ages)
    return Outcome(
        fresh.median,
        fresh.percentile(99),
        late,
        len(backlog) * done / seconds,
        100 * done,
        *(glances.percentile(p) for p in (50, 99, 100)),
    )


@asynccontextmanager
async def _beside(work: Coroutine[None, None, None], *, to_its_end: bool = False) -> AsyncIterator[None]:
    """Do something else while the block runs; its failure ends the block, and the block's end ends it unless told."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(work)
        yield
        if not to_its_end:
            task.cancel()


def _restarting(server: EmbeddedPostgres, after_s: float | None) -> AbstractAsyncContextManager[None]:
    """Restart the server while the block runs, so many seconds into it; or not at all."""
    return nullcontext() if after_s is None else _beside(_restart(server, after_s), to_its_end=True)


async def _restart(server: EmbeddedPostgres, after_s: float) -> None:
    await asyncio.sleep(after_s)
    await asyncio.to_thread(server.stop)
    await asyncio.to_thread(server.start)


@asynccontextmanager
async def _kept_working(system: System, dsn: str) -> AsyncIterator[None]:
    """Run the workers while the block runs, and each again when it has ended, as systemd does."""
    over = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for _ in range(system.processes if system.worker else 0):
            group.create_task(_keep_working(replace(system, processes=1), dsn, over))
        if system.has_daemon:
            group.create_task(_keep_working(system, dsn, over))
        try:
            yield
        finally:
            over.set()


async def _keep_working(system: System, dsn: str, over: asyncio.Event) -> None:
    """Stop one in order when it is over: those who start processes of their own would leave them behind."""
    while not over.is_set():
        try:
            async with system.working(dsn) as workers:
                ends = [asyncio.ensure_future(each) for each in (over.wait(), *(w.process.wait() for w in workers))]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        except* DaemonFailed:
            await asyncio.sleep(REVIVE_S)


@asynccontextmanager
async def _pinned(common: Contest, system: System) -> AsyncIterator[None]:
    """Hold a snapshot that is older than much that came and went in a contestant's table."""
    table = system.left.split()[1]
    async with common.bench.connection(common.database) as forgotten, common.bench.connection(common.database) as busy:
        await forgotten.execute("begin isolation level repeatable read")
        await forgotten.execute("select count(*) from outbox.topic")
        processed = common.bench.scaled(PROCESSED if system is RECALCD else PROCESSED_BY_RIVALS)
        await busy.execute("drop table if exists bench.processed")
        await busy.execute(
            "create table bench.processed as select i as position, md5(i::text)::uuid::text as key"
            f" from generate_series(1, {processed // 10}) as i"
        )
        for _ in range(10):
            await busy.execute(system.enqueue_from("bench.processed"))
            await busy.execute(f"delete from {table}")
        await busy.execute(system.analyze)
        await busy.execute("checkpoint")  # or the disk would be writing it all down beside whoever is measured
        yield


async def _warm_up(common: Contest, system: System) -> None:
    """Wait until the workers have shown that they work."""
    async with common.bench.connection(common.database) as connection:
        ground = replace(common, connection=connection)
        await ground.warm_up(system)


async def _trickle(common: Contest) -> range:
    """Write to each pupil once at most, at a rate; return which writes are to be measured."""
    writes = min(int(WRITES_PER_S * (WARM_UP_S + SECONDS)), common.students - 1)
    measured = 1 + int(writes * WARM_UP_S / (WARM_UP_S + SECONDS))
    score, started = 0.1 + next(_turn_numbers) % 8000 / 10_000, time.perf_counter()

    async def lane(first: int) -> None:
        client = Client(common.dsn)
        for turn in range(first, writes + 1, LANES):
            await asyncio.sleep(max(0.0, started + turn / WRITES_PER_S - time.perf_counter()))
            await client.fetch(WRITE, turn, score)
        await client.close()

    await asyncio.gather(*(lane(first) for first in range(1, LANES + 1)))
    return range(measured, writes + 1)


async def _ages(common: Contest, system: System, writes: range) -> list[float]:
    """Wait until their reports are true, but no longer than our patience; return their ages in ms; negative: late."""
    client, deadline = Client(common.dsn), time.monotonic() + PATIENCE_S
    query = FRESHNESS.format(report=system.report)
    while True:
        rows = await client.fetch(query, writes[0], writes[-1])
        if all(row["ms"] >= 0 for row in rows) or time.monotonic() > deadline:
            await client.close()
            return [row["ms"] if row["ms"] >= 0 else -row["at_least_ms"] for row in rows]
        await asyncio.sleep(LOOK_EVERY_S)


async def _add_backlog(common: Contest, system: System, backlog: Sequence[str]) -> tuple[str, int]:
    """Add a backlog; return its transaction, and the number of jobs."""
    async with common.bench.connection(common.database) as connection:
        ground = replace(common, connection=connection)
        await ground.fill(backlog)
        async with connection.transaction():
            await connection.execute(TOUCH)
            await connection.execute(system.enqueue_all)
            await connection.execute(system.analyze)
            if system is RECALCD:
                await connection.execute("select outbox.ring('reports.student')")
            jobs = await ground.left(system)
            return str(await connection.fetchval("select pg_current_xact_id()::text")), jobs


async def _wait(common: Contest, system: System) -> None:
    """Wait until nothing is left, or our patience is gone."""
    client, query = Client(common.dsn), f"select count(*) {system.left}"
    deadline = time.monotonic() + (LIMIT_S if system in QUEUES and system.calls_each else LONG_LIMIT_S)
    while True:
        looked_at = time.monotonic()
        left = int((await client.fetch(query))[0][0])
        if not left or looked_at > deadline:
            await client.close()
            return
        await rest(looked_at, deadline, LOOK_EVERY_S)


async def _ask(common: Contest, query: str, *values: object) -> float:
    """Ask for a number."""
    client = Client(common.dsn)
    number = (await client.fetch(query, *values))[0][0]
    await client.close()
    return float(number or 0)
