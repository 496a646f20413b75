"""Where the demo takes place: a server of its own, and the daemon as the process it is in production."""

import asyncio
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Coroutine
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

import asyncpg

from daemon import embedded
from daemon.errors import RecalcdError
from daemon.settings import Settings, load, variable
from daemon.sql import statement

DAEMON_LISTENS = statement("demo_daemon_listens")
SERVER_SETTINGS = {"track_commit_timestamp": True}
"""All else is as shipped, so that commits wait for the disk. Times of commit are what freshness is measured by."""
LOOK_S = 0.02
START_S = 60.0
STOP_S = 25.0
LAST_LINES = 15

T = TypeVar("T")


class DaemonDied(RecalcdError):
    """The daemon ended before it was told to, or never got to work."""


@dataclass(frozen=True)
class Reach:
    """How to reach what was left running, as lines to paste into a shell."""

    dsn: str
    psql: str
    status: str
    log: str
    stop: str


class Stage:
    """A server, and a daemon. Leaving the block stops both and removes every file, unless leave_up() was called."""

    def __init__(self) -> None:
        """Make the folders. Raises RecalcdError when there is no embedded PostgreSQL."""
        self._cleanup = ExitStack()
        self._daemon: DaemonProcess | None = None
        self.server = embedded.create(settings=SERVER_SETTINGS)
        self._cleanup.callback(shutil.rmtree, self.server.home)
        self._cleanup.callback(self.server.stop, "immediate")

    def __enter__(self) -> Self:
        """Nothing runs yet."""
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Stop the daemon, then the server; then remove the files."""
        self._cleanup.close()

    @cached_property
    def settings(self) -> Settings:
        """The user's settings on our database. Raises ConfigurationError."""
        return load(**self._overrides)

    @property
    def _overrides(self) -> dict[str, str | int]:
        """What the user can't choose here: the database, and a history, which the account is read from."""
        return {"database_url": self.server.dsn(), "history_days": Settings.model_fields["history_days"].default}

    @property
    def daemon(self) -> "DaemonProcess":
        """The daemon, once started."""
        if self._daemon is None:
            raise RuntimeError("the daemon was not started")
        return self._daemon

    def start_server(self) -> None:
        """Start PostgreSQL, and wait until it takes connections."""
        self.server.initialise()
        self.server.start()

    async def start_daemon(self, opened: asyncpg.Connection) -> None:
        """Start the daemon, and wait until it listens. Raises DaemonDied."""
        environment = {variable(name): str(value) for name, value in self._overrides.items()}
        self._daemon = DaemonProcess(self.server.home / "daemon.log", environment)
        self._cleanup.callback(self._daemon.stop)
        await self._daemon.while_alive(self._daemon.listens(opened))

    def leave_up(self) -> Reach:
        """Let both run on when the block ends, and this process; return how to reach them."""
        self._cleanup.pop_all()
        dsn, pids = self.server.dsn(), (self.daemon.pid, self.server.pid)
        # One after the other; SIGINT is a fast shutdown: https://www.postgresql.org/docs/current/server-shutdown.html
        ends = [f"kill -INT {pid}; tail --pid={pid} -f /dev/null" for pid in pids]
        return Reach(
            dsn=dsn,
            psql=shlex.join([str(embedded.program("psql", self.server.version)), dsn]),
            status=f"{variable('database_url')}={shlex.quote(dsn)} {shlex.join([*recalcd(), 'status'])}",
            log=str(self.daemon.log),
            stop="; ".join([*ends, shlex.join(["rm", "-r", str(self.server.home)])]),
        )


class DaemonProcess:
    """`recalcd run`, its log in a file."""

    def __init__(self, log: Path, environment: dict[str, str]) -> None:
        """Start it in a session of its own, so that Ctrl-C reaches us alone and we stop it in order."""
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*recalcd(), "run"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {variable("log_format"): "text"} | environment,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    async def listens(self, opened: asyncpg.Connection) -> None:
        """Wait until it does. Raises DaemonDied when that takes too long."""
        try:
            async with asyncio.timeout(START_S):
                while not await opened.fetchval(DAEMON_LISTENS, self.pid):  # noqa: ASYNC110  # its state is in the database
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            raise DaemonDied(f"The daemon did not listen within {START_S:.0f} s. {self._log_end()}") from None

    async def while_alive(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work, for which the daemon is needed. Raises DaemonDied as soon as it is gone."""
        task, death = asyncio.ensure_future(work), asyncio.ensure_future(self._death())
        try:
            await asyncio.wait([task, death], return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else death.result()
        finally:
            task.cancel()
            death.cancel()
            await asyncio.gather(task, death, return_exceptions=True)

    async def _death(self) -> NoReturn:
        while self._process.poll() is None:  # noqa: ASYNC110  # nothing tells us; a child's end is only to be polled
            await asyncio.sleep(LOOK_S)
        ending = _ending(self._process.returncode)
        raise DaemonDied(f"The daemon died: nobody told it to, yet it ended {ending}. {self._log_end()}")

    def _log_end(self) -> str:
        lines = self.log.read_text("utf-8", errors="replace").splitlines()
        return "\n".join(["The end of its log:", *lines[-LAST_LINES:]])

    def stop(self) -> str:
        """Tell it to stop, and wait; return what was wrong with its end, which is nothing if it took its leave."""
        hung = False
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                hung = True
                self._process.kill()
                self._process.wait()
        if hung:
            return f"did not stop within {STOP_S:.0f} s of being told to"
        return "" if self._process.returncode == 0 else f"ended {_ending(self._process.returncode)}"


def recalcd() -> list[str]:
    """Return the command that runs us: the script beside the interpreter, if there is one."""
    script = Path(sys.executable).with_name("recalcd")
    return [str(script)] if script.exists() else [sys.executable, "-P", "-m", "cli"]


def _ending(exit_code: int) -> str:
    return (
        f"with exit code {exit_code}" if exit_code >= 0 else f"by signal {-exit_code} ({signal.strsignal(-exit_code)})"
    )
