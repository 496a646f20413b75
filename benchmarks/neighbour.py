"""What one topic's backlog costs another: why the primary key of outbox.event leads with the topic."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import asyncpg

from benchmarks.bench import Bench, add_backlog, settle_down
from benchmarks.claiming import claim_ms, look_ms
from benchmarks.figures import Part, Row, Series, Verdict, interleaved

BUSY = "bench.busy"
QUIET = "bench.quiet"
PENDING = 1_000_000
KEYS = 10_000
SAMPLES = 20
"""A round."""
TARGET_RATIO = 1.5

PRIMARY_KEYS = {"pk (topic, event_id)": None, "pk (event_id)": "event_id"}


async def measure(bench: Bench) -> Part:
    """Claim of a quiet topic beside none and beside a paused one's backlog, with each primary key."""
    async with AsyncExitStack() as stack:
        sides = {}
        for name, primary_key in PRIMARY_KEYS.items():
            for events in (0, bench.scaled(PENDING)):
                connection = await stack.enter_async_context(_beside(bench, events, primary_key))
                beside = f"{name}, beside {events:,}"
                sides[f"{beside}: claim"] = partial(claim_ms, connection, QUIET, with_mark=True)
                sides[f"{beside}: claim sweeping"] = partial(claim_ms, connection, QUIET, with_mark=False)
                sides[f"{beside}: look"] = partial(look_ms, connection)
        measured = await interleaved("neighbour", bench.rounds * SAMPLES, sides)
    series = {name: Series.of("ms", values) for name, values in measured.items()}
    events = bench.scaled(PENDING)
    verdicts = [
        Verdict(f"{what}, beside {events:,} / beside 0", _ratio(series, events, what), "<=", TARGET_RATIO)
        for what in ("claim", "claim sweeping", "look")
    ]
    return Part(
        name="neighbour",
        question=f"What do {events:,} pending events of a paused topic cost a claim of another topic?",
        how="Claims of 100 events; the same in a copy of the schema whose primary key is event_id alone.",
        rows=[Row(name, {"latency": each}) for name, each in series.items()],
        verdicts=verdicts,
    )


def _ratio(series: dict[str, Series], events: int, what: str) -> Series:
    name = next(iter(PRIMARY_KEYS))
    return series[f"{name}, beside {events:,}: {what}"].over(series[f"{name}, beside 0: {what}"])


@asynccontextmanager
async def _beside(bench: Bench, events: int, primary_key: str | None) -> AsyncIterator[asyncpg.Connection]:
    async with bench.database() as database, bench.connection(database) as connection:
        for topic in (BUSY, QUIET):
            await connection.execute(f"select outbox.set_topic('{topic}', 'bench.nothing')")
        if primary_key:
            await connection.execute(
                f"alter table outbox.event drop constraint event_pkey, add primary key ({primary_key})"
            )
        await connection.execute(f"update outbox.topic set paused_at = now() where topic = '{BUSY}'")
        await add_backlog(connection, BUSY, events=events, keys=bench.scaled(KEYS))
        await settle_down(connection, "outbox.event")
        yield connection
