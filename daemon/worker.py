"""A worker: one claim connection, one batch after the other, and what becomes of batches that fail."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_when_event_set, wait_random_exponential

from daemon import telemetry
from daemon.batch import NO_PARTITION, STATEMENTS_GONE, Batch, CallFailed, Recalculation
from daemon.careful import ACQUIT_KEYS, QUERY_CANCELED, CarefulRun, Failure, Outcome
from daemon.claim import Claim
from daemon.database import DATABASE_ERRORS, blame_of, close, had_last_words, sqlstate_of
from daemon.doorbell import Activity, Alarm
from daemon.errors import FORBIDDEN, NOTIFY_QUEUE_FULL, Blame, DatabaseUnavailable
from daemon.hints import Hints
from daemon.one_statement import OneStatement
from daemon.pulse import Pulse, step_s
from daemon.session import Session, brief_session, open_session
from daemon.settings import Settings
from daemon.sql import statement
from daemon.telemetry import log
from daemon.trouble import Trouble

if TYPE_CHECKING:
    from daemon.metrics import Metrics

SUSPECT_KEYS = statement("suspect_keys")
EXCUSE_KEYS = statement("excuse_keys")
# Outside the recalculation no key can be at fault: somebody makes the partition, reads the queue, grants again, or
# cancelled what he need not have.
_PASSES_HERE = frozenset({NO_PARTITION, STATEMENTS_GONE, NOTIFY_QUEUE_FULL, FORBIDDEN, QUERY_CANCELED})
EXCUSE_S = 2.0
"""How long a worker that stops may take to excuse the keys of the batch that it gave up."""
_CRASHED_FOR_ANOTHER = ("57P01", "57P02")
"""What a server says to its sessions, as a warning, before it ends them all: none of them is to blame."""


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
    metrics: "Metrics | None" = None
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    is_cautious: bool = False
    """A daemon vanished lately, or keys are suspected of it: write down what is about to be called."""
    committed_count: int = 0
    """Batches with keys that this daemon has committed."""
    freshness_s: float | None = None
    """That of the last live batch."""


class Worker:
    """Runs batches until told to stop."""

    def __init__(self, shared: Shared) -> None:
        """Connect at the first batch."""
        self._shared = shared
        self._recalculation = Recalculation(
            shared.daemon_id, "live", keep_history=shared.settings.history_days > 0, claimed=self._call_for_help
        )
        self._session: Session | None = None
        self._at_once: OneStatement | None = None
        """What runs batches in one statement; None where that can't be."""
        self._vanished: CallFailed | None = None
        self._is_excused = False
        self._marked: Claim | None = None
        self._after = ""
        self._retries_first = False
        self._sweeping: str | None = None
        """The topic whose events below the mark the last claim was for."""
        self._troubles: defaultdict[str, Trouble] = defaultdict(Trouble)
        self.has_batch_in_hand = False
        self.pulse = Pulse("worker", step_s(shared.settings))

    async def run(self) -> None:
        """Work when the alarm rings, until nothing is left."""
        try:
            while not self._shared.stopping.is_set():
                self.pulse.rest()
                await self._shared.alarm.wait()
                while not self._shared.stopping.is_set() and await self._patiently(self._turn):
                    pass
        finally:
            await self._disconnect()
            await self._excuse_at_parting()
            self.pulse.rest()

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
        self.pulse.beat(seconds)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._shared.stopping.wait()

    async def _turn(self) -> bool:
        """Run one batch; false when there is nothing to do."""
        self.pulse.beat()
        with self._shared.activity.batch_in_hand():
            session = await self._connected()
            async with session.watched(self._shared.settings, self.pulse.beat) as connection:
                return await self._run_batch(connection)

    async def _run_batch(self, connection: asyncpg.Connection) -> bool:
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
        if batch is None:
            return self._sweeping is not None or self._shared.hints.found_nothing(time.monotonic())
        self._after = batch.claim.topic
        self._report(batch)
        self._remember(batch, time.monotonic() - started)
        return True

    async def _next_batch(self, connection: asyncpg.Connection) -> Batch | None:
        self._marked = None
        now, hints = time.monotonic(), self._shared.hints
        self._sweeping = None if self._sweeping else hints.next_sweep(now)  # by turns with new events
        if not self._sweeping:
            self._retries_first = not self._retries_first
        remembered = hints.for_claim(now, sweep=self._sweeping)
        retries_first = self._retries_first and not self._sweeping
        if self._at_once and not self._shared.is_cautious:
            return await self._at_once.next_batch(remembered, after=self._after, retries_first=retries_first)
        recalculation = self._recalculation.watched_by(self._mark if self._shared.is_cautious else None)
        return await recalculation.next_batch(connection, remembered, after=self._after, retries_first=retries_first)

    async def _connected(self) -> Session:
        """Return a session that works; when one was lost, clear up behind it first."""
        session = self._session
        if session is None or not session.can_write:
            await self._disconnect()
            found = await open_session(self._shared.settings, application_name="recalcd worker")
            try:
                async with found.watched(self._shared.settings, self.pulse.beat):
                    await self._clear_up(session, found)
            except BaseException:
                found.connection.terminate()
                raise
            found.connection.add_log_listener(self._hear)
            session = self._session = found
            self._at_once = OneStatement(self._recalculation, found.connection) if found.is_direct else None
        return session

    async def _clear_up(self, lost: Session | None, found: Session) -> None:
        """Free what a lost session still holds; judge the keys of a batch that vanished with it."""
        if lost:
            await found.end_lost(lost)
            if self._vanished:
                self._is_excused |= not had_last_words(self._vanished.error) and found.is_same_run(lost)
                restarted = found.server_started_at != lost.server_started_at
                await self._accuse(found.connection, self._vanished, restarted=restarted)
            elif self._marked:  # lost around the call, not in it
                await found.connection.execute(EXCUSE_KEYS, self._marked.topic, self._marked.keys)
        self._vanished, self._is_excused, self._marked = None, False, None

    async def _accuse(self, connection: asyncpg.Connection, vanished: CallFailed, *, restarted: bool) -> None:
        """Suspect the keys of a batch that vanished, unless the server said that it ends others, too.

        A server that stops says so. One that restarted without a word may well have been killed for what a key took:
        where Postgres runs in a container or under systemd, the whole of it goes when one backend runs out of memory.
        """
        claim, is_marked = vanished.claim, vanished.claim is self._marked
        if self._is_excused or (restarted and vanished.sqlstate is not None):
            if is_marked:
                await connection.execute(EXCUSE_KEYS, claim.topic, claim.keys)
        elif not is_marked:
            await connection.execute(SUSPECT_KEYS, claim.topic, claim.keys)
            self._shared.is_cautious = True

    def _hear(self, _: object, message: asyncpg.PostgresLogMessage) -> None:
        self._is_excused |= message.sqlstate in _CRASHED_FOR_ANOTHER

    def _drop_connection(self) -> None:
        if self._session is not None:
            self._session.connection.terminate()

    async def _disconnect(self) -> None:
        if self._session is not None:
            await close(self._session.connection)

    async def _mark(self, claim: Claim) -> None:
        """Write down, in a transaction of its own, whom we are about to call: if we vanish, they were there."""
        async with brief_session(self._shared.settings, application_name="recalcd witness") as witness:
            await witness.execute(SUSPECT_KEYS, claim.topic, claim.keys)
            self._marked = claim

    async def _excuse_at_parting(self) -> None:
        """Excuse the keys of a batch that we gave up ourselves, or whoever starts next would charge them."""
        if self._marked is None or (self._vanished and not self._is_excused):
            return
        with suppress(DatabaseUnavailable, *DATABASE_ERRORS):
            async with (
                asyncio.timeout(EXCUSE_S),
                brief_session(self._shared.settings, application_name="recalcd witness") as witness,
            ):
                await witness.execute(EXCUSE_KEYS, self._marked.topic, self._marked.keys)

    async def _acquit(self, connection: asyncpg.Connection, claim: Claim) -> None:
        """Clear keys of suspicion: whatever went wrong, the server told us so, and the backend is still there."""
        await connection.execute(ACQUIT_KEYS, claim.topic, claim.keys)
        self._marked = None

    def _came_back(self, error: BaseException) -> None:
        """Draw the consequences of a rolled back batch that need no database."""
        self._shared.hints.forget_marks()
        if isinstance(error, CallFailed):
            self._after = error.claim.topic  # the other topics' turn: this one may go on failing
        if isinstance(error, CallFailed) and error.vanished:
            self._vanished = error
            self._drop_connection()  # it may not know yet that it is closed
        elif sqlstate_of(error) == STATEMENTS_GONE:
            self._drop_connection()
        elif blame_of(error) is Blame.SIZE:
            self._shared.hints.halve_all()
        if sqlstate_of(error) == NO_PARTITION:
            self._shared.housekeeping.set()

    async def _judge(self, connection: asyncpg.Connection, failure: CallFailed) -> None:
        """Find out whose fault it is, and act on it. Raises the failure when trying again is all there is to do."""
        claim = failure.claim
        facts: dict[str, Any] = {"topic": claim.topic, "key_count": len(claim.keys), "blame": failure.blame.value}
        if failure.vanished and len(claim.keys) == 1:
            facts["key"] = claim.keys[0]  # the culprit, if it happens again: nobody else was there
        log.warning(
            telemetry.BATCH_VANISHED if failure.vanished else telemetry.BATCH_FAILED,
            **facts,
            **telemetry.error_keys(failure.error),
        )
        if failure.vanished:
            raise failure
        await self._acquit(connection, claim)
        match failure.blame:
            case Blame.TOPIC:
                self._leave_alone(failure)
                return
            case Blame.SERVER | Blame.CONTENTION | Blame.SCHEMA:
                trouble = self._troubles[claim.topic]
                trouble.failed(claim.keys, self._shared.committed_count)
                if not trouble.stays:
                    raise failure
            case Blame.SIZE:
                self._shared.hints.halve(claim.topic, len(claim.keys))
            case Blame.KEYS if failure.sqlstate == QUERY_CANCELED:  # it may have been too much for the time
                self._shared.hints.halve(claim.topic, len(claim.keys))
        await self._run_carefully(connection, failure)

    async def _run_carefully(self, connection: asyncpg.Connection, failure: CallFailed) -> None:
        trouble = self._troubles.pop(failure.claim.topic, Trouble())
        others_passed = trouble.others_passed(self._shared.committed_count)
        self.has_batch_in_hand = True
        recalculation = self._recalculation.watched_by(self._mark if self._shared.is_cautious else None)
        stopping = self._shared.stopping.is_set
        try:
            await CarefulRun(recalculation, connection, self._report, stopping, others_passed).run(failure)
        except CallFailed as again:
            self._came_back(again)
            if not again.vanished:
                await self._acquit(connection, again.claim)
            if again.vanished or again.blame not in (Blame.TOPIC, Blame.SCHEMA):
                raise
            self._leave_alone(again)
        finally:
            self.has_batch_in_hand = False

    def _leave_alone(self, failure: CallFailed) -> None:
        """Leave a topic alone whose procedure can't be called at all."""
        retry_s = self._shared.settings.retry_max_s
        self._shared.hints.skip(failure.claim.topic, time.monotonic() + retry_s)
        log.error(
            telemetry.TOPIC_BROKEN,
            topic=failure.claim.topic,
            retry_s=retry_s,
            **telemetry.error_keys(failure.error),
        )

    def _remember(self, batch: Batch, seconds: float) -> None:
        claim, hints = batch.claim, self._shared.hints
        hints.claimed(claim.topic, claim.head_event_id, time.monotonic())
        if claim.oldest_event_at:
            self._shared.freshness_s = (claim.started_at - claim.oldest_event_at).total_seconds() + seconds
        if claim.topic == self._sweeping:
            hints.swept(claim.topic, claim.head_event_id, time.monotonic(), is_full=claim.is_full)
        if not claim.suspects:
            hints.took(claim.topic, len(claim.keys), seconds, is_full=claim.is_full)

    def _call_for_help(self, claim: Claim) -> None:
        """Wake another worker when there is more than a batch, at once: it need not wait for the end of this one."""
        if claim.is_full:
            self._shared.alarm.ring()

    def _report(self, outcome: Outcome) -> None:
        self._marked = None
        self._shared.activity.stir()
        if self._shared.metrics:
            self._shared.metrics.report(outcome)
        if isinstance(outcome, Failure):
            _log_failure(outcome)
        else:
            self._troubles[outcome.claim.topic].passed(outcome.claim.keys)
            self._shared.committed_count += bool(outcome.claim.keys)
            _log_batch(outcome)


def _will_pass(error: BaseException) -> bool:
    """Say whether an error is one that waiting may cure: anything else ends the daemon."""
    if isinstance(error, CallFailed):
        return error.vanished or error.blame in (Blame.SERVER, Blame.CONTENTION, Blame.SCHEMA)
    if isinstance(error, DatabaseUnavailable):
        return True
    if not isinstance(error, DATABASE_ERRORS):
        return False
    return sqlstate_of(error) in _PASSES_HERE or blame_of(error) in (Blame.SERVER, Blame.CONTENTION, Blame.SIZE)


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
