"""Lets the daemon that finds this in its PYTHONPATH hang on demand, as a bug of ours would; see scenarios."""

import asyncio
import signal
import time
from typing import Any, NoReturn


def block(*_: object) -> NoReturn:
    """Hold up the event loop for good."""
    while True:
        time.sleep(1)


def hang(*_: object) -> None:
    """Let every worker wait for what nobody will ever do."""
    from daemon.worker import Worker  # noqa: PLC0415  # not before the daemon itself does

    async def for_ever(*_: Any) -> NoReturn:
        await asyncio.Event().wait()
        raise AssertionError

    Worker._run_batch = for_ever  # type: ignore[assignment,method-assign]


signal.signal(signal.SIGUSR1, hang)
signal.signal(signal.SIGUSR2, block)
