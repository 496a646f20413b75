"""The daemon as what it is to its users: a process of its own."""

import asyncio
import os
import signal
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from daemon.settings import variable

COMMAND = (sys.executable, "-m", "cli", "run")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class DaemonFailed(Exception):
    """The daemon ended as it should not have."""


@dataclass(frozen=True)
class Daemon:
    """A running `recalcd run`, or a rival's worker, and the file it logs to."""

    process: Process
    log: IO[bytes]
    good_ends: Sequence[int] = (0,)
    """Exit codes; a negative one is the signal that ended it."""

    @property
    def pid(self) -> int:
        return self.process.pid

    def resident_mb(self) -> float:
        """Return the resident set of the moment."""
        return memory_mb(self.pid, "VmRSS")

    def peak_mb(self) -> float:
        """Return the largest resident set so far, as the kernel kept it."""
        return memory_mb(self.pid, "VmHWM")

    async def ended(self) -> None:
        """Wait for the end of the process. Raises DaemonFailed when it is a bad one."""
        if await self.process.wait() not in self.good_ends:
            raise self._failure()

    async def ended_early(self) -> None:
        """Wait for an end that nobody asked for. Raises DaemonFailed, whatever its exit code."""
        await self.process.wait()
        raise self._failure()

    def _failure(self) -> DaemonFailed:
        self.log.seek(0)
        last_words = self.log.read().decode(errors="replace")[-3000:]
        return DaemonFailed(f"exit code {self.process.returncode}\n{last_words}")

    async def stop(self) -> None:
        """Ask it to stop, and wait until it has."""
        if self.process.returncode is None:
            self.process.terminate()
        await self.ended()


@asynccontextmanager
async def daemon(
    dsn: str, settings: Mapping[str, object] | None = None, *, drain: bool = False
) -> AsyncIterator[Daemon]:
    """Run a daemon while the block runs; settings are named like their fields."""
    given = {variable(name): str(value) for name, value in (settings or {}).items()}
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith(("RECALCD_", "TELEM_"))}
    command = [*COMMAND, "--drain"] if drain else COMMAND
    async with program(command, surroundings | given | {"RECALCD_DATABASE_URL": dsn}, ends=drain) as running:
        yield running


@asynccontextmanager
async def program(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    folder: Path | None = None,
    good_ends: Sequence[int] = (0,),
    ends: bool = False,
) -> AsyncIterator[Daemon]:
    """Run a program while the block runs; should it end before, or badly, so does the block: DaemonFailed.

    ends: it is to end by itself. It has a process group of its own: Ctrl-C is for us, who stop it and what it started.
    """
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=environment,
            cwd=folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        running = Daemon(process, log, good_ends)
        try:
            async with asyncio.TaskGroup() as group:
                # Or we wait for ever for what it should do.
                watch = group.create_task(running.ended() if ends else running.ended_early())
                yield running
                watch.cancel()
            await running.stop()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def memory_mb(pid: int, field: str) -> float:
    """Return a field of /proc/PID/status that is counted in kB."""
    for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) / 1024
    raise DaemonFailed(f"process {pid} has no {field}: it is gone")


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used, its threads included."""
    after_name = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / _TICKS_PER_S
