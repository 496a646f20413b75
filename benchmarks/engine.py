"""The engine alone: how fast a backlog drains with a procedure that does nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import asyncpg

from benchmarks.bench import Bench, add_backlog, forget_history, settle_down
from benchmarks.figures import Part, Row, Verdict, columns, interleaved
from benchmarks.process import daemon

TOPIC = "bench.nothing"
EVENTS = 1_000_000
KEYS = (10_000, 100_000)
WORKERS = (1, 2)
TARGET_EVENTS_PER_S = 150_000
UNITS = {"events_per_s": "events/s", "seconds": "s", "batches": "", "recalculations": "", "commits_per_event": ""}

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
    commits_per_event: float
    """Of batches; the daemon's own housekeeping is a few more in all."""


@dataclass(frozen=True)
class Engine:
    """A database whose topics recalculate nothing."""

    bench: Bench
    database: str
    connection: asyncpg.Connection

    async def drain(self, backlog: Mapping[str, int], *, keys: int, workers: int) -> Drain:
        """Add so many events of each topic, of so many keys, and let a daemon drain them."""
        await self.connection.execute("truncate outbox.event")
        await forget_history(self.connection)
        for topic, events in backlog.items():
            await add_backlog(self.connection, topic, events=events, keys=keys)
        await settle_down(self.connection, "outbox.event")
        async with daemon(self.bench.server.dsn(self.database), {"workers": workers}, drain=True) as running:
            await running.ended()
        row, events = await self.connection.fetchrow(DRAINED), sum(backlog.values())
        assert row is not None
        assert row["events"] == events, "events were lost or done twice"
        seconds, batches = row["seconds"], row["batches"]
        return Drain(events / seconds, seconds, batches, row["recalculations"], batches / events)


async def measure(bench: Bench) -> Part:
    """Drain the same backlogs with one worker and with two, in turns."""
    events = bench.scaled(EVENTS)
    async with bench.database() as database, bench.connection(database) as connection:
        await connection.execute(f"select outbox.set_topic('{TOPIC}', 'bench.nothing')")
        engine = Engine(bench, database, connection)
        sides = {
            _side(bench, keys, workers): partial(
                engine.drain, {TOPIC: events}, keys=bench.scaled(keys), workers=workers
            )
            for keys in KEYS
            for workers in WORKERS
        }
        measured = await interleaved("engine", bench.rounds, sides)
    return Part(
        name="engine",
        question=f"How fast do {events:,} events drain when recalculating costs nothing?",
        how="`recalcd run --drain`, history kept; from the daemon's first heartbeat to the last batch's commit.",
        rows=[Row(name, columns(UNITS, drains)) for name, drains in measured.items()],
        verdicts=_verdicts(bench, measured),
    )


def _side(bench: Bench, keys: int, workers: int) -> str:
    return f"{bench.scaled(keys):,} keys, {workers} worker(s)"


def _verdicts(bench: Bench, measured: Mapping[str, Sequence[Drain]]) -> list[Verdict]:
    sides = [_side(bench, keys, max(WORKERS)) for keys in KEYS]
    return [Verdict(side, columns(UNITS, measured[side])["events_per_s"], ">=", TARGET_EVENTS_PER_S) for side in sides]
