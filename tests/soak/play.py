"""A soak from its first fault to its verdict."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import asyncpg
from engine import failures, pending

from daemon.database import DATABASE_ERRORS, one_row
from soak.faults import FAULTS, Fault, Scene
from soak.fleet import Fleet
from soak.operations import OPERATIONS, insist, run
from soak.stage import FRAGILE, RECOVERY_S, Stage
from soak.watch import Freshness, Watcher, freshness
from soak.writers import Writers

STORM_S, CALM_S = 45.0, RECOVERY_S + 9.0
"""Faults for so long, then none for so long: or there would be no time at all outside of their windows."""
PAUSE_S = (0.5, 3.0)
PROGRESS_S = 5.0
DRAINED_S = 60.0
"""For what is left at the end; far more than it should take."""

_DONE = """
    select coalesce(sum(b.event_count), 0)::bigint as events,
           coalesce(sum(cardinality(b.keys)), 0)::bigint as recalculations
    from outbox.batch as b
"""


@dataclass
class Play:
    """Everybody who takes part, and what they did."""

    stage: Stage
    fleet: Fleet
    writers: Writers
    watcher: Watcher
    tell: Callable[[str], None]
    faults: Counter[str] = field(default_factory=Counter)
    thwarted: Counter[str] = field(default_factory=Counter)
    """Faults that could not be carried out for another one."""
    seconds: float = 0.0
    events: int = 0
    recalculations: int = 0
    fresh: Freshness | None = None

    async def perform(self, seconds: float) -> None:
        """Let all of it happen for so long, or until told to stop; then see that all is well."""
        background = [self.writers.run(), self.fleet.watch(), self.watcher.run(), self._tell_progress()]
        tasks = [asyncio.create_task(each) for each in background]
        lanes = [asyncio.create_task(self._lane(FAULTS, 1)), asyncio.create_task(self._lane(OPERATIONS, 2))]
        tasks += [asyncio.create_task(self._weather()), asyncio.create_task(self._stopped())]
        await asyncio.wait([*tasks, *lanes], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        self.stage.stopping.set()
        await asyncio.wait(lanes)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        self.seconds = self.stage.now
        for task in (*tasks, *lanes):
            if not task.cancelled() and (error := task.exception()):
                self.stage.problem(f"the soak itself failed: {error!r}")
        await self._finish()

    async def _stopped(self) -> None:
        await self.stage.stopping.wait()

    async def _weather(self) -> None:
        while True:
            await asyncio.sleep(STORM_S)
            self.stage.is_calm = True
            await asyncio.sleep(CALM_S)
            self.stage.is_calm = False

    async def _lane(self, kinds: Sequence[Fault], number: int) -> None:
        """Do one after the other, each kind once before any comes again."""
        scene = Scene(self.stage, self.fleet, random.Random(f"lane {number} of {self.stage.seed}"))
        while not self.stage.stopping.is_set():
            for fault in scene.chance.sample(kinds, len(kinds)):
                await self._pause(scene.chance.uniform(*PAUSE_S))
                if self.stage.stopping.is_set():
                    return
                await self._strike(fault, scene)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.stage.stopping.wait()
        while self.stage.is_calm and not self.stage.stopping.is_set():  # noqa: ASYNC110  # until either
            await asyncio.sleep(0.1)

    async def _strike(self, fault: Fault, scene: Scene) -> None:
        since = self.stage.now
        self.stage.open_faults.append(fault.name)
        try:
            await fault.strike(scene)
            self.faults[fault.name] += 1
        except DATABASE_ERRORS:
            self.thwarted[fault.name] += 1
        self.stage.open_faults.remove(fault.name)
        if fault.recovery_s:
            self.stage.windows.append((since, self.stage.now + fault.recovery_s))

    async def _tell_progress(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            now = "calm" if self.stage.is_calm else ", ".join(self.stage.open_faults) or "-"
            memory = " ".join(f"{life.memory_mb[-1][1]:.0f}" for life in self.fleet.current if life.memory_mb)
            self.tell(
                f"{self.stage.now:6.0f} s  {self.writers.count:7,} writes  {self.faults.total():4} faults  "
                f"{self.watcher.look_count:4} looks  {len(self.stage.problems):2} problems  {memory} MB  {now}"
            )

    async def _finish(self) -> None:
        """Cure, drain, and look at everything once more."""
        scene = Scene(self.stage, self.fleet, random.Random(0))
        await insist(scene, "delete from fragile.poison")
        await run(scene, "replay", FRAGILE, "--dead", "--yes")
        async with self.stage.session("soak watcher") as db:
            await self._drain(db)
            await self.watcher.look(db, thoroughly=True)
            if missing := await self.writers.missing(db):
                self.stage.problem(f"{missing} acknowledged writes are gone")
            code, _ = await run(scene, "verify")
            if code != 0:
                self.stage.problem(f"recalcd verify ended with {code} at the end")
            self.fresh = await freshness(db, self.stage, self.seconds)
            done = await one_row(db, _DONE)
            self.events, self.recalculations = done["events"], done["recalculations"]
        await self.fleet.stop()

    async def _drain(self, db: asyncpg.Connection) -> None:
        deadline = self.stage.now + DRAINED_S
        while left := len(await pending(db)) + len(await failures(db)):
            if self.stage.now > deadline:
                self.stage.problem(f"{left} events and failures are left after {DRAINED_S:.0f} s without a fault")
                return
            await asyncio.sleep(0.1)
