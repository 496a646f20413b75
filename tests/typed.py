"""Running recalcd as it is typed, in this process or at a terminal; for tests of commands."""

import asyncio
import os
import pty
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from click.testing import CliRunner, Result
from waiting import eventually

from cli import main

Recalcd = Callable[..., "asyncio.Future[Result]"]
"""Runs a command; await it."""


def recalcd_on(dsn: str) -> Recalcd:
    """Return what runs a command on a database, in a thread of its own: a command has an event loop of its own."""

    def run(*arguments: str, stdin: str | None = None) -> "asyncio.Future[Result]":
        def invoke() -> Result:
            return CliRunner().invoke(main, arguments, input=stdin, env={"RECALCD_DATABASE_URL": dsn})

        return asyncio.get_running_loop().run_in_executor(None, invoke)

    return run


@dataclass
class AtTerminal:
    """A command whose stdin and stderr are a terminal."""

    process: subprocess.Popen[str]
    keyboard: int

    async def answer(self, text: str) -> tuple[str, str]:
        """Type an answer; return what it prints on stdout and stderr, once it has ended."""
        os.write(self.keyboard, f"{text}\n".encode())
        return await asyncio.to_thread(self.process.communicate, timeout=30)

    async def interrupt(self) -> int:
        """Press Ctrl-C, once, when it has asked and waits for the answer; return how it ends."""
        assert self.process.stderr is not None
        asked = asyncio.to_thread(read_until, self.process.stderr, "Go on? [y/N]:")
        await asyncio.wait_for(asked, timeout=30)  # at_terminal ends what hangs, and with it the reading
        await eventually(partial(is_asleep, self.process.pid))  # a signal before it reads would not wake it
        self.process.send_signal(signal.SIGINT)  # the terminal is not its controlling one, so the key is not heard
        return await asyncio.to_thread(self.process.wait, timeout=30)


async def is_asleep(pid: int) -> bool:
    """Whether a process waits for something."""
    return state_of(pid) == "S"


def state_of(pid: int) -> str:
    """Return what /proc says of a process: R, S, Z."""
    return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0]


def read_until(stream: IO[str], end: str) -> None:
    """Read what a command prints until it has printed that."""
    text = ""
    while not text.endswith(end):
        character = stream.read(1)
        assert character, f"{text!r} ended without {end!r}"
        text += character


@asynccontextmanager
async def at_terminal(dsn: str, *arguments: str) -> AsyncIterator[AtTerminal]:
    """Run a command that can ask; it does not outlive the block."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(  # noqa: ASYNC220  # starts at once; what takes long is waited for in a thread
        [sys.executable, "-m", "cli", *arguments],
        env=os.environ | {"RECALCD_DATABASE_URL": dsn},
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with process:
            try:
                yield AtTerminal(process, ours)
            finally:
                process.kill()
    finally:
        os.close(ours)
        os.close(theirs)
