"""`recalcd backfill`: recalculate keys because they exist, not because an event says so."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import asyncpg
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from daemon import claim as outbox
from daemon import jobs, scope
from daemon.batch import CallFailed, Recalculation, prepare_history
from daemon.careful import CarefulRun, Failure, Outcome
from daemon.database import transaction
from daemon.errors import Blame
from daemon.job_runner import Chunk, Counts, JobRunner, Note, pace_of
from daemon.jobs import Job
from daemon.keys import Topic
from daemon.pace import FIRST_CHUNK_KEYS
from daemon.scope import Scope
from daemon.settings import Settings
from daemon.sql import statement

HAND_OVER_KEYS = statement("hand_over_keys")
SUSPECT_KEYS = statement("suspect_keys")
SUSPECTS_AMONG = statement("suspects_among")
TRIES = 10
"""Of a chunk that fails for a reason that usually passes, before its keys are tried one by one."""
PARTITIONS_S = 3600.0
TARGET_S: float = Settings.model_fields["batch_target_s"].default


@dataclass
class Backfiller:
    """Recalculates chunks of keys, each in one transaction with the job's cursor; safe beside live traffic.

    A key that others are at work on is not waited for: it gets an event, and the daemon does it after them.
    """

    connection: asyncpg.Connection
    topic: Topic
    keep_history: bool = True
    advanced: Callable[[int], None] = lambda _: None
    """Told of every number of keys that are done."""
    _partitions_at: float = field(default=0.0, init=False)

    async def run(self, named: Sequence[str] = ()) -> Job:
        """Recalculate the named keys, or all that the topic lists, as a job of our own; return it as it ended."""
        about = Scope(list(dict.fromkeys(named)) or None)
        key_count = await scope.count(self.connection, self.topic, about)
        chunk_keys = min(FIRST_CHUNK_KEYS, self.topic.batch_keys)
        job = await jobs.create(
            self.connection, "backfill", self.topic, about, key_count=key_count, chunk_keys=chunk_keys
        )
        async with jobs.holding(self.connection, job.job_id):
            pace = pace_of(job, self.topic, TARGET_S)
            return await JobRunner(self.connection, job, self, pace, TARGET_S, self.advanced).run()

    async def do(self, chunk: Chunk, note: Note) -> None:
        """Recalculate a chunk, but for keys that have an event.

        Raises CallFailed when the session is gone, maybe for one of the keys; asyncpg's errors when none is to blame.
        """
        await self._prepare_history()
        retrying = AsyncRetrying(
            wait=wait_random_exponential(multiplier=0.05, max=1),
            retry=retry_if_exception(_may_pass),
            stop=stop_after_attempt(TRIES),
            reraise=True,
        )
        try:
            await retrying(self._at_once, chunk, note)
        except CallFailed as failure:
            if failure.vanished:
                raise
            if failure.blame is Blame.TOPIC:
                raise failure.error from None
            await self._carefully(chunk, note, failure)

    async def _prepare_history(self) -> None:
        """Make the partitions, and again for the days that a long job sees."""
        if self.keep_history and time.monotonic() >= self._partitions_at:
            await prepare_history(self.connection, days_ahead=1)
            self._partitions_at = time.monotonic() + PARTITIONS_S

    async def _at_once(self, chunk: Chunk, note: Note) -> None:
        """Recalculate the chunk and move the cursor, in one transaction."""
        async with self._recalculation.transaction(self.connection):
            keys = [key for key in chunk.keys if key not in chunk.pending]
            suspects = {row["key"] for row in await self.connection.fetch(SUSPECTS_AMONG, self.topic.name, keys)}
            innocent = [key for key in keys if key not in suspects]  # the daemon knows how to single the others out
            claim = await outbox.claim_keys(self.connection, self.topic.name, innocent)
            changed_count = 0
            if claim.keys:
                batch = await self._recalculation.call(self.connection, claim)
                await self._recalculation.settle(self.connection, batch)
                changed_count = len(batch.changed_keys or [])
            await self._hand_over(set(keys) - set(claim.keys))
            await note(Counts(changed_count, skipped=len(chunk.keys) - len(claim.keys)))

    async def _carefully(self, chunk: Chunk, note: Note, failure: CallFailed) -> None:
        """Find the guilty keys, recalculate the others, each part in a transaction; move the cursor at the end."""
        outcomes: list[Outcome] = []
        try:
            await CarefulRun(self._recalculation, self.connection, outcomes.append).run(failure)
        except CallFailed as again:
            if again.vanished:
                raise
            raise again.error from None
        failed = {each.key for each in outcomes if isinstance(each, Failure)}
        batches = [each for each in outcomes if not isinstance(each, Failure)]
        done = {key for batch in batches for key in batch.claim.keys}
        left = set(chunk.keys) - failed - done
        changed_count = sum(len(batch.changed_keys or []) for batch in batches)
        async with transaction(self.connection):
            await self._hand_over(left - chunk.pending)
            await note(Counts(changed_count, skipped=len(left), failed=len(failed)))

    @property
    def _recalculation(self) -> Recalculation:
        return Recalculation(daemon_id=None, kind="backfill", keep_history=self.keep_history)

    async def _hand_over(self, keys: Iterable[str]) -> None:
        if left := sorted(keys):
            await self.connection.execute(HAND_OVER_KEYS, self.topic.name, left)


def _may_pass(error: BaseException) -> bool:
    if not isinstance(error, CallFailed) or error.vanished:
        return False
    return error.blame in (Blame.CONTENTION, Blame.SERVER)
