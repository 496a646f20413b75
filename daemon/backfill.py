"""`recalcd backfill`: recalculate keys because they exist, not because an event says so."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import asyncpg
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from daemon import telemetry
from daemon.batch import Batch, CallFailed, Recalculation, prepare_history
from daemon.careful import Failure, Outcome, run_carefully
from daemon.errors import Blame
from daemon.keys import Topic, pages
from daemon.telemetry import log, span

CONTENTION_TRIES = 10


@dataclass
class Tally:
    """What a backfill did."""

    done_count: int = 0
    changed_count: int = 0
    left_count: int = 0
    """Keys that others are working on at the moment, or that are in backoff: they are being seen to."""
    failed: list[str] = field(default_factory=list)
    """Keys whose recalculation failed; each has a row in outbox.failure now, and is retried by the daemon."""


@dataclass
class Backfiller:
    """Recalculates keys a page at a time, each page a transaction; safe to repeat, and beside live traffic."""

    connection: asyncpg.Connection
    topic: Topic
    keep_history: bool = True
    advanced: Callable[[int], None] = lambda _: None
    """Told of every number of keys that are done."""
    tally: Tally = field(default_factory=Tally)

    async def run(self, named: Sequence[str] = ()) -> Tally:
        """Recalculate the named keys, or all that the topic lists."""
        log.info(telemetry.BACKFILL_STARTED, topic=self.topic.name)
        if self.keep_history:
            await prepare_history(self.connection, days_ahead=1)
        async for page in pages(self.connection, self.topic, named):
            with span(f"backfill.{self.topic.name}", "outbox.recalculate", key_count=len(page)):
                await self._recalculate(page)
            self.advanced(len(page))
        log.info(
            telemetry.BACKFILL_FINISHED,
            topic=self.topic.name,
            done_count=self.tally.done_count,
            changed_count=self.tally.changed_count,
            failed_count=len(self.tally.failed),
        )
        return self.tally

    async def _recalculate(self, page: list[str]) -> None:
        recalculation = Recalculation(daemon_id=None, kind="backfill", keep_history=self.keep_history)
        retrying = AsyncRetrying(
            wait=wait_random_exponential(multiplier=0.05, max=1),
            retry=retry_if_exception(_is_contention),
            stop=stop_after_attempt(CONTENTION_TRIES),
            reraise=True,
        )
        try:
            batch: Batch = await retrying(recalculation.named_keys, self.connection, self.topic.name, page)
        except CallFailed as failure:
            if failure.blame in (Blame.SERVER, Blame.TOPIC):
                raise failure.error from None
            await run_carefully(recalculation, self.connection, failure, report=self._count, stopping=lambda: False)
        else:
            self._count(batch)
            self.tally.left_count += len(page) - len(batch.claim.keys)

    def _count(self, outcome: Outcome) -> None:
        if isinstance(outcome, Failure):
            self.tally.failed.append(outcome.key)
        else:
            self._count_batch(outcome)

    def _count_batch(self, batch: Batch) -> None:
        self.tally.done_count += len(batch.claim.keys)
        self.tally.changed_count += len(batch.changed_keys or [])


def _is_contention(error: BaseException) -> bool:
    return isinstance(error, CallFailed) and error.blame is Blame.CONTENTION
