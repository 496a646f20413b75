"""Careful mode: find the guilty keys of a batch that failed, commit the others, and note what the guilty are owed.

Every part is a transaction of its own, so that good keys are fresh as soon as they are known to be good, and giving up
half-way (because the daemon stops, or the connection breaks) loses nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from daemon import claim as outbox
from daemon.batch import Batch, CallFailed, Recalculation, TopicFailed
from daemon.database import transaction
from daemon.errors import Blame
from daemon.sql import statement

FAIL_KEY = statement("fail_key")
ACQUIT_KEYS = statement("acquit_keys")
GOT_THROUGH = statement("got_through")
QUERY_CANCELED = "57014"
UNSOUND_KEYS = 5
"""Keys that miss a table, a column or a privilege, each alone, before any has got through: then the topic lacks it."""


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
    unsound_count = 0
    is_sound = not recalculation.keep_history  # what got through before, only the history could tell
    parts = await _divide(connection, failure, report, is_sound=is_sound)
    while parts and not stopping():
        try:
            batch = await recalculation.named_keys(connection, failure.claim.topic, parts.pop())
        except CallFailed as again:
            if again.blame in (Blame.SERVER, Blame.TOPIC):
                raise
            parts.extend(await _divide(connection, again, report, is_sound=is_sound))
            unsound_count += again.is_unsound and len(again.claim.keys) == 1
            if unsound_count == UNSOUND_KEYS and not is_sound:
                raise TopicFailed(again.claim, again.error) from again
        else:
            report(batch)
            is_sound = is_sound or bool(batch.claim.keys)


async def _divide(
    connection: asyncpg.Connection, failure: CallFailed, report: Callable[[Outcome], None], *, is_sound: bool
) -> list[list[str]]:
    """Return the parts to try next, the first of them last; none when the guilty key is alone, which is noted."""
    keys = failure.claim.keys
    if len(keys) == 1:
        noted = await _note(connection, failure, is_sound=is_sound)
        if noted:
            report(noted)
        return []
    await connection.execute(ACQUIT_KEYS, failure.claim.topic, keys)
    return list(_parts(keys, 1 if failure.sqlstate == QUERY_CANCELED else (len(keys) + 1) // 2))


def _parts(keys: list[str], size: int) -> Iterator[list[str]]:
    """Split: in halves, since log n calls find a guilty key; after a timeout one by one, since each costs a timeout."""
    for start in reversed(range(0, len(keys), size)):
        yield keys[start : start + size]


async def _note(connection: asyncpg.Connection, failure: CallFailed, *, is_sound: bool) -> Failure | None:
    """Move the key's events into its failure row. None when the key is busy now.

    Contention is not charged; nor is what the whole topic may lack, until another key has got through without it.
    """
    error, (key,) = failure.error, failure.claim.keys
    async with transaction(connection):
        charge = failure.blame is not Blame.CONTENTION
        if failure.is_unsound and not is_sound:
            charge = await connection.fetchval(GOT_THROUGH, failure.claim.topic, key)
        claim = await outbox.claim_keys(connection, failure.claim.topic, [key])
        if not claim.keys:
            return None
        row = await connection.fetchrow(
            FAIL_KEY,
            claim.topic,
            key,
            charge,
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
