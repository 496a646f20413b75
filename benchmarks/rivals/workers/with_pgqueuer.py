"""PgQueuer's side of the contest: what `pgq run` would start."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial

import asyncpg
import uvloop
from pgqueuer import AsyncpgDriver, Job, PgQueuer, run

BATCH_SIZE = int(os.environ["BATCH_SIZE"])
CONNECTIONS = int(os.environ["CONNECTIONS"])
DATABASE_URL = os.environ["DATABASE_URL"]


async def leave_as_it_is(_: asyncpg.Connection) -> None:
    """Spare the four statements that a pool sends whenever a connection comes back."""


@asynccontextmanager
async def main() -> AsyncIterator[PgQueuer]:
    """One direct connection for the queue, as Performance Tuning has it, and a pool for what the jobs do."""
    pgq = PgQueuer(AsyncpgDriver(await asyncpg.connect(DATABASE_URL)))
    pool_of = partial(asyncpg.create_pool, min_size=CONNECTIONS, max_size=CONNECTIONS, reset=leave_as_it_is)
    async with pool_of(DATABASE_URL) as pool:

        @pgq.entrypoint("recalculate")
        async def recalculate(job: Job) -> None:
            assert job.payload is not None
            await pool.fetchval("call reports.recalculate_students($1::text[], null)", [job.payload.decode()])

        yield pgq


uvloop.run(
    run(
        main,
        batch_size=BATCH_SIZE,
        max_concurrent_tasks=10 * BATCH_SIZE,
        heartbeat_timeout=timedelta(seconds=5),
        shutdown_on_listener_failure=True,
        restart_on_failure=True,
        restart_delay=timedelta(seconds=0.1),
    )
)
