"""Waiting for a state, instead of sleeping for luck."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import asyncpg

T = TypeVar("T")

TIMEOUT_S = 10.0
"""Generous: it is only ever used up by a test that fails."""

_INTERVAL_S = 0.01


async def eventually(predicate: Callable[[], Awaitable[T]], timeout_s: float = TIMEOUT_S) -> T:
    """Ask until the answer is true, and return it; fail with the last answer."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not (answer := await predicate()):
        if loop.time() > deadline:
            raise AssertionError(f"not within {timeout_s} s; the last answer was {answer!r}")
        await asyncio.sleep(_INTERVAL_S)
    return answer


async def wait_until_blocked(connection: asyncpg.Connection, application_name: str) -> None:
    """Wait until a session of that name, in the connection's database, waits for somebody's lock."""

    async def is_blocked() -> bool:
        await connection.execute("select pg_stat_clear_snapshot()")  # or a transaction sees its first answer for ever
        return bool(
            await connection.fetchval(
                "select exists (select from pg_stat_activity where datname = current_database() "
                "and application_name = $1 and wait_event_type = 'Lock')",
                application_name,
            )
        )

    await eventually(is_blocked)
