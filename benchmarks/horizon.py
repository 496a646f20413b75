"""What a forgotten transaction costs: while it lasts, no event that was processed can be vacuumed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import asyncpg

from benchmarks.bench import Bench, add_backlog, asleep, settle_down
from benchmarks.claiming import claim_ms, look_ms
from benchmarks.figures import Part, Row, Series, Verdict, interleaved
from benchmarks.process import daemon

TOPIC = "bench.nothing"
PROCESSED = 1_000_000
KEYS = 10_000
SAMPLES = 10
"""A round."""
WRITES = 4
"""A round, each from idle; apart by more than the daemon's sweep, which then falls due."""
APART_S = 5.5
TARGET_RATIO = 1.5

COMMITTED = """
with written as (
    insert into outbox.event (topic, key) values ('bench.nothing', $1) returning pg_current_xact_id()::text as xid
)
select w.xid, outbox.ring('bench.nothing') from written as w
"""

FRESH = """
select extract(epoch from pg_xact_commit_timestamp(b.xmin) - pg_xact_commit_timestamp($1::text::xid))::float8 * 1000
from outbox.batch as b
where b.keys @> array[$2::text]
order by b.started_at desc
limit 1
"""


async def measure(bench: Bench) -> Part:
    """Process as much in two databases, one of them pinned by a snapshot; then claim in both, in turns."""
    async with AsyncExitStack() as stack:
        clean = await stack.enter_async_context(_worn(bench, pinned=False))
        pinned = await stack.enter_async_context(_worn(bench, pinned=True))
        places = {"clean": clean, "pinned": pinned}
        sides = {}
        for place, (_, connection) in places.items():
            sides[f"{place}, claim above the mark"] = partial(claim_ms, connection, TOPIC, with_mark=True)
            sides[f"{place}, claim sweeping"] = partial(claim_ms, connection, TOPIC, with_mark=False)
            sides[f"{place}, look"] = partial(look_ms, connection)
        measured = await interleaved("horizon", bench.rounds * SAMPLES, sides)
        writes = {
            f"{place}, idle to fresh": partial(_write_ms, connection) for place, (_, connection) in places.items()
        }
        for database, _ in places.values():
            await stack.enter_async_context(daemon(bench.server.dsn(database)))
        measured |= await interleaved("horizon", bench.rounds * WRITES, writes)
    series = {name: Series.of("ms", values) for name, values in measured.items()}
    ratios = {
        what: series[f"pinned, {what}"].over(series[f"clean, {what}"])
        for what in ("claim above the mark", "claim sweeping", "look", "idle to fresh")
    }
    return Part(
        name="horizon",
        question=f"What does a held snapshot cost after {bench.scaled(PROCESSED):,} processed events?",
        how=f"Claims of 100 events; the clean side was vacuumed. Idle to fresh: the daemon, asleep for {APART_S:g} s.",
        rows=[Row(name, {"latency": each}) for name, each in series.items()]
        + [Row(f"pinned / clean, {what}", {"ratio": ratio}) for what, ratio in ratios.items()],
        verdicts=[Verdict("claim above the mark, pinned / clean", ratios["claim above the mark"], "<=", TARGET_RATIO)],
    )


@asynccontextmanager
async def _worn(bench: Bench, *, pinned: bool) -> AsyncIterator[tuple[str, asyncpg.Connection]]:
    """Make a database in which much has been processed, and none or all of it can't be vacuumed."""
    async with (
        bench.database() as database,
        bench.connection(database) as connection,
        bench.connection(database) as forgotten,
    ):
        await connection.execute(f"select outbox.set_topic('{TOPIC}', 'bench.nothing')")
        if pinned:
            await forgotten.execute("begin isolation level repeatable read")
            await forgotten.execute("select count(*) from outbox.topic")
        await add_backlog(connection, TOPIC, events=bench.scaled(PROCESSED), keys=bench.scaled(KEYS))
        await connection.execute("analyze outbox.event")
        async with daemon(bench.server.dsn(database), drain=True) as running:
            await running.ended()
        await settle_down(connection, "outbox.event")
        yield database, connection


async def _write_ms(connection: asyncpg.Connection) -> float:
    """Return how long one write, from idle, takes to be fresh."""
    await asleep(connection)
    await asyncio.sleep(APART_S)
    await asleep(connection)
    key = await connection.fetchval("select gen_random_uuid()::text")
    xid = await connection.fetchval(COMMITTED, key)
    return await fresh_ms(connection, xid, key)


async def fresh_ms(connection: asyncpg.Connection, xid: str, key: str) -> float:
    """Wait until a key has a batch; return the time from the commit of a write to that batch's, by the server's clock.

    The history must not know the key from an earlier batch.
    """
    while (found := await connection.fetchval(FRESH, xid, key)) is None:  # noqa: ASYNC110  # happens in the database
        await asyncio.sleep(0.005)
    return float(found)
