"""Runs of recalcd under full control: which points a run passes, and what happens at one of them.

Nothing here waits for time: a run is a sequence of points, the same each time but for how often the daemon polls.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from crash_process import Point, Running, Stop
from crash_world import World

RUN_TIMEOUT_S = 30.0
"""Generous: only a run that hangs ever takes it."""

Fault = Literal["kill", "terminate", "crash"]
FAULTS: tuple[Fault, ...] = ("kill", "terminate", "crash")
"""The daemon by SIGKILL; its backend by pg_terminate_backend; all of Postgres by an immediate shutdown, and a start."""

Act = Callable[[World, Running, Stop], Awaitable[None]]
"""What else the test does at every stop, before the process goes on."""


@dataclass
class Ended:
    """How a run ended, and which points it passed."""

    exit_code: int
    """Negative: the signal that ended it."""
    points: list[Point]
    fault: Fault | None
    """What came about at the target, if it was reached."""


def can_be_hit(point: Point, fault: Fault) -> bool:
    """Tell whether the fault makes sense there: a backend can only be ended while there is one."""
    is_gone = (point.call, point.phase) in (("connect", "before"), ("close", "answered"), ("close", "after"))
    return fault != "terminate" or not is_gone


async def no_act(_world: World, _running: Running, _stop: Stop) -> None:
    """Let the run be."""


@dataclass
class Play:
    """One run of a command, and perhaps a fault at one of its points."""

    world: World
    command: Sequence[str]
    environment: dict[str, str]
    act: Act = no_act
    target: Point | None = None
    fault: Fault | None = None
    _points: list[Point] = field(default_factory=list)
    _was_hit: bool = False
    _call_count: int = 0
    """How often the procedure had been called before the statement in hand."""

    async def run(self) -> Ended:
        """Run it to its end, be that a SIGKILL."""
        running = await self.world.launcher.start(self.command, self.environment, watched=True)
        try:
            async with asyncio.timeout(RUN_TIMEOUT_S):
                async for stop in running.stops():
                    if await self._survives(running, stop):
                        running.go_on()
        except BaseException:
            await running.put_an_end()
            raise
        finally:
            await self.world.open_gate()
        return Ended(running.exit_code, self._points, self.fault if self._was_hit else None)

    async def _survives(self, running: Running, stop: Stop) -> bool:
        """Do what is to be done at this point; false when that was a SIGKILL."""
        point = stop.point
        await self._note(point)
        if self._leads_inside(point):
            await self.world.close_gate()
        if point == self.target:
            self._was_hit = True
            await self._strike(running, stop)
            return self.fault != "kill"
        await self.act(self.world, running, stop)
        return True

    async def _note(self, point: Point) -> None:
        """Keep the point, unless what the server is at by then is a matter of luck."""
        has_gate = point.has_gate and self.world.subject.has_gate
        if point.phase != "sent" or has_gate:
            self._points.append(point)
        if has_gate and point.phase == "before":
            self._call_count = await self.world.call_count()
        elif has_gate and point.phase == "answered" and self._call_count == await self.world.call_count():
            self._points.remove(replace(point, phase="sent"))  # nothing was called

    def _leads_inside(self, point: Point) -> bool:
        """Tell whether the target is inside the call that begins here."""
        target = self.target
        if target is None or target.phase != "sent" or point.phase != "before":
            return False
        return (*point.site[:3], point.occurrence) == (*target.site[:3], target.occurrence)

    async def _strike(self, running: Running, stop: Stop) -> None:
        if stop.point.phase == "sent":
            await self.world.until_at_gate(stop.backend_pid or 0)
        match self.fault:
            case "kill":
                running.signal(signal.SIGKILL)
            case "terminate":
                await self.world.terminate(stop.backend_pid or 0)
            case "crash":
                await self.world.crash()
        await self.world.open_gate()
