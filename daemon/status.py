"""`recalcd status`: tell whether all is well, and what is not."""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from daemon.sql import statement

STATUS_TOPICS = statement("status_topics")
STATUS_DAEMONS = statement("status_daemons")
LATE_S = 60.0
"""An event that has waited this long is a sign that something is wrong."""
SEEN_S = 30.0
"""A daemon writes its row every ten seconds; one not seen for this long is gone or stuck."""


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
    retrying_keys: int
    dead_keys: int
    event_count: int
    key_count: int
    freshness_p50_s: float | None
    freshness_p95_s: float | None
    freshness_p99_s: float | None

    def problems(self) -> list[str]:
        """Say what is wrong with it, if anything."""
        found = []
        if not self.is_registered:
            found.append(
                f"{self.topic}: nobody registered this topic, so its {self.pending_events:,} events wait for ever"
            )
        elif self.oldest_s is not None and self.oldest_s > LATE_S and self.paused_at is None:
            found.append(f"{self.topic}: the oldest event waits since {self.oldest_s:,.0f} s")
        if self.dead_keys:
            found.append(
                f"{self.topic}: {self.dead_keys:,} dead keys wait for an operator (recalcd replay {self.topic} --dead)"
            )
        return found


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """One daemon that runs, or ran within the hour."""

    daemon_id: UUID
    host: str
    pid: int
    version: str
    state: str
    started_at: datetime
    seen_s: float

    @property
    def is_running(self) -> bool:
        """Whether it said so lately."""
        return self.state not in ("stopped", "vanished") and self.seen_s <= SEEN_S


@dataclass(frozen=True, slots=True)
class Status:
    """One screen's worth."""

    topics: list[TopicStatus]
    daemons: list[DaemonStatus]

    @property
    def problems(self) -> list[str]:
        """Everything that is wrong, in sentences; [] when healthy."""
        found = [problem for topic in self.topics for problem in topic.problems()]
        if not any(daemon.is_running for daemon in self.daemons):
            found.insert(0, "no daemon is running: start one with `recalcd run`")
        found += [
            f"the daemon on {each.host} gets no notifications and polls instead"
            for each in self.daemons
            if each.state == "degraded"
        ]
        return found

    def as_json(self) -> dict[str, Any]:
        """Return what --json prints; its keys are public."""
        return {
            "healthy": not self.problems,
            "problems": self.problems,
            "topics": [asdict(each) for each in self.topics],
            "daemons": [asdict(each) | {"is_running": each.is_running} for each in self.daemons],
        }


async def read_status(connection: asyncpg.Connection) -> Status:
    """Ask the database; needs no daemon."""
    topics = [TopicStatus(**row) for row in await connection.fetch(STATUS_TOPICS)]
    daemons = [DaemonStatus(**row) for row in await connection.fetch(STATUS_DAEMONS)]
    return Status(topics, daemons)
