"""PgQ's side of the contest: its ticker, and one consumer."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack

import asyncpg
import uvloop

CONNECTIONS = int(os.environ["CONNECTIONS"])
DATABASE_URL = os.environ["DATABASE_URL"]
QUEUE = os.environ["QUEUE"]
TICK_S = float(os.environ["TICK_S"])
RECONNECT_S = 0.1
LOST = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
)
CHUNK = 500
"""Pupils a call."""

NEXT_BATCH = "select pgq.next_batch($1, 'recalculate')"
PUPILS = "select array_agg(distinct e.ev_data) from pgq.get_batch_events($1) as e"
FINISH = "select pgq.finish_batch($1)"
CALL = "call reports.recalculate_students($1::text[], null)"


async def main() -> None:
    """Tick and consume; connect again when the server was gone."""
    while True:
        try:
            await tick_and_consume()
        except* LOST:
            await asyncio.sleep(RECONNECT_S)


async def tick_and_consume() -> None:
    """End when either fails."""
    async with AsyncExitStack() as stack:
        connections = []
        for _ in range(1 + CONNECTIONS):
            connections.append(await asyncpg.connect(DATABASE_URL))
            stack.callback(connections[-1].terminate)
        ticking, consuming, *helping = connections
        ticked = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(tick(ticking, ticked))
            group.create_task(consume(consuming, helping, ticked))


async def tick(connection: asyncpg.Connection, ticked: asyncio.Event) -> None:
    """Do what pgqd does."""
    while True:
        if await connection.fetchval("select pgq.ticker($1)", QUEUE):
            ticked.set()
        await asyncio.sleep(TICK_S)


async def consume(connection: asyncpg.Connection, helping: list[asyncpg.Connection], ticked: asyncio.Event) -> None:
    """Take batch after batch, each in a transaction, with what others help to recalculate committed before."""
    while True:
        ticked.clear()
        async with connection.transaction():
            batch = await connection.fetchval(NEXT_BATCH, QUEUE)
            if batch is not None:
                pupils = await connection.fetchval(PUPILS, batch) or []
                chunks = iter([pupils[first : first + CHUNK] for first in range(0, len(pupils), CHUNK)])
                await asyncio.gather(*(recalculate(each, chunks) for each in (connection, *helping)))
                await connection.execute(FINISH, batch)
        if batch is None:
            await ticked.wait()


async def recalculate(connection: asyncpg.Connection, chunks: Iterator[list[str]]) -> None:
    """Take one chunk after the other."""
    for chunk in chunks:
        await connection.fetchval(CALL, chunk)


uvloop.run(main())
