"""A worker: one claim connection, one batch after the other, and what becomes of batches that fail."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import asyncpg
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_when_event_set, wait_random_exponential

from daemon import telemetry
from daemon.batch import Batch, CallFailed, Recalculation
from daemon.careful import ACQUIT_KEYS, Failure, Outcome, run_carefully
from daemon.claim import Claim
from daemon.database import DATABASE_ERRORS, close, had_last_words, sqlstate_of
from daemon.doorbell import Activity, Alarm
from daemon.errors import Blame, DatabaseUnavailable, blame
from daemon.hints import Hints
from daemon.session import Session, brief_session, open_session
from daemon.settings import Settings
from daemon.sql import statement
from daemon.telemetry import log

SUSPECT_KEYS = statement("suspect_keys")
CONTENTION_TRIES = 3
"""Batches in a row that may fail for somebody else's lock before careful mode lets the others pass."""
BROKEN_TOPIC_PAUSE_S = 30.0
_NO_PARTITION = "23514"  # at settling: the history has no partition for today


@dataclass
class Shared:
    """What the workers of one daemon have in common."""

    settings: Settings
    daemon_id: UUID
    alarm: Alarm
    activity: Activity
    hints: Hints
    housekeeping: asyncio.Event
    """Set when the housekeeper should look at once."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    is_cautious: bool = False
    """A daemon vanished lately, or keys are suspected of it: write down what is about to be called."""


class Worker:
    """Runs batches until told to stop."""

    def __init__(self, shared: Shared) -> None:
        """Connect at the first batch."""
        self._shared = shared
        self._recalculation = Recalculation(shared.daemon_id, "live", keep_history=shared.settings.history_days > 0)
        self._session: Session | None = None
        self._vanished: CallFailed | None = None
        self._marked: Claim | None = None
        self._after = ""
        self._retries_first = False
        self._contended = 0
        self.has_batch_in_hand = False

    async def run(self) -> None:
        """Work when the alarm rings, until nothing is left."""
        try:
            while not self._shared.stopping.is_set():
                await self._shared.alarm.wait()
                while not self._shared.stopping.is_set() and await self._patiently(self._turn):
                    pass
        finally:
            await self._disconnect()

    async def _patiently(self, step: Callable[[], Awaitable[bool]]) -> bool:
        """Retry a step for ever while the server is in trouble; false also when told to stop meanwhile."""
        shared = self._shared
        retrying = AsyncRetrying(
            wait=wait_random_exponential(multiplier=0.05, max=shared.settings.retry_max_s),
            retry=retry_if_exception(_will_pass),
            stop=stop_when_event_set(shared.stopping),  # type: ignore[arg-type]  # asks is_set() only
            sleep=self._pause,
            before_sleep=_log_retry,
            reraise=True,
        )
        try:
            return await retrying(step)
        except Exception as error:
            if shared.stopping.is_set() and _will_pass(error):
                return False
            raise

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._shared.stopping.wait(), seconds)

    async def _turn(self) -> bool:
        """Run one batch; false when there is nothing to do."""
        session = await self._connected()
        async with session.watched(self._shared.settings) as connection:
            return await self._batch(connection)

    async def _batch(self, connection: asyncpg.Connection) -> bool:
        started = time.monotonic()
        try:
            self.has_batch_in_hand = True
            batch = await self._next_batch(connection)
        except CallFailed as failure:
            self._came_back(failure)
            await self._judge(connection, failure)
            return True
        except DATABASE_ERRORS as error:
            self._came_back(error)
            if self._marked and not connection.is_closed():
                await self._acquit(connection, self._marked)
            raise
        finally:
            self.has_batch_in_hand = False
        self._contended = 0
        if batch is None:
            return self._shared.hints.found_nothing(time.monotonic())
        self._after = batch.claim.topic
        self._report(batch)
        self._remember(batch, time.monotonic() - started)
        return True

    async def _next_batch(self, connection: asyncpg.Connection) -> Batch | None:
        self._retries_first = not self._retries_first
        recalculation = self._recalculation
        if self._shared.is_cautious:
            recalculation = recalculation.watched_by(self._mark)
        self._marked = None
        return await recalculation.next_batch(
            connection,
            self._shared.hints.for_claim(time.monotonic()),
            after=self._after,
            retries_first=self._retries_first,
        )

    async def _connected(self) -> Session:
        """Return a session that works; when one was lost, clear up behind it first."""
        session = self._session
        if session is None or session.connection.is_closed():
            found = await open_session(self._shared.settings, application_name="recalcd worker")
            try:
                async with found.watched(self._shared.settings):
                    await self._clear_up(session, found)
            except BaseException:
                found.connection.terminate()
                raise
            session = self._session = found
        return session

    async def _clear_up(self, lost: Session | None, found: Session) -> None:
        """Free what a lost session still holds; suspect the keys that vanished with it, if they may be why."""
        if lost:
            await found.end_lost(lost)
        if lost and self._vanished:
            claim = self._vanished.claim
            if not had_last_words(self._vanished.error) and found.is_same_run(lost):
                await self._acquit(found.connection, claim)  # no backend crashed: the link to it broke
            elif claim is not self._marked and found.server_started_at == lost.server_started_at:
                await found.connection.execute(SUSPECT_KEYS, claim.topic, claim.keys)
                self._shared.is_cautious = True
        self._vanished = None

    async def _disconnect(self) -> None:
        if self._session is not None:
            await close(self._session.connection)

    async def _mark(self, claim: Claim) -> None:
        """Write down, in a transaction of its own, whom we are about to call: if we vanish, they were there."""
        async with brief_session(self._shared.settings, application_name="recalcd witness") as witness:
            await witness.execute(SUSPECT_KEYS, claim.topic, claim.keys)
        self._marked = claim

    @staticmethod
    async def _acquit(connection: asyncpg.Connection, claim: Claim) -> None:
        """Clear keys of suspicion: whatever went wrong, the server told us so, and the backend is still there."""
        await connection.execute(ACQUIT_KEYS, claim.topic, claim.keys)

    def _came_back(self, error: BaseException) -> None:
        """Draw the consequences of a rolled back batch that need no database."""
        self._shared.hints.forget_marks()
        if isinstance(error, CallFailed) and error.vanished:
            self._vanished = error
        elif blame(sqlstate_of(error)) is Blame.SIZE:
            self._shared.hints.halve_all()
        if sqlstate_of(error) == _NO_PARTITION:
            self._shared.housekeeping.set()

    async def _judge(self, connection: asyncpg.Connection, failure: CallFailed) -> None:
        """Find out whose fault it is, and act on it. Raises the failure when trying again is all there is to do."""
        claim = failure.claim
        facts = {"topic": claim.topic, "key_count": len(claim.keys), "blame": failure.blame.value}
        log.warning(
            telemetry.BATCH_VANISHED if failure.vanished else telemetry.BATCH_FAILED,
            **facts,
            **telemetry.error_keys(failure.error),
        )
        if not failure.vanished:
            await self._acquit(connection, claim)
        match failure.blame:
            case Blame.SERVER:
                raise failure
            case Blame.TOPIC:
                self._leave_alone(failure)
                return
            case Blame.CONTENTION if self._contended < CONTENTION_TRIES:
                self._contended += 1
                raise failure
            case Blame.SIZE:
                self._shared.hints.halve(claim.topic, len(claim.keys))
        await self._run_carefully(connection, failure)

    async def _run_carefully(self, connection: asyncpg.Connection, failure: CallFailed) -> None:
        self._contended = 0
        self.has_batch_in_hand = True
        recalculation = self._recalculation.watched_by(self._mark if self._shared.is_cautious else None)
        try:
            await run_carefully(
                recalculation, connection, failure, report=self._report, stopping=self._shared.stopping.is_set
            )
        except CallFailed as again:
            self._came_back(again)
            if not again.vanished:
                await self._acquit(connection, again.claim)
            if again.blame is not Blame.TOPIC:
                raise
            self._leave_alone(again)
        finally:
            self.has_batch_in_hand = False

    def _leave_alone(self, failure: CallFailed) -> None:
        """Leave a topic alone whose procedure can't be called at all."""
        self._shared.hints.skip(failure.claim.topic, time.monotonic() + BROKEN_TOPIC_PAUSE_S)
        log.error(
            telemetry.TOPIC_BROKEN,
            topic=failure.claim.topic,
            retry_s=BROKEN_TOPIC_PAUSE_S,
            **telemetry.error_keys(failure.error),
        )

    def _remember(self, batch: Batch, seconds: float) -> None:
        claim, hints = batch.claim, self._shared.hints
        hints.claimed(claim.topic, claim.head_event_id, time.monotonic())
        if not claim.suspects:
            hints.took(claim.topic, len(claim.keys), seconds, is_full=claim.is_full)
        if claim.is_full:
            self._shared.alarm.ring()  # there is more: another worker may help

    def _report(self, outcome: Outcome) -> None:
        self._shared.activity.worked()
        if isinstance(outcome, Failure):
            _log_failure(outcome)
        else:
            _log_batch(outcome)


