"""`recalcd replay`: put keys back into the outbox, behind live traffic."""

from collections.abc import Sequence

import asyncpg

from daemon import telemetry
from daemon.errors import UsageError
from daemon.keys import Topic
from daemon.sql import statement
from daemon.telemetry import log, span

LIST_DEAD_KEYS = statement("list_dead_keys")
REPLAY = statement("replay")
CHUNK_KEYS = 1000


async def choose(connection: asyncpg.Connection, topic: Topic, named: Sequence[str], *, dead: bool) -> list[str]:
    """Return the distinct keys that were asked for, in order. Raises UsageError when nothing was asked for."""
    if not (named or dead):
        raise UsageError("Say what to put back: --dead, or --key KEY.")
    keys = dict.fromkeys(named)
    if dead:
        keys |= dict.fromkeys(row["key"] for row in await connection.fetch(LIST_DEAD_KEYS, topic.name))
    return list(keys)


async def put_back(connection: asyncpg.Connection, topic: Topic, keys: Sequence[str]) -> None:
    """Put keys back, with all their attempts, a thousand per transaction."""
    for start in range(0, len(keys), CHUNK_KEYS):
        chunk = keys[start : start + CHUNK_KEYS]
        with span(f"replay.{topic.name}", "outbox.replay", key_count=len(chunk)):
            await connection.execute(REPLAY, topic.name, chunk)
    log.info(telemetry.REPLAY_FINISHED, topic=topic.name, key_count=len(keys))
