"""What bends when something grows: freshness and cost against pupils, pending events, feedback, daemons and topics."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import asyncpg

from benchmarks.bench import (
    SCHOOL_TABLES,
    Bench,
    asleep,
    drained,
    forget_history,
    listening,
    load_school,
    settle_down,
)
from benchmarks.engine import TOPIC, UNITS, Engine
from benchmarks.figures import Part, Row, Series, columns, interleaved
from benchmarks.horizon import fresh_ms
from benchmarks.latency import RECORD
from benchmarks.process import daemon

STUDENTS = (1_000, 10_000, 100_000, 1_000_000)
FEW_PIECES = 10
"""Of feedback, for a pupil of a growing school."""
PENDING = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
PIECES = (10, 100, 1_000, 10_000)
COURSE = 100
"""Pupils, while their feedback grows."""
DAEMONS = (1, 2, 3, 4)
SCHOOL = 10_000
"""Pupils, while the daemons grow in number."""
TOPICS = (1, 10, 100)
SPREAD_EVENTS, SPREAD_KEYS = 200_000, 10_000
"""Of all topics together."""
IDLE_WRITES = 9
"""A turn; more than meet a session that has not planned yet what it runs."""
DIRTY = 5_000
"""Most pupils whose reports a turn makes stale at once."""

# The pupils in no order that any table has.
WORK = """
select f.assignment_id, s.student_id
from (select p.student_id from school.student as p order by md5(p.student_id::text) limit $1::integer) as s
cross join lateral (
    select o.assignment_id from school.feedback as o where o.student_id = s.student_id order by 1 limit 1
) as f
"""

TOUCH = """
with touched as (
    update school.feedback as f
    set score = case when f.score = 0.5 then 0.6 else 0.5 end
    from unnest($1::uuid[], $2::uuid[]) as w (assignment_id, student_id)
    where f.assignment_id = w.assignment_id and f.student_id = w.student_id
    returning f.student_id
), enqueued as (
    insert into outbox.event (topic, key, reason)
    select 'reports.student', t.student_id::text, 'bench' from touched as t
)
select pg_current_xact_id()::text, outbox.ring('reports.student')
"""

DONE = """
select extract(epoch from max(pg_xact_commit_timestamp(b.xmin)) - pg_xact_commit_timestamp($1::text::xid))::float8
           as seconds,
       sum(b.recalculate_ms)::float8 as procedure_ms, count(*) as batches,
       -- outbox.claim may have one done twice.
       (
           select count(distinct k.key)
           from outbox.batch as d cross join unnest(d.keys) as k (key)
           where d.started_at > $2
       ) as pupils
from outbox.batch as b
where b.started_at > $2
"""


@dataclass(frozen=True)
class Outcome:
    """One turn in a school."""

    idle_to_fresh: float
    """From idle, commit to commit; the median of the turn's writes."""
    pupils_per_s: float
    """Of many stale pupils at once."""
    procedure_ms: float
    """Of each of them; the calls of several workers overlap."""
    batches: int


SCHOOL_UNITS = {"idle_to_fresh": "ms", "pupils_per_s": "pupils/s", "procedure_ms": "ms/pupil", "batches": ""}


@dataclass(frozen=True)
class Place:
    """A school, and the work of pupils drawn from it."""

    bench: Bench
    database: str
    connection: asyncpg.Connection
    works: Sequence[tuple[str, str]]

    async def turn(self, daemons: int = 1) -> Outcome:
        """Make many reports stale at once; then, when the workers have planned what they run, write one by one."""
        await forget_history(self.connection)
        await settle_down(self.connection, *SCHOOL_TABLES)
        async with AsyncExitStack() as stack:
            for _ in range(daemons):
                await stack.enter_async_context(daemon(self.bench.server.dsn(self.database)))
            await listening(self.connection, daemons)
            works = self.works[IDLE_WRITES:]
            row = await self._burst(works)
            fresh = Series.of("ms", [await self._write(*work) for work in self.works[:IDLE_WRITES]])
        assert row["pupils"] == len(works), "a pupil was left out"
        return Outcome(
            fresh.median, row["pupils"] / row["seconds"], row["procedure_ms"] / row["pupils"], row["batches"]
        )

    async def _write(self, assignment_id: str, student_id: str) -> float:
        await asleep(self.connection)
        xid = await self.connection.fetchval(RECORD, assignment_id, student_id)
        return await fresh_ms(self.connection, xid, str(student_id))

    async def _burst(self, works: Sequence[tuple[str, str]]) -> asyncpg.Record:
        await asleep(self.connection)
        since = await self.connection.fetchval("select clock_timestamp()")
        assignments, students = zip(*works, strict=True)
        xid = await self.connection.fetchval(TOUCH, assignments, students)
        await drained(self.connection)
        await asleep(self.connection)
        row = await self.connection.fetchrow(DONE, xid, since)
        assert row is not None
        return row


@asynccontextmanager
async def _place(bench: Bench, students: int, each: int) -> AsyncIterator[Place]:
    async with bench.database() as database, bench.connection(database) as connection:
        await load_school(connection, students, each)
        works = await connection.fetch(WORK, bench.scaled(DIRTY, least=IDLE_WRITES) + IDLE_WRITES)
        yield Place(bench, database, connection, [(row[0], row[1]) for row in works])


async def measure_pupils(bench: Bench) -> Part:
    """Compare schools of more and more pupils."""
    sizes = {size: (size, FEW_PIECES) for size in _scaled(bench, STUDENTS, least=100)}
    return await _schools(bench, "growth-pupils", "pupils", sizes, f"{FEW_PIECES} pieces of feedback a pupil.")


