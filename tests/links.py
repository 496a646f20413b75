"""What the tests of links share: how fast they beat, and how they wait for what the daemon notices."""

from collections.abc import Callable
from typing import Any

from engine import events_of
from proxy import Link, Proxy, Trap
from waiting import eventually

from daemon.settings import Settings

WORKER, LISTENER, WATCH = "recalcd worker", "recalcd listener", "recalcd watch"
BEAT_S = 0.4
"""heartbeat_s and heartbeat_timeout_s of these tests."""

LOAD_S = 3.0
"""How late a busy machine may be at anything."""

REQUEST, REPLY = "request", "reply"

Through = Callable[..., Settings]
"""What the fixture `through` is."""


def trap(proxy: Proxy, name: str, sql: str, when: str, act: Callable[[Link], None] = Link.vanish) -> Trap:
    return (proxy.at_request if when == REQUEST else proxy.at_reply)(name, sql, act)


async def told(logged: list[Any], event: str, count: int = 1, *, within_s: float = 10.0) -> None:
    """Wait until an event was logged so many times."""

    async def is_told() -> bool:
        return len(events_of(logged, event)) >= count

    await eventually(is_told, within_s + LOAD_S)


async def replaced(proxy: Proxy, lost: Link) -> None:
    """Wait until a younger link does the work of one that was lost."""

    async def is_replaced() -> bool:
        return bool(proxy.of(lost.application_name)) and proxy.of(lost.application_name)[-1] is not lost

    await eventually(is_replaced)
