"""The real daemon, as a process of its own, and writers that go on through whatever happens to the server."""

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
from engine import LEDGER, drifted, failures, pending, record
from servers import as_daemon
from waiting import eventually

from daemon.database import CONNECTION_ERRORS, close

PROMPT = {
    "RECALCD_LOG_FORMAT": "json",
    "RECALCD_POLL_INTERVAL_S": "0.5",
    "RECALCD_RETRY_MAX_S": "0.5",
    "RECALCD_HEARTBEAT_S": "2",
    "RECALCD_HEARTBEAT_TIMEOUT_S": "2",
    "RECALCD_CONNECT_TIMEOUT_S": "2",
    "RECALCD_LINGER_S": "0.05",
}
"""Settings that suit a test: what waits, waits half a second."""

WITHIN_S = 30.0
"""How soon a daemon with these settings must be on duty, or have recovered: it waits for 0.5 s at a time, but this
machine may be loaded."""


@dataclass
class Daemon:
    """A `recalcd run`, and its log."""

    process: subprocess.Popen[bytes]
    log: Path

    def told(self, *events: str, **facts: Any) -> list[dict[str, Any]]:
        """Return the log's lines of these events that hold these facts, oldest first."""
        lines = [json.loads(line) for line in self.text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] in events and facts.items() <= line.items()]

    def text(self) -> str:
        """Return the complete lines of the log."""
        return self.log.read_text("utf-8").rpartition("\n")[0]

    async def until_told(self, *events: str, count: int = 1, timeout_s: float = WITHIN_S, **facts: Any) -> list[Any]:
        """Wait for so many of these lines; return them all."""

        async def is_told() -> list[dict[str, Any]]:
            told = self.told(*events, **facts)
            return told if len(told) >= count else []

        try:
            return await eventually(is_told, timeout_s=timeout_s)
        except AssertionError:
            raise AssertionError(f"not told: {events} {facts}; but:\n{self.text()[-4000:]}") from None

    def lives(self) -> bool:
        return self.process.poll() is None

    async def exit_code(self, timeout_s: float = WITHIN_S) -> int:
        """Wait for the process to end by itself."""
        return await asyncio.to_thread(self.process.wait, timeout_s)

    async def kill(self) -> None:
        self.process.kill()
        await self.exit_code()

    async def stop(self) -> int:
        """Ask it to stop, as systemd does; return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return await self.exit_code()


@contextlib.asynccontextmanager
async def daemon(
    dsn: str, log: Path, environment: Mapping[str, str] | None = None, *, as_given: bool = False
) -> AsyncIterator[Daemon]:
    """Run `recalcd run` while the block runs, appending to the log. Unless its end is waited for, it must live.

    It logs in as one that is only a recalcd_daemon; as_given, as the DSN says.
    """
    started = _start(dsn if as_given else as_daemon(dsn), log, environment or {})
    try:
        yield started
        assert started.process.returncode is not None or started.lives(), f"it ended by itself:\n{started.text()}"
    finally:
        await started.kill()


def _start(dsn: str, log: Path, environment: Mapping[str, str]) -> Daemon:
    surroundings = {**os.environ, "RECALCD_DATABASE_URL": dsn, **PROMPT, **environment}
    with log.open("ab") as stderr:
        return Daemon(subprocess.Popen([sys.executable, "-m", "cli", "run"], env=surroundings, stderr=stderr), log)


@dataclass
class Writer:
    """Records entries without end. What is committed for certain is in its count."""

    dsn: str
    accounts: list[str]
    seed: int = 0
    written_count: int = 0
    refused: list[str] = field(default_factory=list)
    """SQLSTATE of every write that failed; empty when the connection broke without a word."""
    _enough: asyncio.Event = field(default_factory=asyncio.Event)

    async def write(self) -> None:
        chance = random.Random(self.seed)
        connection: asyncpg.Connection | None = None
        while not self._enough.is_set():
            try:
                connection = connection or await asyncpg.connect(self.dsn, timeout=5)
                await record(connection, chance.choice(self.accounts), chance.choice([-1, 1, 2]))
                self.written_count += 1
            except (asyncpg.PostgresError, *CONNECTION_ERRORS) as error:
                self.refused.append(getattr(error, "sqlstate", None) or "")
                if connection is not None and connection.is_closed():
                    connection = None
            await asyncio.sleep(0.01)
        if connection is not None:
            await close(connection)

    async def writes_on(self, count: int = 20) -> None:
        """Wait until so many more writes have been committed."""
        enough = self.written_count + count

        async def is_enough() -> bool:
            return self.written_count >= enough

        await eventually(is_enough, timeout_s=WITHIN_S)

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator["Writer"]:
        """Write while the block runs."""
        task = asyncio.create_task(self.write())
        try:
            yield self
        finally:
            self._enough.set()
            await task


async def recovered(db: asyncpg.Connection, within_s: float = WITHIN_S) -> None:
    """Wait until nothing is pending or owed; then what is cached must be true, and nobody's failure be on record."""

    async def is_done() -> bool:
        return not await pending(db, LEDGER) and not await failures(db)

    try:
        await eventually(is_done, timeout_s=within_s)
    except AssertionError:
        owed = {key: dict(row) for key, row in (await failures(db)).items()}
        raise AssertionError(f"pending {len(await pending(db))}, owed {owed}") from None
    assert await drifted(db) == []


async def charged(db: asyncpg.Connection) -> list[str]:
    """Return the keys that were charged an attempt."""
    return sorted(key for key, row in (await failures(db)).items() if row["attempts"] > 0)
