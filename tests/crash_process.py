"""Processes that stop at every await of the database protocol, and go on when told to: see crash_launcher.py."""

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

LAUNCHER = Path(__file__).with_name("crash_launcher.py")

Phase = Literal["before", "sent", "answered", "after"]

HAVE_A_GATE = ("run_batch", "recalculate", "find_drift")
"""Statements inside which a topic's procedure runs: the ledger's can be stopped there."""


@dataclass(frozen=True)
class Point:
    """A moment of a run. Occurrences count from 1."""

    session: str
    statement: str
    call: str
    phase: Phase
    occurrence: int

    @property
    def site(self) -> tuple[str, str, str, Phase]:
        """The point without its number."""
        return self.session, self.statement, self.call, self.phase

    def __str__(self) -> str:
        return " / ".join(part for part in (*self.site, str(self.occurrence)) if part)

    @property
    def has_gate(self) -> bool:
        return self.statement in HAVE_A_GATE and self.call == "bind_execute"


@dataclass(frozen=True)
class Stop:
    """The process stands still at this point; the backend of the connection in question, if there is one."""

    point: Point
    backend_pid: int | None


class Launcher:
    """The program that forks the runs."""

    def __init__(self, output: Path) -> None:
        """Take where the runs' stdout and stderr go, together."""
        self.output = output
        self._ours, self._its = socket.socketpair()
        # Not traced for coverage: a killed process has nothing to tell, and tracing doubles the time of a run.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "RECALCD_"))}
        command = [sys.executable, str(LAUNCHER), str(self._its.fileno())]
        environment["PYTHONPATH"] = str(LAUNCHER.parent.parent)
        self._process = subprocess.Popen(command, pass_fds=[self._its.fileno()], env=environment)
        self._its.close()

    def close(self) -> None:
        """End it; a run that still stands at a point ends with it."""
        self._ours.close()
        self._process.wait()

    async def start(self, command: Sequence[str], environment: dict[str, str], *, watched: bool) -> "Running":
        """Fork a run of `recalcd` with this command line."""
        request = {"command": command, "environment": environment, "output": str(self.output), "watched": watched}
        body = json.dumps(request).encode()
        ours, its = socket.socketpair()
        socket.send_fds(self._ours, [struct.pack("!I", len(body))], [its.fileno()])
        self._ours.sendall(body)
        its.close()
        reader, writer = await asyncio.open_connection(sock=ours)
        return Running(int(await reader.readline()), reader, writer)


@dataclass
class Running:
    """A run under way."""

    pid: int
    _reader: asyncio.StreamReader
    _writer: asyncio.StreamWriter
    _counts: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    _exit_code: int | None = None

    async def stops(self) -> AsyncIterator[Stop]:
        """Yield the points as the process reaches them, until it has ended; at each it stands still until go_on()."""
        while self._exit_code is None:
            word = json.loads(await self._reader.readline())
            if isinstance(word, int):
                self._exit_code = word
                self._writer.close()
            else:
                yield self._stop(*word)

    def _stop(self, session: str, statement: str, call: str, phase: Phase, backend_pid: int | None) -> Stop:
        site = (session, statement, call, phase)
        self._counts[site] += 1
        return Stop(Point(*site, self._counts[site]), backend_pid)

    def go_on(self) -> None:
        """Let it reach the next point."""
        self._writer.write(b".")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self._exit_code is None:  # else its pid may be another's by now
            os.kill(self.pid, number)

    async def put_an_end(self) -> None:
        """Kill it, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        async for _ in self.stops():
            pass

    @property
    def exit_code(self) -> int:
        """How it ended; negative for a signal. Known once there are no more stops."""
        assert self._exit_code is not None
        return self._exit_code


@contextmanager
def launching(output: Path) -> Iterator[Launcher]:
    """Keep a launcher while the block runs."""
    launcher = Launcher(output)
    try:
        yield launcher
    finally:
        launcher.close()
