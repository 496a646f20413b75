"""Chancy's side of the contest: the app that `chancy worker start` starts."""

import logging
import os

from chancy import Chancy, job
from psycopg_pool import AsyncConnectionPool

CONNECTIONS = int(os.environ["CONNECTIONS"])
DATABASE_URL = os.environ["DATABASE_URL"]
quiet = logging.getLogger("chancy")
quiet.setLevel(logging.WARNING)  # it would log every job
chancy = Chancy(DATABASE_URL, log=quiet)

# Its own pool begins transactions.
pool = AsyncConnectionPool(
    DATABASE_URL, min_size=CONNECTIONS, max_size=CONNECTIONS, kwargs={"autocommit": True}, open=False
)


@job(queue="reports")
async def recalculate(*, student_id: str) -> None:
    await pool.open()  # nothing to do, but for the first
    async with pool.connection() as connection:
        await connection.execute("call reports.recalculate_students(%s::text[], null)", [[student_id]])
