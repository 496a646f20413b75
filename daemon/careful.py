"""Careful mode: find the guilty keys of a batch that failed, commit the others, and note what the guilty are owed.

Every part is a transaction of its own, so that good keys are fresh as soon as they are known to be good, and giving up
half-way (because the daemon stops, or the connection breaks) loses nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from daemon import claim as outbox
from daemon.batch import Batch, CallFailed, Recalculation
from daemon.database import transaction
from daemon.errors import Blame
from daemon.sql import statement

FAIL_KEY = statement("fail_key")
ACQUIT_KEYS = statement("acquit_keys")
QUERY_CANCELED = "57014"


@dataclass(frozen=True, slots=True)
class Failure:
    """What outbox.failure now says of a key."""

    topic: str
    key: str
    error: BaseException
    state: str
    attempts: int
    next_attempt_at: datetime


Outcome = Batch | Failure


async def run_carefully(
    recalculation: Recalculation,
    connection: asyncpg.Connection,
    failure: CallFailed,
    *,
    report: Callable[[Outcome], None],
    stopping: Callable[[], bool],
) -> None:
    """Run a failed claim's keys again in ever smaller parts; report every part that commits.

    Raises CallFailed when it is the server's or the topic's fault after all: what is left stays in the outbox.
    """
    parts = await _divide(connection, failure, report)
    while parts and not stopping():
        try:
            report(await recalculation.named_keys(connection, failure.claim.topic, parts.pop()))
        except CallFailed as again:
            if again.blame in (Blame.SERVER, Blame.TOPIC):
                raise
            parts.extend(await _divide(connection, again, report))


async def _divide(
    connection: asyncpg.Connection, failure: CallFailed, report: Callable[[Outcome], None]
) -> list[list[str]]:
    """Return the parts to try next, the first of them last; none when the guilty key is alone, which is noted."""
    keys = failure.claim.keys
    if len(keys) == 1:
        noted = await _note(connection, failure)
        if noted:
            report(noted)
        return []
    await connection.execute(ACQUIT_KEYS, failure.claim.topic, keys)
    return list(_parts(keys, 1 if failure.sqlstate == QUERY_CANCELED else (len(keys) + 1) // 2))


def _parts(keys: list[str], size: int) -> Iterator[list[str]]:
    """Split: in halves, since log n calls find a guilty key; after a timeout one by one, since each costs a timeout."""
    for start in reversed(range(0, len(keys), size)):
        yield keys[start : start + size]


async def _note(connection: asyncpg.Connection, failure: CallFailed) -> Failure | None:
    """Move the key's events into its failure row; contention is not charged. None when the key is busy now."""
    error, (key,) = failure.error, failure.claim.keys
    async with transaction(connection):
        claim = await outbox.claim_keys(connection, failure.claim.topic, [key])
        if not claim.keys:
            return None
        row = await connection.fetchrow(
            FAIL_KEY,
            claim.topic,
            key,
            failure.blame is not Blame.CONTENTION,
            claim.event_count,
            failure.sqlstate,
            getattr(error, "message", str(error)),
            getattr(error, "detail", None),
            getattr(error, "hint", None),
            getattr(error, "context", None),
        )
        if row is None:  # the topic was removed meanwhile, and its events with it
            return None
    return Failure(claim.topic, key, error, **row)
