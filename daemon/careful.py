"""Careful mode: find the guilty keys of a batch that failed, commit the others, and note what the guilty are owed.

Every part is a transaction of its own, so that good keys are fresh as soon as they are known to be good, and giving up
half-way (because the daemon stops, or the connection breaks) loses nothing.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

import asyncpg

from daemon import claim as outbox
from daemon.batch import Batch, CallFailed, Recalculation
from daemon.database import transaction
from daemon.errors import Blame
from daemon.sql import statement

FAIL_KEY = statement("fail_key")
ACQUIT_KEYS = statement("acquit_keys")
GOT_THROUGH = statement("got_through")
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


@dataclass
class CarefulRun:
    """Runs a failed claim's keys again in ever smaller parts."""

    recalculation: Recalculation
    connection: asyncpg.Connection
    report: Callable[[Outcome], None]
    """Told of every part that commits, and of every guilty key."""
    stopping: Callable[[], bool] = lambda: False
    others_passed: bool = False
    """Whether other keys were recalculated since this failed first: the server's trouble is then rather the key's."""
    _held: CallFailed | None = field(default=None, init=False)
    """Of a key alone, in what looks like the server's or the topic's trouble, while no other key has passed since."""

    async def run(self, failure: CallFailed) -> None:
        """Leave no key of the claim behind but those that somebody else holds.

        Raises CallFailed when it is the server's or the topic's fault after all: what is left stays in the outbox.
        """
        parts = await self._divide(failure)
        while parts and not self.stopping():
            try:
                await self._try(failure.claim.topic, parts.pop())
            except CallFailed as again:
                if again.vanished or again.blame is Blame.TOPIC or self._is_nobodys(again):
                    raise
                parts.extend(await self._divide(again))
        if self._held and not parts:
            await self._note(self._held, charge=await self._did_others_pass(self._held))

    async def _try(self, topic: str, keys: list[str]) -> None:
        batch = await self.recalculation.named_keys(self.connection, topic, keys)
        self.report(batch)
        if batch.claim.keys and self._held:
            held, self._held = self._held, None
            await self._note(held, charge=True)

    def _is_nobodys(self, failure: CallFailed) -> bool:
        """Two parts without a common key failed, and none has passed since: the server or the topic is in trouble."""
        return failure.blame in (Blame.SERVER, Blame.SCHEMA) and self._held is not None

    async def _did_others_pass(self, failure: CallFailed) -> bool:
        """Say whether it is this key's own trouble. What passed of other topics tells nothing of this one's schema."""
        if failure.blame is Blame.SCHEMA and self.recalculation.keep_history:
            return bool(await self.connection.fetchval(GOT_THROUGH, failure.claim.topic, *failure.claim.keys))
        return self.others_passed

    async def _divide(self, failure: CallFailed) -> list[list[str]]:
        """Return the parts to try next; none when the guilty key is alone, which is noted."""
        keys = failure.claim.keys
        await self.connection.execute(ACQUIT_KEYS, failure.claim.topic, keys)
        if len(keys) > 1:
            return _parts(keys, 1 if failure.sqlstate == QUERY_CANCELED else (len(keys) + 1) // 2)
        if failure.blame in (Blame.SERVER, Blame.SCHEMA):
            self._held = failure
        else:
            await self._note(failure, charge=failure.blame is not Blame.CONTENTION)
        return []

    async def _note(self, failure: CallFailed, *, charge: bool) -> None:
        if noted := await _note(self.connection, failure, charge=charge):
            self.report(noted)


def _parts(keys: list[str], size: int) -> list[list[str]]:
    """Split: in halves, since log n calls find a guilty key; after a timeout one by one, since each costs a timeout.

    In any order: a guilty key whose part always came first would pass for the server's trouble.
    """
    parts = [keys[start : start + size] for start in range(0, len(keys), size)]
    random.shuffle(parts)
    return parts


async def _note(connection: asyncpg.Connection, failure: CallFailed, *, charge: bool) -> Failure | None:
    """Move the key's events into its failure row. None when the key is busy now."""
    error, (key,) = failure.error, failure.claim.keys
    async with transaction(connection):
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
