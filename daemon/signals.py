"""The signals that the daemon answers. Until it can, they wait: each would end a starting process without a word."""

import asyncio
import signal
from collections.abc import Callable

STOP = (signal.SIGTERM, signal.SIGINT)
RELOAD = (signal.SIGHUP,)


def hold() -> None:
    """Let signals wait until catch(). To be called before anything that takes time, imports included."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (*STOP, *RELOAD))


def catch(*, stop: Callable[[], None], reload: Callable[[], None]) -> None:
    """Let the running event loop answer signals, those that have waited included."""
    loop = asyncio.get_running_loop()
    for number in STOP:
        loop.add_signal_handler(number, stop)
    for number in RELOAD:
        loop.add_signal_handler(number, reload)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*STOP, *RELOAD))
