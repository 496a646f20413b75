"""The daemon's own verification: a few keys every second, round after round, to find drift before a reader does.

Off unless RECALCD_VERIFY_KEYS_PER_MINUTE says how many. Daemons share one round per topic (outbox.audit), whose turns
follow the order in which the topic lists its keys: unlike a random sample, a complete round has visited every key.
"""

import asyncio
from dataclasses import dataclass, field

import asyncpg

from daemon import telemetry
from daemon.database import DATABASE_ERRORS, close
from daemon.errors import DatabaseUnavailable, UsageError
from daemon.keys import LIST_TOPICS, Topic
from daemon.session import Session, open_session
from daemon.settings import Settings
from daemon.sql import statement
from daemon.telemetry import log
from daemon.verify import Verifier

NEXT_AUDIT = statement("next_audit")
SHORTEST_PAUSE_S = 1.0
TROUBLE_PAUSE_S = 30.0
"""After an error: nothing waits for the audit, and the workers tell the log already."""


@dataclass
class Auditor:
    """Takes turns at the topics that can list their keys, on a connection of its own."""

    settings: Settings
    _session: Session | None = field(default=None, init=False)
    _after: str = field(default="", init=False)
    _silent: set[str] = field(default_factory=set, init=False)
    """Topics whose procedure does not say what it changed."""

    async def run(self) -> None:
        """Verify for ever."""
        try:
            while True:  # noqa: ASYNC110  # a steady pace is the point
                await asyncio.sleep(await self._turn_or_pause())
        finally:
            await self.close()

    async def close(self) -> None:
        """Give the connection back."""
        if self._session is not None:
            await close(self._session.connection)

    async def _turn_or_pause(self) -> float:
        """Take a turn; return how long to wait for the next, in seconds."""
        pause_s, key_count = pace(self.settings.verify_keys_per_minute)
        try:
            await self.take_turn(key_count)
        except (DatabaseUnavailable, *DATABASE_ERRORS) as error:
            log.warning(telemetry.AUDIT_FAILED, **telemetry.error_keys(error))
            return TROUBLE_PAUSE_S
        return pause_s

    async def take_turn(self, key_count: int) -> None:
        """Look at the next keys of the next topic."""
        session = await self._connected()
        async with session.watched(self.settings) as connection:
            await self._verify_next(connection, key_count)

    async def _verify_next(self, connection: asyncpg.Connection, key_count: int) -> None:
        topic = await self._next_topic(connection)
        if topic is None:
            return
        keys = await connection.fetchval(NEXT_AUDIT, topic.name, min(key_count, topic.batch_keys))
        if keys:
            await self._look_at(connection, topic, keys)

    async def _look_at(self, connection: asyncpg.Connection, topic: Topic, keys: list[str]) -> None:
        verifier = Verifier(connection, topic)
        try:
            await verifier.check(keys)  # who is busy now, has just been recalculated: till the next round
        except UsageError as error:
            log.warning(telemetry.AUDIT_FAILED, topic=topic.name, error=str(error))
            self._silent.add(topic.name)
        for key, failure in verifier.verdict.failed.items():
            log.warning(telemetry.VERIFY_FAILED, topic=topic.name, key=key, **telemetry.error_keys(failure))

    async def _next_topic(self, connection: asyncpg.Connection) -> Topic | None:
        """Return the topic after the last one, in order of their names; None when there is none to look at."""
        rows = [
            row
            for row in await connection.fetch(LIST_TOPICS)
            if row["list_keys"] is not None and row["paused_at"] is None and row["topic"] not in self._silent
        ]
        if not rows:
            return None
        row = next((row for row in rows if row["topic"] > self._after), rows[0])
        self._after = row["topic"]
        return Topic(row["topic"], row["batch_keys"], lists_keys=True)

    async def _connected(self) -> Session:
        if self._session is None or not self._session.can_write:
            await self.close()
            self._session = await open_session(self.settings, application_name="recalcd auditor")
        return self._session


def pace(keys_per_minute: int) -> tuple[float, int]:
    """Return how long to wait between two turns, in seconds, and how many keys make one."""
    pause_s = max(SHORTEST_PAUSE_S, 60 / keys_per_minute)
    return pause_s, max(1, round(keys_per_minute * pause_s / 60))
