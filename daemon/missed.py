"""Who forgot the outbox: rows of the source that were written after the report was, though nothing is pending.

Asked of keys that have drifted, so a row that was written without any effect on the report is no accusation. It sees
rows that exist: a deletion leaves none, and a cached row changed by hand has none behind it. Rows are dated by the
transaction that wrote them, see reports.written_since.
"""

import json
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from daemon.sql import statement

WRITTEN_SINCE = statement("written_since")
TOPIC = "reports.student"
"""The topic whose source we know."""
MOST_ROWS = 10


@dataclass(frozen=True, slots=True)
class Written:
    """A row of the source that is younger than the cached rows."""

    source: str
    row_key: dict[str, str]
    written_at: datetime | None
    """None unless the server keeps commit times (track_commit_timestamp)."""


async def find_missed(connection: asyncpg.Connection, keys: list[str]) -> dict[str, list[Written]]:
    """Return what was written since, by key and youngest first; at most ten rows of each, none for the innocent."""
    found: defaultdict[str, list[Written]] = defaultdict(list)
    for row in await connection.fetch(WRITTEN_SINCE, keys, MOST_ROWS):
        found[row["key"]].append(Written(row["source"], json.loads(row["row_key"]), row["written_at"]))
    return dict(found)
