"""Being told to stop, by Ctrl-C or a signal, without leaving anything behind."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

from daemon.errors import RecalcdError

T = TypeVar("T")


class Interrupted(RecalcdError):
    """Somebody asked for an early end, and got it."""

    def __init__(self, signum: int) -> None:
        """Take the signal, which makes the exit code a shell would give: 130 for Ctrl-C, 143 for SIGTERM."""
        super().__init__("Interrupted. Daemon and database are stopped, and nothing is left of them.")
        self.exit_code = 128 + signum


async def interruptible(work: Coroutine[Any, Any, T]) -> T:
    """Do the work. The first signal cancels it; further ones are ignored, so that it cleans up undisturbed.

    Raises Interrupted whatever the work made of the signal: Ctrl-C reaches its child processes, too, and their failing
    may be what it notices first.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    received: list[int] = []

    def interrupt(signum: int, _frame: object) -> None:
        if not received:
            loop.call_soon_threadsafe(task.cancel)
        received.append(signum)

    # Not loop.add_signal_handler, which hears nothing while the loop is busy with something that blocks.
    previous = {signum: signal.signal(signum, interrupt) for signum in _signals()}
    try:
        return await task
    except (Exception, asyncio.CancelledError):
        if received:
            raise Interrupted(received[0]) from None
        raise
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _signals() -> list[signal.Signals]:
    """Return the signals that ask for an end; not the terminal's hanging up when nohup wants that ignored."""
    hears_hang_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hears_hang_up else [])]
