"""Run SQL again and again, as pg_cron would: again.py SECONDS_APART SQL."""

import asyncio
import os
import signal
import sys

import asyncpg

SETTINGS = {"jit": "off", "work_mem": "32MB"}
"""The procedure's own; the views have none, and asyncpg reads no PGOPTIONS."""


async def main(apart_s: float, sql: str) -> None:
    """Begin every so many seconds, or at once when the one before took longer; stop after the one in hand."""
    connection = await asyncpg.connect(os.environ["DATABASE_URL"], server_settings=SETTINGS)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    while not stop.is_set():
        due = loop.time() + apart_s
        await connection.execute(sql)
        stopping = loop.create_task(stop.wait())
        await asyncio.wait([stopping], timeout=max(0.0, due - loop.time()))
    await connection.close()


asyncio.run(main(float(sys.argv[1]), sys.argv[2]))
