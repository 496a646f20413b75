"""How much memory the daemon takes while a backlog is pending."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass

import asyncpg

from benchmarks.bench import Bench, add_backlog, add_each, asleep, forget_history, settle_down
from benchmarks.figures import Part, Row, Verdict, columns, interleaved
from benchmarks.process import daemon

EVENTS = 1_000_000
KEYS = 10_000
TARGET_MB = 80
FIRST_PART = 0.1

DONE = "select coalesce(sum(b.event_count), 0) from outbox.batch as b"


@dataclass(frozen=True)
class Memory:
    """Resident set of the daemon, in MB."""

    early: float
    """When a tenth of the events was gone."""
    peak: float
    at_rest: float


async def measure(bench: Bench) -> Part:
    """Drain a backlog of few keys and one of nothing but different keys; every key changed, so readers are notified."""
    events, keys = bench.scaled(EVENTS), bench.scaled(KEYS)
    async with bench.database() as database, bench.connection(database) as connection:
        await connection.execute("select outbox.set_topic('bench.everything', 'bench.everything')")

        async def few_keys() -> Memory:
            load = add_backlog(connection, "bench.everything", events=events, keys=keys)
            return await _observe(bench, database, connection, load)

        async def many_keys() -> Memory:
            return await _observe(bench, database, connection, add_each(connection, "bench.everything", events))

        sides = {f"{keys:,} keys": few_keys, f"{events:,} keys": many_keys}
        measured = await interleaved("memory", min(bench.rounds, 2), sides)
    units = {"early": "MB", "peak": "MB", "at_rest": "MB"}
    rows = [Row(name, columns(units, each)) for name, each in measured.items()]
    return Part(
        name="memory",
        question=f"How much memory does the daemon take with {events:,} events pending?",
        how="VmRSS when a tenth is done and when asleep again; VmHWM for the peak. 2 workers, everything as shipped.",
        rows=rows,
        verdicts=[Verdict(f"peak, {row.name}", row.figures["peak"], "<", TARGET_MB) for row in rows],
    )


async def _observe(bench: Bench, database: str, connection: asyncpg.Connection, load: Awaitable[None]) -> Memory:
    await forget_history(connection)
    await load
    await settle_down(connection, "outbox.event")
    enough = await connection.fetchval("select count(*) from outbox.event") * FIRST_PART
    async with daemon(bench.server.dsn(database)) as running:
        while await connection.fetchval(DONE) < enough:  # noqa: ASYNC110  # happens in the database
            await asyncio.sleep(0.02)
        early = running.resident_mb()
        await asleep(connection)
        return Memory(early, running.peak_mb(), running.resident_mb())
