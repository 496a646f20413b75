"""What the metrics say of the database: read every few seconds by the housekeeper, never by a scrape."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from daemon.sql import statement
from daemon.threats import Server, read_server

MEASURE_TOPICS = statement("measure_topics")
MOST_COUNTED = 100_000
TIMEOUT_MS = 2_000
"""What takes longer is given up till the next round: a pinned horizon makes every look at the outbox slow."""


@dataclass(frozen=True, slots=True)
class TopicMeasure:
    """One registered topic."""

    topic: str
    is_paused: bool
    pending_events: int
    """At most MOST_COUNTED."""
    retrying_keys: int
    dead_keys: int
    drifted_keys: int
    oldest_claimable_s: float
    """0 when nothing is claimable."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """The database at one moment."""

    topics: Sequence[TopicMeasure]
    server: Server
    taken_at: float
    """Seconds since 1970, on this host's clock."""


async def measure(connection: asyncpg.Connection) -> Measurement:
    """Ask the database. Raises asyncpg's errors; QueryCanceledError after TIMEOUT_MS."""
    async with connection.transaction():
        # Statistics that caught the outbox empty would have it scanned whole.
        await connection.execute(f"set local statement_timeout = {TIMEOUT_MS}; set local enable_seqscan = off")
        topics = [TopicMeasure(**row) for row in await connection.fetch(MEASURE_TOPICS, MOST_COUNTED)]
        return Measurement(topics, await read_server(connection), time.time())
