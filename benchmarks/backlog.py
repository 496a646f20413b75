"""How fast the engine alone drains a backlog: a procedure that does nothing."""

from dataclasses import dataclass

import asyncpg

from benchmarks.bench import Bench, add_backlog, forget_history, settle_down
from benchmarks.figures import Part, Row, Verdict, columns, interleaved
from benchmarks.process import daemon

EVENTS = 1_000_000
KEYS = 10_000
WORKERS = (1, 2)
TARGET_EVENTS_PER_S = 100_000

# From the daemon's first word, before its workers connect, to the commit of the last batch. All by the server's clock.
DRAINED = """
select count(*) as batches, sum(cardinality(b.keys)) as recalculations, sum(b.event_count) as events,
       extract(epoch from max(pg_xact_commit_timestamp(b.xmin)) - min(d.started_at))::float8 as seconds
from outbox.batch as b
join outbox.daemon as d on d.daemon_id = b.daemon_id
"""


@dataclass(frozen=True)
class Drain:
    """One backlog, drained."""

    events_per_s: float
    seconds: float
    batches: int
    recalculations: int


async def measure(bench: Bench) -> Part:
    """Drain the same backlog with one worker and with two, in turns."""
    async with bench.database() as database, bench.connection(database) as connection:
        await connection.execute("select outbox.set_topic('bench.nothing', 'bench.nothing')")

        async def drain_with(workers: int) -> Drain:
            return await _drain(bench, database, connection, workers)

        sides = {f"{workers} worker(s)": lambda workers=workers: drain_with(workers) for workers in WORKERS}
        measured = await interleaved("backlog", bench.rounds, sides)
    units = {"events_per_s": "events/s", "seconds": "s", "batches": "", "recalculations": ""}
    rows = [Row(name, columns(units, drains)) for name, drains in measured.items()]
    speed = [row.figures["events_per_s"] for row in rows]
    return Part(
        name="backlog",
        question=f"How fast do {bench.scaled(EVENTS):,} events of {bench.scaled(KEYS):,} keys drain, all else free?",
        how="`recalcd run --drain`, history kept; from the daemon's first heartbeat to the last batch's commit.",
        rows=[*rows, Row("2 workers / 1 worker", {"events_per_s": speed[1].over(speed[0])})],
        verdicts=[Verdict("2 workers", speed[1], ">=", TARGET_EVENTS_PER_S)],
    )


async def _drain(bench: Bench, database: str, connection: asyncpg.Connection, workers: int) -> Drain:
    await connection.execute("truncate outbox.event")
    await forget_history(connection)
    events = bench.scaled(EVENTS)
    await add_backlog(connection, "bench.nothing", events=events, keys=bench.scaled(KEYS))
    await settle_down(connection, "outbox.event")
    async with daemon(bench.server.dsn(database), {"workers": workers}, drain=True) as running:
        await running.ended()
    row = await connection.fetchrow(DRAINED)
    assert row is not None
    assert row["events"] == events, "events were lost or done twice"
    seconds = row["seconds"]
    return Drain(events / seconds, seconds, row["batches"], row["recalculations"])
