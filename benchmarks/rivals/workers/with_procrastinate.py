"""Procrastinate's side of the contest: the app that `procrastinate worker` starts."""

import os

from procrastinate import App, PsycopgConnector
from psycopg_pool import AsyncConnectionPool

CONNECTIONS = int(os.environ["CONNECTIONS"])
DATABASE_URL = os.environ["DATABASE_URL"]
app = App(connector=PsycopgConnector(conninfo=DATABASE_URL, min_size=CONNECTIONS, max_size=CONNECTIONS))

# Its own pool asks a connection whether it lives each time it hands one out, and begins transactions.
pool = AsyncConnectionPool(
    DATABASE_URL, min_size=CONNECTIONS, max_size=CONNECTIONS, kwargs={"autocommit": True}, open=False
)


@app.task(name="recalculate", queue="reports")
async def recalculate(student_id: str) -> None:
    await pool.open()  # nothing to do, but for the first
    async with pool.connection() as connection:
        await connection.execute("call reports.recalculate_students(%s::text[], null)", [[student_id]])
