"""A batch in one statement, as it usually is: claim, recalculation, settling and commit in one round trip.

Sent one by one, the steps of a small batch wait for each other longer than they take. Before it calls the routine the
server tells what it has claimed; so a failure, or a session that vanishes, is judged as if we had claimed ourselves.

Needs a session of our own, since what limits a statement must be set before it begins.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass

import asyncpg

from daemon.batch import TIDY_SESSION, UNLOCK_SESSION, Batch, CallFailed, Recalculation, spares_keys
from daemon.claim import Claim
from daemon.database import DATABASE_ERRORS, one_row
from daemon.sql import statement

RUN_BATCH = statement("run_batch")
PROGRESS = "RC018"
MOST_OF_IT = 0.9
"""So much of its time a call must have had, to be charged with the rest that it lacked."""


@dataclass
class _Call:
    """A call that the server is making, or has made."""

    claim: Claim
    began_at: float
    ended_at: float | None = None


class OneStatement:
    """Runs batches on a session; a session that it can't leave as it was, it closes."""

    def __init__(self, recalculation: Recalculation, connection: asyncpg.Connection) -> None:
        """Take how batches are run, and on what; no witness is asked, since nobody can hold up what is under way."""
        self._recalculation = recalculation
        self._connection = connection
        self._limit_s = 0
        """What we set the session's statement_timeout to; 0: to nothing. Whether it still holds, the server sees."""
        self._call: _Call | None = None
        """As far as we have heard of one since we asked for the batch."""
        connection.add_log_listener(self._hear)

    async def next_batch(
        self, hints: Mapping[str, Mapping[str, object]], *, after: str, retries_first: bool
    ) -> Batch | None:
        """Run the next batch, as Recalculation.next_batch does, and raising the same.

        When the claim took of the time that the topic has for its call, the steps are sent one by one.
        """
        asked_at, limited = time.monotonic(), set[str]()
        try:
            row = await self._run(hints, after, retries_first)
            while limit_s := row["statement_timeout_s"]:
                if row["topic"] in limited:  # all had their turn since, and nobody's keys are free
                    return None
                limited.add(row["topic"])
                await self._limit(limit_s)
                row = await self._run(hints, row["after"], retries_first)
        except asyncpg.QueryCanceledError:
            return await self._recalculation.next_batch(
                self._connection, hints, after=after, retries_first=retries_first
            )
        if row["topic"] is None:
            return None
        fields = dict(row)
        del fields["statement_timeout_s"], fields["after"]
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
        self._call = None
        limited = {**hints, "": {**hints.get("", {}), "limited": True}}
        how = self._recalculation
        try:
            return await one_row(
                self._connection,
                RUN_BATCH,
                json.dumps(limited),
                after,
                retries_first,
                how.daemon_id,
                how.kind,
                how.keep_history,
            )
        except DATABASE_ERRORS as error:
            if self._call is None:
                raise
            limit_s, self._limit_s = self._limit_s, 0  # what follows goes step by step, and has limits of its own
            await self._tidy()
            claim, is_over = self._call.claim, self._call.ended_at is not None
            took_s = (self._call.ended_at or time.perf_counter()) - self._call.began_at
            how.span(claim).ended(claim.started_at, took_s, None if is_over else error)
            if is_over and spares_keys(error):
                raise
            if isinstance(error, asyncpg.QueryCanceledError) and took_s < MOST_OF_IT * limit_s:
                raise
            raise CallFailed(claim, error) from error

    def _hear(self, _: object, message: asyncpg.PostgresLogMessage) -> None:
        if message.sqlstate == PROGRESS and message.detail:
            self._call = _Call(Claim.from_json(message.detail), time.perf_counter())
            self._recalculation.claimed(self._call.claim)
        elif message.sqlstate == PROGRESS and self._call:
            self._call.ended_at = time.perf_counter()

    def _measured(self, batch: Batch) -> None:
        span = self._recalculation.span(batch.claim)
        span.add(changed_count=None if batch.changed_keys is None else len(batch.changed_keys))
        span.ended(batch.claim.started_at, batch.recalculate_ms / 1000)

    async def _limit(self, seconds: int) -> None:
        await self._connection.execute(_limiting(seconds))
        self._limit_s = seconds

    async def _tidy(self) -> None:
        """Leave the session as it was. What happened to the batch is settled by now, whatever happens here."""
        limiting = f"; {_limiting(self._limit_s)}" if self._limit_s else ""
        try:
            await self._connection.execute(f"{TIDY_SESSION}{UNLOCK_SESSION}{limiting}")
        except DATABASE_ERRORS:
            self._connection.terminate()


def _limiting(seconds: int) -> str:
    return f"set statement_timeout = '{seconds}s'"
