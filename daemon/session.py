"""A session whose loss is noticed from elsewhere, since a half-open link says nothing itself.

Nobody can tell from one end whether the other is gone or slow: a recalculation may well take its minute. So whoever has
waited for heartbeat_s asks the server, on another connection, whether it is still at work for us. A deadline of our own
would have to guess, and guess wrong on the day when the server is slow.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from daemon import telemetry
from daemon.database import DATABASE_ERRORS, can_write, close, connect, connection, drop, one_row
from daemon.errors import DatabaseUnavailable
from daemon.settings import Settings
from daemon.sql import statement
from daemon.telemetry import log

IDENTIFY_SESSION = statement("identify_session")
IS_SESSION_AT_WORK = statement("is_session_at_work")
END_SESSION = statement("end_session")


@dataclass(frozen=True, slots=True)
class Session:
    """A connection, and what is known of its other end."""

    connection: asyncpg.Connection
    application_name: str
    pid: int
    started_at: datetime
    server_started_at: datetime
    server_pids: frozenset[str]
    is_direct: bool
    """False behind a pooler: the session that answered may serve somebody else by now. And where the server does not
    say when it began, as to a login that `alter role … set role` makes another: one can't be told from a later one."""

    @property
    def can_write(self) -> bool:
        """Whether it still leads to a server that takes writes."""
        return can_write(self.connection)

    def is_same_run(self, earlier: "Session") -> bool:
        """Whether the server has run on since that session began, without a restart or a recovery.

        Then no backend crashed: that ends all the others, and the server recovers.
        """
        has_survivors = not self.server_pids.isdisjoint(earlier.server_pids)
        return has_survivors and self.server_started_at == earlier.server_started_at

    async def is_at_work(self, settings: Settings) -> bool:
        """Ask the server whether it still works for us; true also when nobody can be asked: elsewhere is no better."""
        if not self.is_direct:
            return True
        try:
            async with connection(settings, application_name="recalcd watch", read_write=True) as other:
                async with asyncio.timeout(settings.heartbeat_timeout_s):
                    arguments = (self.pid, self.started_at, settings.heartbeat_timeout_s)
                    return bool(await other.fetchval(IS_SESSION_AT_WORK, *arguments))
        except (DatabaseUnavailable, *DATABASE_ERRORS):
            return True

    @contextlib.asynccontextmanager
    async def watched(
        self, settings: Settings, at_work: Callable[[], None] = lambda: None
    ) -> AsyncIterator[asyncpg.Connection]:
        """Wait in this block for the server only; what waits in it fails when the link turns out to be dead.

        at_work is called whenever the server has confirmed that the wait is for it.
        """
        watches: list[asyncio.Task[None]] = []

        def begin() -> None:
            watches.append(asyncio.create_task(self._watch(settings, at_work)))

        # Most waits are over long before, and cost a timer instead of a task.
        timer = asyncio.get_running_loop().call_later(settings.heartbeat_s, begin)
        try:
            yield self.connection
        finally:
            timer.cancel()
            for watch in watches:
                watch.cancel()

    async def _watch(self, settings: Settings, at_work: Callable[[], None]) -> None:
        while await self.is_at_work(settings):
            at_work()
            await asyncio.sleep(settings.heartbeat_s)
        log.warning(telemetry.SESSION_LOST, session=self.application_name, pid=self.pid)
        drop(self.connection)

    async def end_lost(self, lost: "Session") -> bool:
        """End a session that was lost to us, if it is still there, so that its locks are free; tell whether it was."""
        if not lost.is_direct:
            return False
        return bool(await self.connection.fetchval(END_SESSION, lost.pid, lost.started_at))


async def open_session(settings: Settings, *, application_name: str) -> Session:
    """Connect to the primary. Raises as connect() does, and asyncpg's errors."""
    opened = await connect(settings, application_name=application_name, read_write=True)
    try:
        async with asyncio.timeout(settings.heartbeat_timeout_s):
            row = await one_row(opened, IDENTIFY_SESSION)
    except BaseException:
        opened.terminate()
        raise
    return Session(
        opened,
        application_name,
        row["pid"],
        row["started_at"],
        row["server_started_at"],
        frozenset(row["server_pids"]),
        is_direct=row["pid"] == opened.get_server_pid() and row["started_at"] is not None,
    )


@contextlib.asynccontextmanager
async def brief_session(settings: Settings, *, application_name: str) -> AsyncIterator[asyncpg.Connection]:
    """Open a session for a while, and watch over it."""
    opened = await open_session(settings, application_name=application_name)
    try:
        async with opened.watched(settings) as connected:
            yield connected
    finally:
        await close(opened.connection)
