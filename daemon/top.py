"""`recalcd top`: what its screen shows, read anew every time."""

from dataclasses import dataclass

import asyncpg

from daemon.sql import statement
from daemon.status import Status, read_status

TOP_SERIES = statement("top_series")
TOP_FAILURES = statement("top_failures")
SLICES = 60
SLICE_S = 2
MOST_FAILURES = 50


@dataclass(frozen=True, slots=True)
class Slice:
    """What was recalculated in a slice of time."""

    key_count: int
    event_count: int
    freshness_s: float | None
    """The worst in it; None when no event was handled."""


@dataclass(frozen=True, slots=True)
class FailingKey:
    """A key that fails, in short."""

    topic: str
    key: str
    state: str
    attempts: int
    sqlstate: str | None
    message: str | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One look: now, and the last two minutes."""

    status: Status
    series: list[Slice]
    """The last one is the slice that we are in."""
    failing: list[FailingKey]


async def read_snapshot(connection: asyncpg.Connection) -> Snapshot:
    """Ask the database; needs no daemon."""
    series = [Slice(**row) for row in await connection.fetch(TOP_SERIES, SLICES, SLICE_S)]
    failing = [FailingKey(**row) for row in await connection.fetch(TOP_FAILURES, MOST_FAILURES)]
    return Snapshot(await read_status(connection), series, failing)
