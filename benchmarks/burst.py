"""A bulk load hits a daemon that has long served a trickle: plans made for an almost empty table meet a full one."""

import asyncio
from functools import partial

import asyncpg

from benchmarks.bench import Bench, add_backlog, asleep, drained, forget_history
from benchmarks.figures import Part, Row, Series, Verdict, interleaved
from benchmarks.process import daemon

TOPIC = "bench.nothing"
TRICKLE = 30
"""Single writes before the burst: enough batches for each worker to settle for its generic plans."""
EVENTS = 200_000
KEYS = 10_000
TARGET_RATIO = 1.5

DRAINED = """
select extract(epoch from max(pg_xact_commit_timestamp(b.xmin)) - pg_xact_commit_timestamp($1::text::xid))::float8
from outbox.batch as b
"""


async def measure(bench: Bench) -> Part:
    """Drain a burst with statistics of quiet times, and with true ones, in turns."""
    async with bench.database() as database, bench.connection(database) as connection:
        await connection.execute(f"select outbox.set_topic('{TOPIC}', 'bench.nothing')")
        # It would mend the statistics, a minute after the burst as shipped: too late, and at a moment of luck.
        await connection.execute("alter table outbox.event set (autovacuum_enabled = off)")
        turn = partial(_turn, bench, database, connection)
        sides = {"true statistics": partial(turn, counted=True), "quiet statistics": partial(turn, counted=False)}
        measured = await interleaved("burst", bench.rounds, sides)
    events = bench.scaled(EVENTS)
    speeds = {name: Series.of("events/s", (events / seconds for seconds in each)) for name, each in measured.items()}
    ratio = speeds["true statistics"].over(speeds["quiet statistics"])
    return Part(
        name="burst",
        question=f"How fast do {events:,} events drain that are committed at once, after a trickle?",
        how="Quiet: left by a vacuum that found the table all but empty. From the burst's commit to the last batch's.",
        rows=[Row(name, {"speed": each}) for name, each in speeds.items()],
        verdicts=[Verdict("true / quiet statistics", ratio, "<=", TARGET_RATIO)],
    )


async def _turn(bench: Bench, database: str, connection: asyncpg.Connection, *, counted: bool) -> float:
    """Return the seconds that the burst took."""
    await connection.execute("truncate outbox.event")
    await forget_history(connection)
    async with daemon(bench.server.dsn(database)):
        await _leave_quiet_statistics(bench, database, connection)
        for number in range(TRICKLE):
            await connection.execute("select outbox.enqueue($1, $2)", TOPIC, str(number))
            await asyncio.sleep(0.05)  # apart, so that each is a batch
        await asleep(connection)
        async with connection.transaction():
            xid = await connection.fetchval("select pg_current_xact_id()::text")
            await add_backlog(connection, TOPIC, events=bench.scaled(EVENTS), keys=bench.scaled(KEYS))
            if counted:
                await connection.execute("analyze outbox.event")
            await connection.execute("select outbox.ring()")
        await drained(connection)
        await asleep(connection)
    return float(await connection.fetchval(DRAINED, xid))


async def _leave_quiet_statistics(bench: Bench, database: str, connection: asyncpg.Connection) -> None:
    """Let a vacuum find pages, and next to no live row on them, as it does whenever it runs between two writes."""
    async with bench.connection(database) as holding:
        await connection.execute(
            "insert into outbox.event (topic, key) select 'bench.gone', i::text from generate_series(1, 5000) as i"
        )
        await holding.execute("begin isolation level repeatable read")
        await holding.execute("select count(*) from outbox.topic")  # keeps the pages, which vacuum would cut off
        await connection.execute("delete from outbox.event")
        await connection.execute("vacuum (analyze) outbox.event")
