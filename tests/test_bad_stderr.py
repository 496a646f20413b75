"""A daemon whose log goes nowhere works on, and ends with the exit code it should."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys

import asyncpg
import pytest
from engine import make_ledger
from process import PROMPT, WITHIN_S, recovered
from servers import as_daemon


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full", "2>&1 | true"], ids=["closed", "full", "a broken pipe"])
async def test_a_stderr_that_takes_nothing_stops_nothing(db: asyncpg.Connection, dsn: str, closed: str) -> None:
    await make_ledger(db)
    await db.execute("select ledger.record('a', 1)")
    shell = _start(dsn, closed)
    try:
        await recovered(db)
        os.kill(await db.fetchval("select pid from outbox.daemon"), signal.SIGTERM)
        said, _ = await asyncio.to_thread(shell.communicate, timeout=WITHIN_S)
        assert said.decode().strip() == "0"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        await asyncio.to_thread(shell.wait)


def _start(dsn: str, closed: str) -> subprocess.Popen[bytes]:
    """Run a daemon with its stderr like that, and print its exit code."""
    command = f"exec 3>&1; {{ {sys.executable} -m cli run; echo $? >&3; }} {closed}"
    environment = {**os.environ, "RECALCD_DATABASE_URL": as_daemon(dsn), **PROMPT, "RECALCD_LOG_FORMAT": "auto"}
    return subprocess.Popen(["bash", "-c", command], env=environment, stdout=subprocess.PIPE, start_new_session=True)
