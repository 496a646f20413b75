"""The small things that keep a daemon in order: its row in outbox.daemon, and the history's partitions."""

import asyncio
import contextlib
import os
import random
import socket
import time
from collections.abc import Callable

import asyncpg

from daemon import __version__, systemd, telemetry
from daemon.batch import prepare_history
from daemon.database import DATABASE_ERRORS, close, one_row
from daemon.errors import DatabaseUnavailable
from daemon.pulse import Pulse, step_s
from daemon.session import Session, open_session
from daemon.sql import statement
from daemon.telemetry import log
from daemon.worker import Shared

SIGN_IN = statement("sign_in")
HEARTBEAT = statement("heartbeat")
MEND_FAILURE_TIMES = statement("mend_failure_times")
SAY_GOODBYE = statement("say_goodbye")
DROP_PARTITIONS = statement("drop_partitions")
COUNT_PENDING = statement("count_pending")
COUNTED_EVENTS = 10_000
"""More than these are only 'more' in the line of status."""
ROUND_S = 10.0
PARTITIONS_S = 3600.0
PARTITIONS_AGAIN_S = 60.0
"""How soon to try again when the partitions could not be made, or an old one not be dropped for a reader's lock."""
DAYS_AHEAD = 7
GOODBYE_S = 2.0


class Housekeeper:
    """Makes its rounds on a connection of its own. What fails is logged and tried again: no event waits for it."""

    def __init__(self, shared: Shared, state: Callable[[], str]) -> None:
        """Take what tells the daemon's state: working, idle, degraded or stopping."""
        self._shared = shared
        self._state = state
        self._session: Session | None = None
        self._partitions_at = 0.0
        self._pending = ""
        self.pulse = Pulse("housekeeper", step_s(shared.settings))

    async def run(self) -> None:
        """Make rounds for ever."""
        while True:
            if self._shared.housekeeping.is_set():
                self._shared.housekeeping.clear()
                self._partitions_at = 0.0
            self.pulse.beat()
            try:
                await self.make_round()
            except (DatabaseUnavailable, *DATABASE_ERRORS) as error:
                facts = telemetry.error_keys(error)
                log.warning(telemetry.HOUSEKEEPING_FAILED, **facts)
                systemd.status(f"without the database: {facts['error']}")
            self.pulse.beat(ROUND_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ROUND_S * random.uniform(0.8, 1.0)):
                    await self._shared.housekeeping.wait()

    async def make_round(self) -> None:
        """Say that we live, learn whether somebody vanished, mend what a clock left, see to partitions when due.

        And measure, if anybody asks for metrics.
        """
        session = await self._connected()
        async with session.watched(self._shared.settings, self.pulse.beat) as connection:
            await self._make_round(connection)

    async def _make_round(self, connection: asyncpg.Connection) -> None:
        state = self._state()
        self._shared.is_cautious = await connection.fetchval(
            HEARTBEAT, self._shared.daemon_id, socket.gethostname(), os.getpid(), __version__, state
        )
        if systemd.is_supervised():
            await self._look_at_pending(connection)
        self.show_status()
        await connection.execute(MEND_FAILURE_TIMES)
        if time.monotonic() >= self._partitions_at:
            self._partitions_at = time.monotonic() + PARTITIONS_AGAIN_S
            if await self._see_to_partitions(connection):
                self._partitions_at = time.monotonic() + PARTITIONS_S
        if self._shared.metrics:
            await self._shared.metrics.read(connection)

    async def _look_at_pending(self, connection: asyncpg.Connection) -> None:
        row = await one_row(connection, COUNT_PENDING, COUNTED_EVENTS + 1)
        count = row["pending_events"]
        many = f"more than {COUNTED_EVENTS:,}" if count > COUNTED_EVENTS else f"{count:,}"
        oldest = "" if row["oldest_s"] is None else f", the oldest for {max(0.0, row['oldest_s']):,.1f} s"
        self._pending = f", {many} pending{oldest}"

    def show_status(self) -> None:
        """Show state, pending events and the last batch's freshness in `systemctl status`."""
        freshness_s = self._shared.freshness_s
        fresh = "" if freshness_s is None else f", freshness {freshness_s:,.3f} s"
        systemd.status(self._state() + self._pending + fresh)

    async def _see_to_partitions(self, connection: asyncpg.Connection) -> bool:
        """Make those of the days to come, drop those gone by; false when somebody reads the history just now."""
        keep_days = self._shared.settings.history_days
        if keep_days:
            for name in await prepare_history(connection, days_ahead=DAYS_AHEAD):
                log.info(telemetry.PARTITION_CREATED, partition=name)
        try:
            dropped = await connection.fetchval(DROP_PARTITIONS, keep_days)
        except asyncpg.LockNotAvailableError as error:  # a backup, say: no reason not to start
            log.warning(telemetry.HOUSEKEEPING_FAILED, **telemetry.error_keys(error))
            return False
        for name in dropped:
            log.info(telemetry.PARTITION_DROPPED, partition=name)
        return True

    async def say_goodbye(self) -> None:
        """Say that the daemon stopped as it should, if the database will listen."""
        with contextlib.suppress(DatabaseUnavailable, *DATABASE_ERRORS):  # it is gone anyway; others will notice
            async with asyncio.timeout(GOODBYE_S):
                session = await self._connected()
                await session.connection.execute(SAY_GOODBYE, self._shared.daemon_id)

    async def close(self) -> None:
        """Close the connection; the next round would open another."""
        if self._session is not None:
            await close(self._session.connection)

    async def _sign_in(self, session: Session) -> None:
        try:
            async with session.watched(self._shared.settings) as connection:
                await connection.execute(SIGN_IN, self._shared.daemon_id)
        except DATABASE_ERRORS:
            await close(session.connection)  # without the proof of life others would take us for vanished
            raise

    async def _connected(self) -> Session:
        if self._session is None or not self._session.can_write:
            await self.close()
            self._session = await open_session(self._shared.settings, application_name="recalcd housekeeper")
            await self._sign_in(self._session)
        return self._session
