"""`recalcd topic`: the registry of what is recalculated, and by which routine."""

from dataclasses import dataclass
from datetime import datetime

import asyncpg

from daemon.database import one_row, rehearsal, transaction
from daemon.errors import RecalcdError, UsageError
from daemon.keys import find_topic
from daemon.sql import statement

SHOW_TOPICS = statement("show_topics")
SET_TOPIC = statement("set_topic")
PAUSE_TOPIC = statement("pause_topic")
RESUME_TOPIC = statement("resume_topic")
REMOVE_TOPIC = statement("remove_topic")
COUNT_WAITING = statement("count_waiting")

_WRONG_ROUTINE = "RC004"
_OWES = "RC010"


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the registry."""

    topic: str
    recalculate: str
    list_keys: str | None
    max_attempts: int
    retry_base_s: int
    retry_max_s: int
    batch_keys: int
    statement_timeout_s: int
    describe: str | None
    paused_at: datetime | None
    paused_reason: str | None


@dataclass(frozen=True, slots=True)
class Changes:
    """What to change of a topic; None leaves a setting as it is, or at its default for a new topic."""

    recalculate: str | None = None
    list_keys: str | None = None
    max_attempts: int | None = None
    retry_base_s: int | None = None
    retry_max_s: int | None = None
    batch_keys: int | None = None
    statement_timeout_s: int | None = None
    describe: str | None = None

    @property
    def is_nothing(self) -> bool:
        return self == Changes()


@dataclass(frozen=True, slots=True)
class Owed:
    """What waits for a topic, and would be lost with it."""

    event_count: int
    failure_count: int

    def __bool__(self) -> bool:
        return self.event_count + self.failure_count > 0

    def __str__(self) -> str:
        return f"{self.event_count:,} events and {self.failure_count:,} failed keys"


async def list_topics(connection: asyncpg.Connection) -> list[Entry]:
    """Return the registry, by name."""
    return [Entry(**row) for row in await connection.fetch(SHOW_TOPICS)]


async def add(connection: asyncpg.Connection, name: str, changes: Changes, *, dry_run: bool = False) -> None:
    """Register a topic; a dry run does, and takes it back.

    Raises UsageError when it is registered already, or a setting can't be.
    """
    if name in [each.topic for each in await list_topics(connection)]:
        raise UsageError(f"Topic {name!r} is registered already; change it with `recalcd topic set`.")
    async with rehearsal(connection) if dry_run else transaction(connection):
        await _set(connection, name, changes)


async def change(connection: asyncpg.Connection, name: str, changes: Changes, *, dry_run: bool = False) -> None:
    """Change a topic; a dry run does, and takes it back.

    Raises UsageError when there is nothing to change, no such topic, or a setting can't be.
    """
    if changes.is_nothing:
        raise UsageError("Say what to change, --batch-keys for example.")
    await find_topic(connection, name)
    async with rehearsal(connection) if dry_run else transaction(connection):
        await _set(connection, name, changes)


async def _set(connection: asyncpg.Connection, name: str, changes: Changes) -> None:
    try:
        await connection.execute(
            SET_TOPIC,
            name,
            changes.recalculate,
            changes.list_keys,
            changes.max_attempts,
            changes.retry_base_s,
            changes.retry_max_s,
            changes.batch_keys,
            changes.statement_timeout_s,
            changes.describe,
        )
    except asyncpg.CheckViolationError as error:
        raise UsageError(
            _RULES.get(error.constraint_name or "", f"The database refuses that: {error.args[0]}.")
        ) from None
    except asyncpg.PostgresError as error:
        if error.sqlstate != _WRONG_ROUTINE:
            raise
        raise UsageError(f"Nothing was changed: {error.args[0]}. {error.hint}") from None


_RULES = {
    "topic_topic_length_check": "The name of a topic has 1 to 100 characters.",
    "topic_retry_max_s_check": "--retry-max-s must not be less than --retry-base-s, nor more than 604800 (a week).",
}


async def pause(connection: asyncpg.Connection, name: str, reason: str | None, *, dry_run: bool = False) -> bool:
    """Pause a topic, on all daemons at once; tell whether it was running. Raises UsageError for an unknown one."""
    await find_topic(connection, name)
    async with rehearsal(connection) if dry_run else transaction(connection):
        return bool(await connection.fetchval(PAUSE_TOPIC, name, reason))


async def resume(connection: asyncpg.Connection, name: str, *, dry_run: bool = False) -> bool:
    """Let a topic go on; tell whether it was paused. Raises UsageError for an unknown one."""
    await find_topic(connection, name)
    async with rehearsal(connection) if dry_run else transaction(connection):
        return bool(await connection.fetchval(RESUME_TOPIC, name))


async def owed(connection: asyncpg.Connection, name: str) -> Owed:
    """Count what would be lost with a topic. Raises UsageError for an unknown one."""
    await find_topic(connection, name)
    return Owed(**await one_row(connection, COUNT_WAITING, name))


def refuse_loss(name: str, owed: Owed, *, lose_events: bool) -> None:
    """Raise RecalcdError when something would be lost that nobody agreed to lose."""
    if owed and not lose_events:
        raise RecalcdError(
            f"Nothing was removed: topic {name} has {owed}. Let a daemon finish them, or say --lose-events."
        )


async def remove(connection: asyncpg.Connection, name: str, *, lose_events: bool) -> Owed:
    """Take a topic out of the registry; return what was lost with it.

    Raises UsageError for an unknown one; RecalcdError while it owes something, or when writers are in the way.
    """
    await find_topic(connection, name)
    try:
        async with transaction(connection):
            return Owed(**await one_row(connection, REMOVE_TOPIC, name, lose_events))
    except asyncpg.LockNotAvailableError:
        raise RecalcdError(
            "Writers or daemons were in the way for a second, and nothing was removed. Try again."
        ) from None
    except asyncpg.PostgresError as error:
        if error.sqlstate != _OWES:
            raise
        refuse_loss(name, await owed(connection, name), lose_events=False)  # it came while we asked
        raise