def _will_pass(error: BaseException) -> bool:
    """Say whether an error is the server's trouble or contention: anything else ends the daemon."""
    if isinstance(error, CallFailed):
        return error.blame in (Blame.SERVER, Blame.CONTENTION)
    if isinstance(error, DatabaseUnavailable):
        return True
    if not isinstance(error, DATABASE_ERRORS):
        return False
    sqlstate = sqlstate_of(error)
    return sqlstate == _NO_PARTITION or blame(sqlstate) in (Blame.SERVER, Blame.CONTENTION, Blame.SIZE)


def _log_retry(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    wait_s = state.next_action.sleep if state.next_action else 0.0
    cause = error.error if isinstance(error, CallFailed) else error
    if cause is not None:
        facts = telemetry.error_keys(cause)
        log.warning(telemetry.BATCH_RETRIED, attempt=state.attempt_number, wait_s=round(wait_s, 3), **facts)


def _log_failure(failure: Failure) -> None:
    died = failure.state == "dead"
    log.warning(
        telemetry.KEY_DIED if died else telemetry.KEY_FAILED,
        topic=failure.topic,
        key=failure.key,
        attempts=failure.attempts,
        next_attempt_at=failure.next_attempt_at,
        will_retry=not died,
        **telemetry.error_keys(failure.error),
    )


def _log_batch(batch: Batch) -> None:
    claim = batch.claim
    facts: dict[str, Any] = {
        "topic": claim.topic,
        "key_count": len(claim.keys),
        "event_count": claim.event_count,
        "folded_count": claim.folded_count,
        "changed_count": None if batch.changed_keys is None else len(batch.changed_keys),
        "recalculate_ms": round(batch.recalculate_ms, 3),
    }
    if claim.oldest_event_at:
        facts["wait_ms"] = round((claim.started_at - claim.oldest_event_at).total_seconds() * 1000, 3)
    log.info(telemetry.BATCH_COMMITTED, **facts)
