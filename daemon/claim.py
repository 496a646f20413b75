"""What a batch takes out of the outbox, inside the transaction that will recalculate it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from daemon.database import one_row
from daemon.sql import statement

CLAIM = statement("claim")
CLAIM_KEYS = statement("claim_keys")


@dataclass(frozen=True, slots=True)
class Claim:
    """Keys whose locks we hold and whose events we took; both come back if the transaction rolls back."""

    topic: str
    keys: list[str]
    """Distinct, sorted; empty when all that was done is folding the events of failing keys."""
    event_count: int
    oldest_event_at: datetime | None
    started_at: datetime
    reasons: list[str]
    traceparent: str | None
    folded_count: int
    head_event_id: int | None
    is_full: bool
    suspects: bool


async def claim(
    connection: asyncpg.Connection, hints: Mapping[str, Mapping[str, object]], *, after: str, retries_first: bool
) -> Claim | None:
    """Take the next batch, of the topic whose turn it is after `after`; None when there is nothing to take.

    Commit even then: convictions of suspects are part of the claim. Raises asyncpg's errors; the locks end with the
    transaction.
    """
    row = await one_row(connection, CLAIM, json.dumps(hints), after, retries_first)
    return None if row["topic"] is None else Claim(**row)


async def claim_keys(connection: asyncpg.Connection, topic: str, keys: Sequence[str]) -> Claim:
    """Take named keys and their events; those that are busy elsewhere, or in backoff, are left out."""
    return Claim(**await one_row(connection, CLAIM_KEYS, topic, keys))