async def measure_feedback(bench: Bench) -> Part:
    """Compare pupils of more and more feedback."""
    students = bench.scaled(COURSE, least=2 * IDLE_WRITES)
    sizes = {pieces: (students, pieces) for pieces in _scaled(bench, PIECES, least=5)}
    return await _schools(bench, "growth-feedback", "pieces of feedback a pupil", sizes, f"{students} pupils.")


async def _schools(bench: Bench, name: str, axis: str, sizes: Mapping[int, tuple[int, int]], how: str) -> Part:
    async with AsyncExitStack() as stack:
        places = {size: await stack.enter_async_context(_place(bench, *shape)) for size, shape in sizes.items()}
        turns = {f"{size:,}": place.turn for size, place in places.items()}
        measured = await interleaved(name, bench.rounds, turns)
    return _part(name, axis, how, SCHOOL_UNITS, measured)


async def measure_daemons(bench: Bench) -> Part:
    """Let more and more daemons, of two workers each, share one school."""
    async with _place(bench, bench.scaled(SCHOOL, least=100), 40) as place:
        turns = {f"{daemons:,}": partial(place.turn, daemons) for daemons in DAEMONS}
        measured = await interleaved("growth-daemons", bench.rounds, turns)
    dirty = len(place.works) - IDLE_WRITES
    how = f"{dirty:,} pupils at once; 2 workers each, so what they share is this machine's cores."
    return _part("growth-daemons", "daemons", how, SCHOOL_UNITS, measured)


async def measure_pending(bench: Bench) -> Part:
    """Let more and more events of the same keys be pending."""
    keys = bench.scaled(SPREAD_KEYS)

    def turn(engine: Engine, events: int) -> Callable[[], Awaitable[object]]:
        return partial(engine.drain, {TOPIC: events}, keys=keys, workers=2)

    measured = await _engine_turns(bench, "growth-pending", _scaled(bench, PENDING, least=100), turn)
    how = f"{keys:,} keys at most, a procedure that does nothing, 2 workers."
    return _part("growth-pending", "pending events", how, UNITS, measured)


async def measure_topics(bench: Bench) -> Part:
    """Spread the same events over more and more topics."""
    events, keys = bench.scaled(SPREAD_EVENTS, least=1_000), bench.scaled(SPREAD_KEYS, least=100)

    def turn(engine: Engine, topics: int) -> Callable[[], Awaitable[object]]:
        return partial(_topics_turn, engine, topics, events // topics, keys // topics)

    measured = await _engine_turns(bench, "growth-topics", TOPICS, turn)
    how = f"{events:,} events of {keys:,} keys in all, a procedure that does nothing, 2 workers."
    return _part("growth-topics", "topics", how, UNITS | {"idle_to_fresh": "ms"}, measured)


@dataclass(frozen=True)
class Spread:
    """One turn with several topics."""

    events_per_s: float
    seconds: float
    batches: int
    recalculations: int
    commits_per_event: float
    idle_to_fresh: float


async def _topics_turn(engine: Engine, topics: int, events: int, keys: int) -> Spread:
    """Register exactly so many topics; drain; then write one by one to the last of them."""
    names = [f"bench.topic_{number:03}" for number in range(topics)]
    await engine.connection.execute("truncate outbox.event")
    await engine.connection.execute("delete from outbox.topic")
    await engine.connection.execute("select outbox.set_topic(t, 'bench.nothing') from unnest($1::text[]) as t", names)
    drain = await engine.drain(dict.fromkeys(names, events), keys=keys, workers=2)
    async with daemon(engine.bench.server.dsn(engine.database)):
        fresh = Series.of("ms", [await _fresh_ms(engine, names[-1], f"new {each}") for each in range(IDLE_WRITES)])
    return Spread(**vars(drain), idle_to_fresh=fresh.median)


async def _fresh_ms(engine: Engine, topic: str, key: str) -> float:
    await asleep(engine.connection)
    xid = await engine.connection.fetchval(
        "select pg_current_xact_id()::text, outbox.enqueue($1::text, $2::text)", topic, key
    )
    return await fresh_ms(engine.connection, xid, key)


async def _engine_turns(
    bench: Bench, name: str, sizes: Iterable[int], turn: Callable[[Engine, int], Callable[[], Awaitable[object]]]
) -> dict[str, list[object]]:
    async with bench.database() as database, bench.connection(database) as connection:
        await connection.execute(f"select outbox.set_topic('{TOPIC}', 'bench.nothing')")
        engine = Engine(bench, database, connection)
        return await interleaved(name, bench.rounds, {f"{size:,}": turn(engine, size) for size in sizes})


def _scaled(bench: Bench, sizes: Iterable[int], *, least: int) -> list[int]:
    """Return the sizes as this run has them, without those that have become the same."""
    return sorted({bench.scaled(size, least=least) for size in sizes})


def _part(name: str, axis: str, how: str, units: Mapping[str, str], measured: Mapping[str, Sequence[object]]) -> Part:
    """Put the ratios to the smallest size first."""
    rows = [Row(size, columns(units, outcomes)) for size, outcomes in measured.items()]
    first = rows[0]
    shown = [figure for figure in units if figure in ("idle_to_fresh", "pupils_per_s", "events_per_s", "procedure_ms")]
    ratios = [
        Row(f"{row.name} / {first.name}", {figure: row.figures[figure].over(first.figures[figure]) for figure in shown})
        for row in rows[1:]
    ]
    return Part(name=name, question=f"What changes with the number of {axis}?", how=how, rows=[*ratios, *rows])


AXES = {
    "growth-pupils": measure_pupils,
    "growth-pending": measure_pending,
    "growth-feedback": measure_feedback,
    "growth-daemons": measure_daemons,
    "growth-topics": measure_topics,
}
