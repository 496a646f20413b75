"""A batch in one statement, as it usually is: claim, recalculation, settling and commit in one round trip.

Sent one by one, the steps of a small batch wait for each other longer than they take. Before it calls the routine the
server tells what it has claimed; so a failure, or a session that vanishes, is judged as if we had claimed ourselves.

Needs a session of our own, since what limits a statement must be set before it begins.
"""

import json
import time
from collections.abc import Mapping

import asyncpg

from daemon.batch import TIDY_SESSION, UNLOCK_SESSION, Batch, CallFailed, Recalculation, spares_keys
from daemon.claim import Claim
from daemon.database import DATABASE_ERRORS, one_row
from daemon.sql import statement

RUN_BATCH = statement("run_batch")
STEPS = "RC018"


class OneStatement:
    """Runs batches on a session; a session that it can't leave as it was, it closes."""

    def __init__(self, recalculation: Recalculation, connection: asyncpg.Connection) -> None:
        """Take how batches are run, and on what; nobody is told of a claim but by its failure."""
        self._recalculation = recalculation
        self._connection = connection
        self._limit_s = 0
        """The session's statement_timeout."""
        self._told: list[tuple[str, float]] = []
        """The steps that were taken, and when we heard of them: the claim, as JSON, then the recalculation."""
        connection.add_log_listener(self._hear)

    async def next_batch(
        self, hints: Mapping[str, Mapping[str, object]], *, after: str, retries_first: bool
    ) -> Batch | None:
        """Run the next batch, as Recalculation.next_batch does, and raising the same.

        When the claim alone used up the time that a topic has for its call, the steps are sent one by one.
        """
        asked_at = time.monotonic()
        try:
            row = await self._run(hints, after, retries_first)
            while limit_s := row["statement_timeout_s"]:
                await self._limit(limit_s)
                row = await self._run(hints, after, retries_first)
        except asyncpg.QueryCanceledError:
            await self._limit(0)
            return await self._recalculation.next_batch(
                self._connection, hints, after=after, retries_first=retries_first
            )
        if row["topic"] is None:
            return None
        fields = dict(row)
        del fields["statement_timeout_s"]
        batch = Batch(
            changed_keys=fields.pop("changed_keys"),
            recalculate_ms=fields.pop("recalculate_ms"),
            claim=Claim(**fields, asked_at=asked_at),
        )
        if batch.claim.keys:
            self._measured(batch)
            await self._tidy()
        return batch

    async def _run(self, hints: Mapping[str, Mapping[str, object]], after: str, retries_first: bool) -> asyncpg.Record:
        self._told = []
        of_all = {**hints.get("", {}), "statement_timeout_s": self._limit_s}
        how = self._recalculation
        try:
            return await one_row(
                self._connection,
                RUN_BATCH,
                json.dumps({**hints, "": of_all}),
                after,
                retries_first,
                how.daemon_id,
                how.kind,
                how.keep_history,
            )
        except DATABASE_ERRORS as error:
            if not self._told:
                raise
            await self._tidy()
            claim = Claim.from_json(self._told[0][0])
            if len(self._told) == 1:
                how.span(claim).ended(claim.started_at, time.perf_counter() - self._told[0][1], error)
            elif spares_keys(error):
                raise
            raise CallFailed(claim, error) from error

    def _hear(self, _: object, message: asyncpg.PostgresLogMessage) -> None:
        if message.sqlstate == STEPS:
            if message.detail:
                self._told = []  # the driver itself repeats a statement whose plan was outdated
            self._told.append((message.detail or "", time.perf_counter()))

    def _measured(self, batch: Batch) -> None:
        span = self._recalculation.span(batch.claim)
        span.add(changed_count=None if batch.changed_keys is None else len(batch.changed_keys))
        span.ended(batch.claim.started_at, batch.recalculate_ms / 1000)

    async def _limit(self, seconds: int) -> None:
        await self._connection.execute(f"set statement_timeout = '{seconds}s'")
        self._limit_s = seconds

    async def _tidy(self) -> None:
        """Leave the session as it was. What happened to the batch is settled by now, whatever happens here."""
        try:
            await self._connection.execute(
                f"{TIDY_SESSION}{UNLOCK_SESSION}; set statement_timeout = '{self._limit_s}s'"
            )
        except DATABASE_ERRORS:
            self._connection.terminate()
