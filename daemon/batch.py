"""One batch, step by step: what is claimed is recalculated and settled in the same transaction.

For whoever has something to do between the steps, names the keys, or shares the session. Else: daemon/one_statement.py.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Literal
from uuid import UUID

import asyncpg

from daemon import claim as outbox
from daemon.claim import Claim
from daemon.database import DATABASE_ERRORS, blame_of, ends_session, sqlstate_of, transaction
from daemon.errors import NOTIFY_QUEUE_FULL, Blame
from daemon.redaction import error_facts
from daemon.spans import Span
from daemon.sql import statement
from daemon.telemetry import span

RECALCULATE = statement("recalculate")
SETTLE = statement("settle")
MAKE_PARTITIONS = statement("make_partitions")

STATEMENTS_GONE = "26000"  # `deallocate all` in a routine takes the driver's prepared statements along
NO_PARTITION = "23514"  # at settling: the history has no partition for today
# What a routine set for the session would otherwise be there for every batch after it. Discarding the rest would forget
# the driver's prepared statements, and unlocking would end the hold that a command has on its job.
TIDY_SESSION = "reset session authorization; reset all; unlisten *; discard temp"
NO_LIMIT = "; set local statement_timeout = 0"
UNLOCK_SESSION = "; select pg_advisory_unlock_all()"

Kind = Literal["live", "replay", "backfill", "repair"]
Witness = Callable[[Claim], Awaitable[None]]


def _tell_nobody(_: Claim) -> None:
    """Keep a claim to ourselves."""


class CallFailed(Exception):
    """The recalculation itself failed, not the claim or the commit around it. The cause is the database's error."""

    def __init__(self, claim: Claim, error: BaseException) -> None:
        """Keep what was to be recalculated, and why it was not."""
        super().__init__(error_facts(error).message)
        self.claim = claim
        self.error = error
        self.sqlstate = sqlstate_of(error)

    @property
    def blame(self) -> Blame:
        """Whose fault it is."""
        return blame_of(self.error)

    @property
    def vanished(self) -> bool:
        """Whether the backend is gone, killed or crashed by itself, with or without a word."""
        return ends_session(self.error)


@dataclass(frozen=True, slots=True)
class Batch:
    """A settled claim; it counts once its transaction has committed."""

    claim: Claim
    changed_keys: list[str] | None
    """None when the procedure does not say."""
    recalculate_ms: float


@dataclass(frozen=True, slots=True)
class Recalculation:
    """How batches are run: on whose behalf, and whether they are kept in the history."""

    daemon_id: UUID | None
    kind: Kind
    keep_history: bool
    witness: Witness | None = None
    """Told of every claim before its keys are recalculated; its errors end the batch."""
    claimed: Callable[[Claim], None] = _tell_nobody
    """Told of every claim while its keys are recalculated, at the latest."""

    async def next_batch(
        self,
        connection: asyncpg.Connection,
        hints: Mapping[str, Mapping[str, object]],
        *,
        after: str,
        retries_first: bool,
    ) -> Batch | None:
        """Run the next batch in a transaction of its own; None when there is nothing to do.

        Raises CallFailed, or asyncpg's errors from the steps around the call. Either way everything is rolled back.
        """
        async with self.transaction(connection):
            claim = await outbox.claim(connection, hints, after=after, retries_first=retries_first)
            return None if claim is None else await self._run(connection, claim)

    async def named_keys(self, connection: asyncpg.Connection, topic: str, keys: list[str]) -> Batch:
        """Run a batch of named keys, as next_batch does. Keys that are busy or in backoff are left out of it."""
        async with self.transaction(connection):
            claim = await outbox.claim_keys(connection, topic, keys)
            return await self._run(connection, claim)

    def transaction(self, connection: asyncpg.Connection) -> AbstractAsyncContextManager[None]:
        """Run a transaction that leaves the session as it was, whatever the topic's routine did to it.

        Until the claim has set the topic's, no limit holds: a slow claim must not fail for what the session was set to.
        """
        tidying = f"; {TIDY_SESSION}{UNLOCK_SESSION if self.kind == 'live' else ''}"
        return transaction(connection, NO_LIMIT, tidying)

    async def _run(self, connection: asyncpg.Connection, claim: Claim) -> Batch:
        if not claim.keys:
            return Batch(claim, changed_keys=[], recalculate_ms=0.0)
        self.claimed(claim)
        if self.witness:
            await self.witness(claim)
        batch = await self.call(connection, claim)
        await self.settle(connection, batch)
        return batch

    async def call(self, connection: asyncpg.Connection, claim: Claim) -> Batch:
        """Call the topic's procedure for the claimed keys. Raises CallFailed."""
        started = time.perf_counter()
        with self.span(claim) as current:
            try:
                changed = await connection.fetchval(RECALCULATE, claim.topic, claim.keys)
            except DATABASE_ERRORS as error:
                raise CallFailed(claim, error) from error
            current.add(changed_count=None if changed is None else len(changed))
        return Batch(claim, changed, (time.perf_counter() - started) * 1000)

    async def settle(self, connection: asyncpg.Connection, batch: Batch) -> None:
        """Write down what was done and tell the readers; the commit is the caller's.

        Raises CallFailed, too: what the routine did to the session or the transaction may come to light only here, and
        must end neither the daemon nor, for ever, the keys beside it.
        """
        try:
            await connection.execute(SETTLE, *_settled(batch), self.daemon_id, self.kind, self.keep_history)
        except DATABASE_ERRORS as error:
            if spares_keys(error):
                raise
            raise CallFailed(batch.claim, error) from error

    def span(self, claim: Claim) -> Span:
        """Return what measures the call for these keys."""
        return span(
            f"recalculate.{claim.topic}",
            "outbox.recalculate",
            topic=claim.topic,
            kind=self.kind,
            key_count=len(claim.keys),
            event_count=claim.event_count,
            traceparent=claim.traceparent,
        )

    def watched_by(self, witness: Witness | None) -> "Recalculation":
        """Return the same with another witness."""
        return replace(self, witness=witness)


def spares_keys(error: BaseException) -> bool:
    """Whether an error behind the call is none of the keys': the history's, the driver's, or the server's."""
    passes = (NO_PARTITION, STATEMENTS_GONE, NOTIFY_QUEUE_FULL)
    return sqlstate_of(error) in passes or blame_of(error) is not Blame.KEYS


async def prepare_history(connection: asyncpg.Connection, *, days_ahead: int) -> list[str]:
    """Make the partitions that the history will need; return the names of the new ones."""
    made: list[str] = await connection.fetchval(MAKE_PARTITIONS, days_ahead)
    return made


def _settled(batch: Batch) -> tuple[object, ...]:
    claim = batch.claim
    return (
        claim.topic,
        claim.keys,
        batch.changed_keys,
        claim.event_count,
        claim.oldest_event_at,
        claim.reasons,
        claim.started_at,
        batch.recalculate_ms,
    )
