"""`recalcd tail`: batches as they commit.

The history is the truth, read again and again; the readers' notification, which comes with a batch's commit, only says
that now is a good time.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import asyncpg

from daemon.sql import statement

CLOCK = statement("clock")
TAIL_BATCHES = statement("tail_batches")
POLL_S = 1.0
"""A batch that changed nothing sends no notification: this is how late it may be shown."""
BREATH_S = 0.1
"""Shortest time between two looks, however often it rings."""
OVERLAP = timedelta(seconds=5)
"""How much later than its neighbours a batch may become visible: its commit comes after it wrote finished_at."""
_EARLIEST = datetime(1970, 1, 2, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Line:
    """A batch, in short. Its names are the keys of --json, and public."""

    batch_id: int
    topic: str
    kind: str
    key_count: int
    changed_count: int | None
    """None when the procedure does not say."""
    event_count: int
    reasons: list[str]
    recalculate_ms: float
    finished_at: datetime
    freshness_s: float | None
    """Of the oldest event; None when there was none."""


@dataclass
class Tail:
    """Follows the history; every batch is shown once."""

    connection: asyncpg.Connection
    topic: str | None = None
    key: str | None = None
    _seen: dict[int, datetime] = field(default_factory=dict, init=False)
    _since: datetime = field(default=_EARLIEST, init=False)
    _floor: datetime = field(default=_EARLIEST, init=False)
    _rung: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    async def last(self, count: int) -> list[Line]:
        """Return the last batches, oldest first; follow() goes on behind them, and shows none from before them."""
        lines = await self._look(count)
        if len(lines) == count:
            self._floor = lines[0].finished_at if lines else await self.connection.fetchval(CLOCK)
            self._since = max(self._since, self._floor)
        return lines

    async def follow(self) -> AsyncIterator[Line]:
        """Yield batches for ever, as they commit."""
        await self.connection.add_listener("recalculated", lambda *_: self._rung.set())
        while True:
            self._rung.clear()
            for line in await self._look(None):
                yield line
            await asyncio.sleep(BREATH_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S - BREATH_S):
                    await self._rung.wait()

    async def _look(self, most: int | None) -> list[Line]:
        """Return what is new, oldest first."""
        now = await self.connection.fetchval(CLOCK)
        rows = await self.connection.fetch(TAIL_BATCHES, self.topic, self.key, self._since, most)
        new = [Line(**row) for row in reversed(rows) if row["batch_id"] not in self._seen]
        self._since = max(now - OVERLAP, self._floor)
        self._seen |= {line.batch_id: line.finished_at for line in new}
        self._seen = {batch: finished_at for batch, finished_at in self._seen.items() if finished_at > self._since}
        return new
