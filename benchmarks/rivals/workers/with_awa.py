"""AWA's side of the contest: a program of one's own, since AWA has no command that starts Python workers."""

import asyncio
import os
import signal
import sys
from dataclasses import dataclass

import asyncpg
from awa import AsyncClient, Job

CONNECTIONS = int(os.environ["CONNECTIONS"])
WORKERS = 100
"""More than connections, so that those who wait for a completion leave none idle."""
SHARDS = 8
"""Of the queue's head, or writers would wait for each other at it: events need no order."""
SHARD = """
insert into awa.queue_meta (queue, enqueue_shards) values ('reports', $1)
on conflict (queue) do update set enqueue_shards = excluded.enqueue_shards
"""


@dataclass
class Recalculate:
    student_id: str


async def leave_as_it_is(_: asyncpg.Connection) -> None:
    """Spare the four statements that a pool sends whenever a connection comes back."""


async def work(client: AsyncClient) -> None:
    """Work until SIGTERM."""
    pool = await asyncpg.create_pool(
        os.environ["DATABASE_URL"], min_size=CONNECTIONS, max_size=CONNECTIONS, reset=leave_as_it_is
    )

    @client.task(Recalculate, queue="reports")
    async def recalculate(job: Job) -> None:
        await pool.fetchval("call reports.recalculate_students($1::text[], null)", [job.args.student_id])

    await client.start([{"name": "reports", "max_workers": WORKERS}], poll_interval_ms=50)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await client.shutdown()
    await pool.close()


async def set_up(client: AsyncClient) -> None:
    """Create the schema with its new storage, which the first worker chooses only if no job is older than it."""
    await client.migrate()
    await client.install_queue_storage()
    connection = await asyncpg.connect(os.environ["DATABASE_URL"])
    await connection.execute(SHARD, SHARDS)
    await connection.close()


async def main() -> None:
    async with AsyncClient(os.environ["AWA_URL"], max_connections=CONNECTIONS) as client:
        await (set_up(client) if sys.argv[1:] == ["migrate"] else work(client))


asyncio.run(main())
