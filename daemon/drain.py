"""`recalcd run --drain`: when there is nothing left to do, and what it waits for until then."""

import asyncio
import time
from dataclasses import dataclass, field

from daemon import telemetry
from daemon.database import DATABASE_ERRORS, connection, one_row
from daemon.doorbell import LOOK
from daemon.errors import DatabaseUnavailable
from daemon.hints import Hints
from daemon.settings import Settings
from daemon.telemetry import log

POLL_S = 0.1


@dataclass
class Drain:
    """Looks until nothing is pending and nothing is owed, but by dead keys and by topics that can't be called."""

    settings: Settings
    hints: Hints
    broken_topics: list[str] = field(default_factory=list, init=False)
    """Those that were left alone at the end, while something of theirs waits."""
    _owed_count: int = field(default=0, init=False)

    async def watch(self) -> None:
        """Return when it is over."""
        while not await self._is_over():  # noqa: ASYNC110  # what is waited for happens in the database
            await asyncio.sleep(POLL_S)

    async def _is_over(self) -> bool:
        skipped = self.hints.skipped(time.monotonic())
        try:
            async with connection(self.settings, application_name="recalcd drain", read_write=True) as connected:
                look = await one_row(connected, LOOK, skipped)
                if look["ready"] or look["owed_count"]:
                    self._tell(0 if look["ready"] else look["owed_count"], look["next_attempt_s"])
                    return False
                everything = await one_row(connected, LOOK, [])
        except (DatabaseUnavailable, *DATABASE_ERRORS):  # the workers are telling the log already
            return False
        self.broken_topics = skipped if everything["ready"] or everything["owed_count"] else []
        return True

    def _tell(self, owed_count: int, next_attempt_s: float | None) -> None:
        """Say, once per change, that only the backoff of failing keys is waited for."""
        if owed_count not in (0, self._owed_count):
            log.info(telemetry.DRAIN_WAITING, owed_count=owed_count, next_attempt_s=next_attempt_s)
        self._owed_count = owed_count
