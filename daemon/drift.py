"""Looking for drift: recalculating keys, taking that back, and telling which cached rows it would have changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from daemon.database import one_row, transaction
from daemon.difference import Difference, differences
from daemon.keys import Topic
from daemon.sql import statement
from daemon.telemetry import span

FIND_DRIFT = statement("find_drift")
LIMIT_STATEMENTS = statement("limit_statements")
STATUS_DRIFT = statement("status_drift")


@dataclass(frozen=True, slots=True)
class Finding:
    """What looking at some keys brought; keys in neither list could not be looked at."""

    checked: list[str]
    drifted: list[str]
    differences: dict[str, list[Difference]]
    """What is wrong with each drifted key; {} when the topic has no describe function."""


async def find_drift(connection: asyncpg.Connection, topic: Topic, keys: list[str]) -> Finding:
    """Look at keys, in a transaction of its own that keeps nothing but the names of the drifted ones."""
    with span(f"verify.{topic.name}", "outbox.find_drift", key_count=len(keys)) as current:
        async with transaction(connection):
            await connection.execute(LIMIT_STATEMENTS, topic.name)
            row = await one_row(connection, FIND_DRIFT, topic.name, keys)
        current.add(checked_count=len(row["checked_keys"]), drifted_count=len(row["drifted_keys"]))
    return Finding(row["checked_keys"], row["drifted_keys"], _differences(row))


def _differences(row: asyncpg.Record) -> dict[str, list[Difference]]:
    if row["cached"] is None:
        return {}
    described = zip(row["drifted_keys"], row["cached"], row["truth"], strict=True)
    return {key: differences(cached, truth) for key, cached, truth in described}


@dataclass(frozen=True, slots=True)
class DriftStatus:
    """What is known of a topic's drift without looking again."""

    topic: str
    drifted_keys: int
    """Keys that a verification found drifted, and that nobody has recalculated since."""
    first_found_at: datetime | None
    audited_since: datetime | None
    """All keys were visited since, in the background; None before the first round is complete."""

    def problems(self) -> list[str]:
        """Say what is wrong, if anything."""
        if not self.drifted_keys:
            return []
        keys = "1 key has" if self.drifted_keys == 1 else f"{self.drifted_keys:,} keys have"
        return [
            f"{self.topic}: {keys} drifted (recalcd verify --topic {self.topic} shows it, with --repair it mends it)"
        ]


async def known_drift(connection: asyncpg.Connection) -> Sequence[DriftStatus]:
    """Return what earlier verifications found, for every registered topic."""
    return [DriftStatus(**row) for row in await connection.fetch(STATUS_DRIFT)]
