"""What befalls the daemons, the network and the server. Each fault leaves everything as it found it."""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Literal

import asyncpg
from engine import terminate

from soak.fleet import Fleet
from soak.stage import RECOVERY_S, Stage

SESSIONS = [f"recalcd {name}" for name in ("worker", "listener", "housekeeper", "witness", "echo")]
TAKEOVER_S = 2.0
"""In which the other daemons do what one of them leaves: a poll, and a batch."""


@dataclass(frozen=True)
class Scene:
    """Whom a fault may befall, and the chance that decides."""

    stage: Stage
    fleet: Fleet
    chance: random.Random


@dataclass(frozen=True)
class Fault:
    """A kind of fault, and how long after its end late recalculations are excused."""

    name: str
    strike: Callable[[Scene], Awaitable[None]]
    recovery_s: float = RECOVERY_S


async def kill_daemon(scene: Scene) -> None:
    await scene.fleet.end(scene.chance.choice(scene.fleet.mortal), signal.SIGKILL)


async def restart_daemon(scene: Scene) -> None:
    await scene.fleet.end(scene.chance.choice(scene.fleet.mortal), signal.SIGTERM)


async def freeze_daemon(scene: Scene) -> None:
    life = await scene.fleet.send(scene.chance.randrange(3), signal.SIGSTOP)
    await asyncio.sleep(scene.chance.uniform(1, 4))
    life.process.send_signal(signal.SIGCONT)


async def reload_daemon(scene: Scene) -> None:
    await scene.fleet.send(scene.chance.randrange(3), signal.SIGHUP)


async def end_sessions(scene: Scene) -> None:
    name = scene.chance.choice(SESSIONS)
    async with scene.stage.session("soak fault") as db:
        await terminate(db, name)


async def end_all_sessions(scene: Scene) -> None:
    async with scene.stage.session("soak fault") as db:
        await db.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'recalcd%'"
        )


async def crash_server(scene: Scene) -> None:
    await _restart(scene, "immediate")


async def restart_server(scene: Scene) -> None:
    await _restart(scene, "fast")


async def _restart(scene: Scene, mode: Literal["fast", "immediate"]) -> None:
    server, away_s = scene.stage.server, scene.chance.uniform(0, 2)
    await asyncio.to_thread(server.stop, mode)
    await asyncio.sleep(away_s)
    await asyncio.to_thread(server.start)


async def cut_links(scene: Scene) -> None:
    how: Literal["rst", "fin"] = "rst" if scene.chance.random() < 0.5 else "fin"
    for link in scene.stage.proxy.links:
        if link.is_open and scene.chance.random() < 0.5:
            link.cut(how)


async def half_open(scene: Scene) -> None:
    """Let some links vanish; what is stuck in them after a while, a firewall's timeout would end."""
    links = [link for link in scene.stage.proxy.links if link.is_open]
    victims = scene.chance.sample(links, min(3, len(links)))
    for link in victims:
        link.vanish()
    await asyncio.sleep(4)
    for link in victims:
        link.cut()


async def slow_network(scene: Scene) -> None:
    links = [link for link in scene.stage.proxy.links if link.is_open]
    for link in links:
        link.slow_down(delay_s=0.05)
    await asyncio.sleep(scene.chance.uniform(2, 4))
    for link in links:
        link.restore()


async def network_away(scene: Scene) -> None:
    proxy = scene.stage.proxy
    proxy.is_refusing = scene.chance.random() < 0.5
    proxy.is_silent = not proxy.is_refusing
    for link in proxy.links:
        if link.is_open:
            link.cut()
    await asyncio.sleep(scene.chance.uniform(1, 3))
    proxy.is_refusing = proxy.is_silent = False


async def no_connections_left(scene: Scene) -> None:
    """Take every connection there is, and make the daemons want some."""
    async with AsyncExitStack() as held:
        try:
            while True:
                await held.enter_async_context(scene.stage.session("soak crowd"))
        except asyncpg.TooManyConnectionsError:
            await cut_links(scene)
            await asyncio.sleep(2)


async def read_only(scene: Scene) -> None:
    async with scene.stage.session("soak fault") as db:
        await db.execute("set default_transaction_read_only = off")
        await db.execute("alter system set default_transaction_read_only = on")
        await db.execute("select pg_reload_conf()")
        await asyncio.sleep(scene.chance.uniform(1, 3))
        await db.execute("alter system reset default_transaction_read_only")
        await db.execute("select pg_reload_conf()")


FAULTS = [
    Fault("daemon killed", kill_daemon, TAKEOVER_S),
    Fault("daemon stopped and started", restart_daemon, TAKEOVER_S),
    Fault("daemon frozen", freeze_daemon, TAKEOVER_S),
    Fault("settings reloaded", reload_daemon, TAKEOVER_S),
    Fault("sessions ended", end_sessions),
    Fault("all sessions ended", end_all_sessions),
    Fault("server crashed", crash_server),
    Fault("server restarted", restart_server),
    Fault("links cut", cut_links),
    Fault("links half-open", half_open),
    Fault("network slow", slow_network),
    Fault("network away", network_away),
    Fault("out of connections", no_connections_left),
    Fault("read-only", read_only),
]
