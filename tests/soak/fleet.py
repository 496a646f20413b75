"""The daemons of a soak: processes that are killed, frozen and succeeded, and watched from outside."""

import asyncio
import contextlib
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from daemons import start_daemon

from soak.figures import Point
from soak.stage import DAEMON_SETTINGS, Stage

_CAUGHT = (1 << (signal.SIGTERM - 1)) | (1 << (signal.SIGHUP - 1))


@dataclass
class Life:
    """One process from its start to its end, and what it used."""

    name: str
    process: "subprocess.Popen[bytes]"
    memory_mb: list[Point] = field(default_factory=list)
    files: list[Point] = field(default_factory=list)
    is_leaving: bool = False
    """Whether it was told to end."""

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def catches_signals(self) -> bool:
        """Whether it has come so far as to handle them; before, they would end it as they end any process."""
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{self.process.pid}/status").read_text("utf-8")
            caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
            return int(caught, 16) & _CAUGHT == _CAUGHT
        return False

    def measure(self, now: float) -> None:
        """Note resident memory and open files, if it still lives."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text("utf-8")
            file_count = sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())
        except OSError:  # it was killed just now
            return
        rss = [line for line in status.splitlines() if line.startswith("VmRSS:")]
        if rss:  # a process that is gone, but not yet waited for, has none
            self.memory_mb.append((now, int(rss[0].split()[1]) / 1024))
            self.files.append((now, file_count))


class Fleet:
    """So many daemons. The first is never ended, so that its memory makes one long series."""

    def __init__(self, stage: Stage, log: Path, count: int = 3) -> None:
        """Start them all."""
        self._stage, self._log = stage, log
        self.lives: list[Life] = []
        self.current = [self._begin(number) for number in range(count)]

    @property
    def mortal(self) -> list[int]:
        """Numbers of those that may be ended."""
        return list(range(1, len(self.current)))

    async def send(self, number: int, which: signal.Signals) -> Life:
        """Send a signal to one, once it is ready for it."""
        life = self.current[number]
        while life.is_running and not life.catches_signals():  # noqa: ASYNC110  # nobody would tell us
            await asyncio.sleep(0.1)
        life.process.send_signal(which)
        return life

    async def end(self, number: int, which: signal.Signals) -> None:
        """End one, and start its successor. Only a killed one may end otherwise than with 0."""
        self.current[number].is_leaving = True
        life = await self.send(number, which)
        code = await self._ended(life)
        if code != (-signal.SIGKILL if which is signal.SIGKILL else 0):
            self._stage.problem(f"daemon {number} ended with exit code {code} after {which.name}")
        self.current[number] = self._begin(number)

    async def stop(self) -> None:
        """Stop all in order."""
        for number, life in enumerate(self.current):
            life.is_leaving = True
            await self.send(number, signal.SIGTERM)
        for life in self.current:
            if (code := await self._ended(life)) != 0:
                self._stage.problem(f"{life.name} ended with exit code {code} at the end")

    def kill(self) -> None:
        """Leave nothing running."""
        for life in self.lives:
            if life.is_running:
                life.process.kill()
            life.process.wait()

    async def watch(self) -> None:
        """Measure every second; a daemon that ends by itself is a problem, and is succeeded."""
        while True:
            for number, life in enumerate(self.current):
                life.measure(self._stage.now)
                if not life.is_leaving and life.process.returncode is None and not life.is_running:
                    self._stage.problem(f"daemon {number} ended by itself, with exit code {life.process.returncode}")
                    self.current[number] = self._begin(number)
            await asyncio.sleep(1)

    def _begin(self, number: int) -> Life:
        process = start_daemon(self._stage.proxy.dsn, self._log, **DAEMON_SETTINGS)
        self.lives.append(Life(f"daemon {number}", process))
        return self.lives[-1]

    @staticmethod
    async def _ended(life: Life) -> int:
        try:
            return await asyncio.to_thread(life.process.wait, 30)
        except subprocess.TimeoutExpired:
            life.process.kill()
            return life.process.wait()
