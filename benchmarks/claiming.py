"""One claim at a time, by hand: what the daemon's first round trip takes, without the rest of the batch."""

import json
import time

import asyncpg

from daemon.claim import CLAIM
from daemon.doorbell import LOOK

CLAIMED_EVENTS = 100

# Of keys that a backlog has, too (benchmarks.bench.add_backlog).
ENQUEUE = """
with added as (
    insert into outbox.event (topic, key, reason)
    select $1, md5(i || $1)::uuid::text, 'bench' from generate_series(0, $2::integer - 1) as i
    returning event_id
)
select min(a.event_id) from added as a
"""


async def claim_ms(connection: asyncpg.Connection, topic: str, *, with_mark: bool) -> float:
    """Enqueue, claim and commit; return the milliseconds of the claim alone. No mark means a sweep from the start."""
    first_id = await connection.fetchval(ENQUEUE, topic, CLAIMED_EVENTS)
    hints = {topic: {"above": first_id - 1 if with_mark else 0}}
    async with connection.transaction():
        started = time.perf_counter()
        row = await connection.fetchrow(CLAIM, json.dumps(hints), "", False)
        elapsed = time.perf_counter() - started
    assert row is not None
    assert row["event_count"] == CLAIMED_EVENTS, "the claim took something else"
    return elapsed * 1000


async def look_ms(connection: asyncpg.Connection) -> float:
    """Return the milliseconds of the look that follows arming."""
    started = time.perf_counter()
    await connection.fetchrow(LOOK, [])
    return (time.perf_counter() - started) * 1000
