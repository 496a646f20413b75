"""`recalcd replay`: put keys back into the outbox, a chunk at a time, so that live traffic is never kept waiting."""

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from daemon.database import one_row, transaction
from daemon.errors import UsageError
from daemon.job_runner import Chunk, Counts, Note
from daemon.keys import Topic
from daemon.scope import distinct, refuse_unknown
from daemon.sql import statement
from daemon.times import Moment, resolve

LIST_FAILED_KEYS = statement("list_failed_keys")
LIST_RECALCULATED_KEYS = statement("list_recalculated_keys")
DATABASE_TIME = statement("database_time")
REPLAY = statement("replay")
REPLAY_WAITS = statement("replay_waits")
LOOK_S = 0.02
MOST_WAIT_S = 5.0
"""How long a chunk may stay in the outbox, for a key that somebody holds, before the next one follows all the same."""
_SQLSTATE = re.compile(r"[0-9A-Z]{5}")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for: named keys; or failing ones; or those that were recalculated in a range of time."""

    named: Sequence[str] | None = None
    dead: bool = False
    since: Moment | None = None
    until: Moment | None = None
    reason: str | None = None
    sqlstate: str | None = None

    @property
    def is_of_failures(self) -> bool:
        """Whether it looks at the failures; a range of time is then that of the last failure."""
        return self.dead or self.sqlstate is not None

    @property
    def is_of_a_time(self) -> bool:
        """Whether a range of time was given."""
        return self.since is not None or self.until is not None


@dataclass(frozen=True, slots=True)
class Chosen:
    """The keys that were asked for, each once."""

    keys: list[str]
    history_begins_at: datetime | None = None
    """Set when more was asked for than the history still knows."""


def parse_where(conditions: Sequence[str]) -> dict[str, str]:
    """Read `reason=…` and `sqlstate=…`. Raises UsageError."""
    found: dict[str, str] = {}
    for condition in conditions:
        name, equals, value = condition.partition("=")
        if not (equals and value) or name not in ("reason", "sqlstate"):
            raise UsageError(
                f"--where {condition} means nothing here: write reason=feedback.recorded or sqlstate=22012."
            )
        if name in found:
            raise UsageError(f"--where {name}=… is given twice, and a key can't fulfil both.")
        found[name] = value
    if "sqlstate" in found and not _SQLSTATE.fullmatch(found["sqlstate"]):
        raise UsageError(f"{found['sqlstate']!r} is no SQLSTATE: those have five digits and capitals, such as 22012.")
    return found


def check(wanted: Wanted) -> None:
    """Raise UsageError for what contradicts itself, or asks for nothing."""
    if wanted.named is not None and (wanted.is_of_failures or wanted.is_of_a_time or wanted.reason):
        raise UsageError("Name keys, or choose them with --dead, --since, --until and --where; not both.")
    if wanted.reason is not None and wanted.is_of_failures:
        raise UsageError("A failure does not keep reasons: leave out --where reason=…, or --dead and the SQLSTATE.")
    if wanted.reason is not None and not wanted.is_of_a_time:
        raise UsageError("Say since when: --where reason=… looks at what was recalculated, such as --since 2h.")
    if wanted.named is None and not (wanted.is_of_failures or wanted.is_of_a_time):
        raise UsageError("Say what to put back: --dead, --key KEY, --keys-from FILE, or --since 2h.")


async def choose(connection: asyncpg.Connection, topic: Topic, wanted: Wanted) -> Chosen:
    """Return the keys that were asked for. Raises UsageError for a key that is unknown, or a range that is empty."""
    check(wanted)
    if wanted.named is not None:
        keys = distinct(wanted.named)
        await refuse_unknown(connection, topic, keys)
        return Chosen(keys)
    clock = await one_row(connection, DATABASE_TIME, topic.name)
    since, until = _range(wanted, clock["now"])
    if wanted.is_of_failures:
        rows = await connection.fetch(LIST_FAILED_KEYS, topic.name, wanted.dead, wanted.sqlstate, since, until)
        return Chosen([row["key"] for row in rows])
    rows = await connection.fetch(LIST_RECALCULATED_KEYS, topic.name, since, until, wanted.reason)
    begins_at = clock["history_begins_at"] or clock["now"]
    return Chosen([row["key"] for row in rows], begins_at if since is None or since < begins_at else None)


def _range(wanted: Wanted, now: datetime) -> tuple[datetime | None, datetime | None]:
    """Return the range on the database's clock. Raises UsageError when nothing can be in it."""
    try:
        since = None if wanted.since is None else resolve(wanted.since, now)
        until = now if wanted.until is None else resolve(wanted.until, now)
    except ValueError as error:
        raise UsageError(f"--since or --until: {error}.") from None
    if since is not None and since >= until:
        raise UsageError(f"Nothing lies between {since:%Y-%m-%d %H:%M:%S%z} and {until:%Y-%m-%d %H:%M:%S%z}.")
    return since, until


@dataclass
class Replayer:
    """Puts chunks of keys back, with all their attempts, and waits until each chunk is taken before the next.

    So that a live event never finds more than one chunk before it. With no daemon to take them, nothing is waited for.
    """

    connection: asyncpg.Connection
    topic: Topic

    async def do(self, chunk: Chunk, note: Note) -> None:
        """Put a chunk back."""
        async with transaction(self.connection):
            await self.connection.execute(REPLAY, self.topic.name, chunk.keys)
            await note(Counts())
        deadline = time.monotonic() + MOST_WAIT_S
        while await self._waits(chunk) and time.monotonic() < deadline:  # noqa: ASYNC110  # its state is in the database
            await asyncio.sleep(LOOK_S)

    async def _waits(self, chunk: Chunk) -> bool:
        return bool(await self.connection.fetchval(REPLAY_WAITS, self.topic.name, chunk.keys))
