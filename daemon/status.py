"""`recalcd status`: tell whether all is well, and what is not."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from daemon.drift import DriftStatus, known_drift
from daemon.sql import statement
from daemon.threats import Server, Thresholds, read_server

STATUS_TOPICS = statement("status_topics")
STATUS_DAEMONS = statement("status_daemons")


@dataclass(frozen=True, slots=True)
class TopicStatus:
    """One topic; counts are of now, event_count, key_count and freshness of the last five minutes."""

    topic: str
    is_registered: bool
    paused_at: datetime | None
    paused_reason: str | None
    pending_events: int
    pending_keys: int
    oldest_s: float | None
    oldest_claimable_s: float | None
    """Of the events whose key is not in backoff: what nobody should have to wait for."""
    retrying_keys: int
    dead_keys: int
    event_count: int
    key_count: int
    freshness_p50_s: float | None
    freshness_p95_s: float | None
    freshness_p99_s: float | None

    @property
    def events_per_recalculation(self) -> float | None:
        """How many events a recalculation of a key did at once; None when there was none lately."""
        return self.event_count / self.key_count if self.key_count else None

    def problems(self, limits: Thresholds) -> list[str]:
        """Say what is wrong with it, if anything."""
        found = []
        if not self.is_registered:
            found.append(
                f"{self.topic}: nobody registered this topic, so its {self.pending_events:,} events wait for ever"
            )
        elif self.paused_at is None and (self.oldest_claimable_s or 0.0) >= limits.late_s:
            found.append(
                f"{self.topic}: reports are late, the oldest event has waited {self.oldest_claimable_s:,.0f} s"
            )
        if self.dead_keys > limits.dead_keys:
            found.append(
                f"{self.topic}: {self.dead_keys:,} dead keys wait for an operator (recalcd failures list {self.topic})"
            )
        return found


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """One daemon that runs, or ran within the hour; counts are of the last five minutes."""

    daemon_id: UUID
    host: str
    pid: int
    version: str
    state: str
    started_at: datetime
    seen_s: float
    batch_count: int
    key_count: int
    last_batch_s: float | None

    def is_running(self, limits: Thresholds) -> bool:
        """Whether it said so lately."""
        return self.state not in ("stopped", "vanished") and self.seen_s <= limits.unseen_s


@dataclass(frozen=True, slots=True)
class Status:
    """One screen's worth, and the limits it is judged by."""

    topics: list[TopicStatus]
    daemons: list[DaemonStatus]
    server: Server
    drift: Sequence[DriftStatus]
    limits: Thresholds

    @property
    def running(self) -> list[DaemonStatus]:
        """The daemons that are at work, or ready for it."""
        return [each for each in self.daemons if each.is_running(self.limits)]

    @property
    def paused(self) -> list[TopicStatus]:
        """The topics that an operator paused."""
        return [each for each in self.topics if each.paused_at]

    @property
    def problems(self) -> list[str]:
        """Everything that is wrong, in sentences; [] when healthy."""
        found = [] if self.running else ["no daemon is running: start one with `recalcd run`"]
        found += [problem for topic in self.topics for problem in topic.problems(self.limits)]
        found += [problem for drift in self.drift for problem in drift.problems()]
        found += [
            f"the daemon {each.pid} on {each.host} gets no notifications and polls instead (see recalcd doctor)"
            for each in self.running
            if each.state == "degraded"
        ]
        return found + self.server.problems(self.limits)

    @property
    def verdict(self) -> str:
        """Say in words whether it is healthy, and if not, what matters most."""
        problems = self.problems
        if not problems:
            paused = f"; paused: {', '.join(each.topic for each in self.paused)}" if self.paused else ""
            return f"healthy: nothing is late, no key is beyond its retries{paused}"
        more = len(problems) - 1
        return f"NOT HEALTHY: {problems[0]}" + (f"; and {more} more" if more else "")

    def as_json(self) -> dict[str, Any]:
        """Return what --json prints; its keys are public."""
        return {
            "healthy": not self.problems,
            "verdict": self.verdict,
            "problems": self.problems,
            "topics": [
                asdict(each) | {"events_per_recalculation": each.events_per_recalculation} for each in self.topics
            ],
            "daemons": [asdict(each) | {"is_running": each.is_running(self.limits)} for each in self.daemons],
            "server": asdict(self.server),
            "drift": [asdict(each) for each in self.drift],
            "limits": asdict(self.limits),
        }


async def read_status(connection: asyncpg.Connection, limits: Thresholds | None = None) -> Status:
    """Ask the database; needs no daemon."""
    topics = [TopicStatus(**row) for row in await connection.fetch(STATUS_TOPICS)]
    daemons = [DaemonStatus(**row) for row in await connection.fetch(STATUS_DAEMONS)]
    return Status(topics, daemons, await read_server(connection), await known_drift(connection), limits or Thresholds())
