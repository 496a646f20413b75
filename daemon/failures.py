"""`recalcd failures`: the keys whose recalculation fails, retrying and dead."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import asyncpg

from daemon.database import one_row, transaction
from daemon.errors import UsageError
from daemon.keys import Topic
from daemon.sql import statement

LIST_FAILURES = statement("list_failures")
COUNT_FAILURES = statement("count_failures")
FIND_FAILURE = statement("find_failure")
FAILING_AMONG = statement("failing_among")
DROP_FAILURES = statement("drop_failures")
LIST_DEAD_KEYS = statement("list_dead_keys")
CHUNK_KEYS = 500
"""Each key of a drop holds a lock until its commit."""

State = Literal["retrying", "dead"]


@dataclass(frozen=True, slots=True)
class Failure:
    """A key whose recalculation fails, and the last error in full. Detail may hold row values: for operators only."""

    topic: str
    key: str
    state: State
    attempts: int
    event_count: int
    first_failed_at: datetime
    last_failed_at: datetime
    next_attempt_at: datetime
    sqlstate: str | None
    message: str | None
    detail: str | None
    hint: str | None
    context: str | None
    failing_s: float
    next_attempt_s: float


@dataclass(frozen=True, slots=True)
class FailureList:
    """Failures, the longest failing first, and how many there are in all."""

    retrying_count: int
    dead_count: int
    failures: list[Failure]


async def list_failures(
    connection: asyncpg.Connection, topic: Topic | None, state: State | None, *, limit: int
) -> FailureList:
    """Return at most `limit` failures, of one topic or of all, in one state or in both."""
    name = topic.name if topic else None
    counts = await one_row(connection, COUNT_FAILURES, name, state)
    rows = await connection.fetch(LIST_FAILURES, name, state, limit)
    return FailureList(counts["retrying_count"], counts["dead_count"], [Failure(**row) for row in rows])


async def find_failure(connection: asyncpg.Connection, topic: str, key: str) -> Failure | None:
    """Return the failure of a key; None when it does not fail."""
    row = await connection.fetchrow(FIND_FAILURE, topic, key)
    return Failure(**row) if row else None


async def show(connection: asyncpg.Connection, topic: Topic, key: str) -> Failure:
    """Return the failure of a key. Raises UsageError when it does not fail."""
    found = await find_failure(connection, topic.name, key)
    if found is None:
        raise UsageError(f"Key {key!r} of topic {topic.name!r} does not fail; see `recalcd failures list`.")
    return found


async def choose(connection: asyncpg.Connection, topic: Topic, named: Sequence[str], *, dead: bool) -> list[str]:
    """Return the failing keys that were asked for: those named, or all dead ones, not both.

    Raises UsageError for a named key that does not fail.
    """
    if bool(named) == dead:
        raise UsageError("Say which failures to drop: KEYs, or --dead for all dead ones of the topic; not both.")
    if dead:
        return [row["key"] for row in await connection.fetch(LIST_DEAD_KEYS, topic.name)]
    failing = [row["key"] for row in await connection.fetch(FAILING_AMONG, topic.name, list(named))]
    if healthy := sorted(set(named) - set(failing)):
        raise UsageError(f"Nothing was dropped: key {healthy[0]!r} of topic {topic.name!r} does not fail.")
    return failing


async def drop(connection: asyncpg.Connection, topic: Topic, keys: Sequence[str]) -> list[str]:
    """Forget that keys failed; return those that still did. They stay as stale as they are until their next event."""
    dropped: list[str] = []
    for start in range(0, len(keys), CHUNK_KEYS):
        async with transaction(connection):
            dropped += await connection.fetchval(DROP_FAILURES, topic.name, keys[start : start + CHUNK_KEYS])
    return dropped
