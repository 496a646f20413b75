"""`recalcd explain`: what is happening to one key, why, and what happened to it lately."""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import asyncpg

from daemon.database import one_row
from daemon.failures import Failure, find_failure
from daemon.keys import find_topic
from daemon.sql import statement

EXPLAIN_KEY = statement("explain_key")
EXPLAIN_EVENTS = statement("explain_events")
EXPLAIN_BATCHES = statement("explain_batches")
EXPLAIN_REPORT = statement("explain_report")
REPORT_TOPIC = "reports.student"
"""The topic that ships with recalcd: of its cached rows we know where they are."""

State = Literal["fresh", "unknown", "pending", "running", "paused", "retrying", "dead", "unregistered"]


@dataclass(frozen=True, slots=True)
class Pending:
    """An event that waits."""

    event_id: int
    reason: str | None
    enqueued_at: datetime
    age_s: float


@dataclass(frozen=True, slots=True)
class Done:
    """A batch that recalculated the key, along with others."""

    batch_id: int
    kind: str
    started_at: datetime
    finished_at: datetime
    event_count: int
    key_count: int
    reasons: list[str]
    changed: bool | None
    """Whether the key's cached rows changed; None when the procedure does not say."""
    waited_s: float | None
    """How long the oldest event of the batch had waited; None when there was none."""
    recalculate_ms: float
    daemon_id: UUID | None
    host: str | None
    pid: int | None
    ago_s: float


@dataclass(frozen=True, slots=True)
class Cached:
    """The cached rows of a pupil, and when the youngest of them was written."""

    row_count: int
    calculated_at: datetime | None
    ago_s: float | None


@dataclass(frozen=True, slots=True)
class Moment:
    """What holds at this moment."""

    is_registered: bool
    paused_at: datetime | None
    paused_reason: str | None
    is_fresh: bool
    event_count: int
    crash_count: int
    """Batches that vanished with the key in them; it is suspected of having killed them."""
    busy_with: list[int]
    """The backend that recalculates the key now, if any."""


@dataclass(frozen=True, slots=True)
class Story:
    """Everything that is known of a key, read in one snapshot."""

    topic: str
    key: str
    now: Moment
    events: list[Pending]
    """The oldest of those that wait."""
    failure: Failure | None
    batches: list[Done]
    """The newest first."""
    cached: Cached | None
    """None where only the application knows its rows."""

    @property
    def state(self) -> State:
        """The word for it; the worst of those that hold."""
        if not self.now.is_registered:
            return "unregistered"
        if self.failure:
            return self.failure.state
        if not self.now.event_count:
            return "fresh" if self.batches or (self.cached and self.cached.row_count) else "unknown"
        if self.now.busy_with:
            return "running"
        return "paused" if self.now.paused_at else "pending"

    @property
    def is_good(self) -> bool:
        """Whether the key is up to date, or will be without anybody's help."""
        return self.state in ("fresh", "pending", "running")

    def as_json(self) -> dict[str, Any]:
        """Return what --json prints; its keys are public."""
        story = asdict(self)
        return {"topic": self.topic, "key": self.key, "state": self.state, **story.pop("now"), **story}


async def explain(connection: asyncpg.Connection, topic: str, key: str, *, limit: int) -> Story:
    """Tell the story of a key, with at most `limit` events and batches.

    Raises UsageError for a topic that neither the registry nor an event knows.
    """
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        now = Moment(**await one_row(connection, EXPLAIN_KEY, topic, key))
        if not (now.is_registered or now.event_count):
            await find_topic(connection, topic)
        return Story(
            topic,
            key,
            now,
            [Pending(**row) for row in await connection.fetch(EXPLAIN_EVENTS, topic, key, limit)],
            await find_failure(connection, topic, key),
            [Done(**row) for row in await connection.fetch(EXPLAIN_BATCHES, topic, key, limit)],
            await _cached(connection, key) if topic == REPORT_TOPIC else None,
        )


async def _cached(connection: asyncpg.Connection, key: str) -> Cached | None:
    try:
        student_id = UUID(key)
    except ValueError:
        return None  # no pupil has such a key, so there is no row to look for
    return Cached(**await one_row(connection, EXPLAIN_REPORT, student_id))
