"""From idle to fresh: one write, and how long until its report is true."""

import asyncio
import random
import time
from dataclasses import asdict, dataclass, fields

import asyncpg
from asyncpg.connection import LoggedQuery
from rich.progress import track

from benchmarks.bench import Bench, asleep, load_school
from benchmarks.figures import Part, Row, Series, Verdict
from benchmarks.process import daemon
from daemon.batch import Recalculation
from daemon.one_statement import OneStatement
from daemon.sql import statement

MAKE_PARTITIONS = statement("make_partitions")
STUDENTS = 2_000
SAMPLES = 20
"""A round."""
TARGET_RATIO = 2
Work = tuple[str, str]
"""An assignment and a pupil."""

STEPS = ("batch", "tidying")

# Any score but the one that is there.
RECORD = """
select pg_current_xact_id()::text as xid,
       school.record_feedback($1, $2, case when f.score = 0.5 then 0.6 else 0.5 end, f.comment, f.given_by)
from school.feedback as f
where f.assignment_id = $1 and f.student_id = $2
"""

# The same change without an event: leaves the cache as stale as a write does.
TOUCH = """
update school.feedback as f set score = case when f.score = 0.5 then 0.6 else 0.5 end
where f.assignment_id = $1 and f.student_id = $2
"""

COMMITTED = """
select extract(epoch from b.committed_at - pg_xact_commit_timestamp($1::text::xid))::float8 * 1000 as ms
from (
    select pg_xact_commit_timestamp(b.xmin) as committed_at
    from outbox.batch as b
    where b.topic = 'reports.student' and b.keys @> array[$2::text]
    order by b.started_at desc
    limit 1
) as b
"""


@dataclass(frozen=True)
class Sample:
    """Milliseconds of one turn: a write that the daemon sees to, and right after it what that takes at least."""

    committed: float
    """Commit of the write to commit of the recalculation, by the server's clock."""
    noticed: float
    """Answer to the writer to notification at a reader, by the client's clock."""
    procedure: float
    """Bare call for one stale pupil."""
    notify: float
    """Bare NOTIFY, from sending it to its arrival on another connection."""
    batch: float
    """Claim, recalculation, settling and commit, in one round trip."""
    tidying: float
    """Of the session, behind the commit."""


@dataclass
class Reader:
    """A connection that listens, and notes when a notification came."""

    connection: asyncpg.Connection
    arrivals: "asyncio.Queue[float]"

    @classmethod
    async def on(cls, connection: asyncpg.Connection, channel: str) -> "Reader":
        """Start to listen."""
        arrivals: asyncio.Queue[float] = asyncio.Queue()
        await connection.add_listener(channel, lambda *_: arrivals.put_nowait(time.perf_counter()))
        return cls(connection, arrivals)


@dataclass(frozen=True)
class Turn:
    """What a sample needs: the school that a daemon serves, its twin that none does, and who listens."""

    served: asyncpg.Connection
    alone: asyncpg.Connection
    fresh: Reader
    bare: Reader
    by_hand: OneStatement

    async def sample(self, served_work: Work, bare_work: Work, step_work: Work) -> Sample:
        """Take one sample; each kind of work on a pupil of its own."""
        await asleep(self.served)
        committed, noticed = await self._write(*served_work)
        procedure = await self._call_procedure(*bare_work)
        notify = await self._notify()
        return Sample(committed, noticed, procedure, notify, **await self._step(*step_work))

    async def _write(self, assignment_id: str, student_id: str) -> tuple[float, float]:
        xid = await self.served.fetchval(RECORD, assignment_id, student_id)
        answered = time.perf_counter()
        noticed = await self.fresh.arrivals.get() - answered
        return await self.served.fetchval(COMMITTED, xid, str(student_id)), noticed * 1000

    async def _call_procedure(self, assignment_id: str, student_id: str) -> float:
        await self.alone.execute(TOUCH, assignment_id, student_id)
        started = time.perf_counter()
        changed = await self.alone.fetchval("call reports.recalculate_students($1::text[], null)", [str(student_id)])
        elapsed = time.perf_counter() - started
        assert len(changed) == 1, "the call had nothing to do"
        return elapsed * 1000

    async def _notify(self) -> float:
        started = time.perf_counter()
        await self.alone.execute("select pg_notify('bench', '')")
        return (await self.bare.arrivals.get() - started) * 1000

    async def _step(self, assignment_id: str, student_id: str) -> dict[str, float]:
        """Run the daemon's batch by hand, and time each of its round trips."""
        await self.alone.fetchval(RECORD, assignment_id, student_id)
        elapsed: list[float] = []

        def note(query: LoggedQuery) -> None:
            elapsed.append(query.elapsed * 1000)

        with self.alone.query_logger(note):
            batch = await self.by_hand.next_batch({}, after="", retries_first=False)
            await asyncio.sleep(0)  # asyncpg tells the logger a turn of the loop later
        assert batch is not None
        return dict(
            zip(STEPS, elapsed[-len(STEPS) :], strict=True)
        )  # the first batch asks for the topic's limit before


async def measure(bench: Bench) -> Part:
    """Write, wait, and measure the floor, in turns."""
    async with bench.database() as database:
        async with bench.connection(database) as connection:
            await load_school(connection, bench.scaled(STUDENTS, least=100))
            await connection.fetch(MAKE_PARTITIONS, 1)  # for the twin, which no daemon keeps
        async with bench.database(database) as twin:
            samples = await _samples(bench, database, twin)
    series = {each.name: Series.of("ms", (getattr(one, each.name) for one in samples)) for each in fields(Sample)}
    floor = Series.of("ms", (one.procedure + one.notify for one in samples))
    steps = Series.of("ms", (sum(asdict(one)[step] for step in STEPS) for one in samples))
    return Part(
        name="latency",
        question="How long from one write, with the daemon asleep, to a true report?",
        how="Floor: a bare call of the procedure for one stale pupil, plus a bare NOTIFY round trip; all in turns.",
        rows=[
            Row("write to fresh", {name: series[name] for name in ("committed", "noticed")}),
            Row("floor", {"floor": floor, "procedure": series["procedure"], "notify": series["notify"]}),
            Row("round trips of a batch", {"all": steps} | {name: series[name] for name in STEPS}),
        ],
        verdicts=[
            Verdict("commit to commit / floor", series["committed"].over(floor), "<=", TARGET_RATIO),
            Verdict("answer to notification / floor", series["noticed"].over(floor), "<=", TARGET_RATIO),
        ],
    )


async def _samples(bench: Bench, database: str, twin: str) -> list[Sample]:
    async with (
        bench.connection(database) as served,
        bench.connection(twin) as alone,
        bench.connection(database) as reading,
        bench.connection(twin) as listening,
        daemon(bench.server.dsn(database)),
    ):
        by_hand = OneStatement(Recalculation(daemon_id=None, kind="live", keep_history=True), alone)
        readers = await Reader.on(reading, "recalculated"), await Reader.on(listening, "bench")
        turn = Turn(served, alone, *readers, by_hand)
        works = await served.fetch(
            "select f.assignment_id, f.student_id from school.feedback as f order by f.score, 1, 2"
        )
        draw = random.Random(1)
        warm_up, count = 10, SAMPLES * bench.rounds
        turns = track(range(warm_up + count), description="latency   ", transient=True)
        samples = [await turn.sample(*(tuple(row) for row in draw.sample(works, 3))) for _ in turns]
        return samples[warm_up:]
