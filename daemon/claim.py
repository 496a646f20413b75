"""What a batch takes out of the outbox, inside the transaction that will recalculate it."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    """Of the writers' traces, some: W3C trace contexts, separated by commas."""
    folded_count: int
    head_event_id: int | None
    is_full: bool
    suspects: bool
    asked_at: float = field(default_factory=time.monotonic)
    """When we asked for it, on the monotonic clock."""

    @classmethod
    def from_json(cls, text: str) -> "Claim":
        """Read what outbox.run_batch tells of its claim."""
        row = json.loads(text)
        for name in ("oldest_event_at", "started_at"):
            row[name] = row[name] and datetime.fromisoformat(row[name])
        return cls(**row)


async def claim(
    connection: asyncpg.Connection, hints: Mapping[str, Mapping[str, object]], *, after: str, retries_first: bool
) -> Claim | None:
    """Take the next batch, of the topic whose turn it is after `after`; None when there is nothing to take.

    Commit even then: convictions of suspects are part of the claim. Raises asyncpg's errors; the locks end with the
    transaction.
    """
    asked_at = time.monotonic()
    row = await one_row(connection, CLAIM, json.dumps(hints), after, retries_first)
    return None if row["topic"] is None else Claim(**row, asked_at=asked_at)


async def claim_keys(connection: asyncpg.Connection, topic: str, keys: Sequence[str]) -> Claim:
    """Take named keys and their events; those that are busy elsewhere, or in backoff, are left out."""
    asked_at = time.monotonic()
    return Claim(**await one_row(connection, CLAIM_KEYS, topic, keys), asked_at=asked_at)
