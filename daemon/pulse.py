"""Signs of life: each loop of the daemon promises when it will be heard of again, and one task judges by that.

A timer that feeds the watchdog proves that a timer runs. Here systemd is told that all is well only by a task of the
event loop, so the loop turns, and only while no promise is broken. The listener promises its next heartbeat through the
database; a worker the end of its turn, or that the server says it is still at work for it. Whoever waits for work,
which may rightly never come, promises nothing; who waits for a database that is away promises its next attempt.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterable

from daemon import systemd, telemetry
from daemon.database import each_host
from daemon.settings import Settings
from daemon.telemetry import log

SLACK_S = 5.0
"""For the small things that a step does besides: connections are given up after two seconds of saying goodbye."""


class Pulse:
    """When a loop must have been heard of again."""

    def __init__(self, name: str, step_s: float) -> None:
        """Promise nothing yet. step_s is what the loop's longest step may take."""
        self.name = name
        self._step_s = step_s
        self._due_at = math.inf

    def beat(self, pause_s: float = 0.0) -> None:
        """Say that the loop goes on, and will again after this pause and one step."""
        self._due_at = time.monotonic() + pause_s + self._step_s

    def rest(self) -> None:
        """Say that there is nothing to do, for however long."""
        self._due_at = math.inf

    @property
    def is_overdue(self) -> bool:
        """Whether the loop was to be heard of, and was not."""
        return time.monotonic() > self._due_at


def step_s(settings: Settings) -> float:
    """Return the longest that a loop may go without a beat: everything it does has a deadline, and these add up.

    A worker may connect, and wait for the watch over its session to connect and ask; the listener may connect twice,
    and take five short steps on either session.
    """
    url = settings.database_url.get_secret_value() if settings.database_url else ""
    connect_s = len(each_host(url)) * settings.connect_timeout_s
    return settings.heartbeat_s + 2 * connect_s + 5 * settings.heartbeat_timeout_s + SLACK_S


async def feed_watchdog(interval_s: float, pulses: Callable[[], Iterable[Pulse]]) -> None:
    """Tell systemd that all is well, for ever, while it is. Of the loops that are overdue, tell the log."""
    told: list[str] = []
    while True:
        overdue = [each.name for each in pulses() if each.is_overdue]
        if not overdue:
            systemd.watchdog()
        elif overdue != told:
            log.critical(telemetry.WATCHDOG_WITHHELD, loops=overdue)
        told = overdue
        await asyncio.sleep(interval_s)
