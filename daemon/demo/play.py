"""The course of the demo, from nothing to the account of what happened."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg

from daemon import migrations, sample_school, telemetry
from daemon.backfill import Backfiller
from daemon.database import connection, one_row
from daemon.demo.account import Account, read_group, read_pupil, read_recalculated, wrote
from daemon.demo.interruption import interruptible
from daemon.demo.screen import Screen, Step
from daemon.demo.stage import Stage
from daemon.demo.writers import Writers, choose_work, plan
from daemon.errors import RecalcdError
from daemon.keys import Topic, find_topic
from daemon.render import duration
from daemon.sql import statement
from daemon.verify import Verdict, Verifier

PROGRESS = statement("demo_progress")
TOPIC = "reports.student"
TICK_S = 0.25
LAST_TICK_S = 0.02
STUCK_S = 30.0
"""How long to wait for a queue that does not get shorter."""


@dataclass(frozen=True)
class Scenario:
    """What to load, and what to write."""

    students: int
    groups: int
    timeframes: int
    units: int
    feedback: int
    write_count: int
    rate_per_s: float
    keep: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the daemon is."""

    pending_count: int
    failing_count: int
    recalculation_count: int
    freshness_p50_s: float | None


async def play(scenario: Scenario, screen: Screen) -> Account:
    """Play it, and leave nothing running unless told to keep it.

    Raises Interrupted, DaemonDied, and what the parts raise; then, too, nothing is left.
    """
    return await interruptible(_play(scenario, screen))


async def _play(scenario: Scenario, screen: Screen) -> Account:
    with Stage() as stage:
        quiet = {} if "log_level" in stage.settings.model_fields_set else {"log_level": "warning"}
        telemetry.configure(stage.settings.model_copy(update=quiet))
        with screen.step(f"PostgreSQL {stage.server.version}"):
            stage.start_server()
        async with connection(stage.settings, application_name="recalcd demo", read_write=True) as opened:
            topic = await _prepare(opened, scenario, screen)
            with screen.step("daemon"):
                await stage.start_daemon(opened)
            act = _act(opened, topic, stage, scenario, screen)
            account = await stage.daemon.while_alive(act)
        if scenario.keep:
            account.reach = stage.leave_up()
        else:
            account.daemon_trouble = stage.daemon.stop()
        return account


async def _prepare(opened: asyncpg.Connection, scenario: Scenario, screen: Screen) -> Topic:
    with screen.step("migrations"):
        await migrations.up(opened)
    with screen.step("sample school", sample_school.STEPS) as step:
        await sample_school.load(
            opened,
            students=scenario.students,
            groups=scenario.groups,
            timeframes=scenario.timeframes,
            units=scenario.units,
            feedback=scenario.feedback,
            advanced=step.advance,
        )
    topic = await find_topic(opened, TOPIC)
    with screen.step("backfill", scenario.students) as step:
        job = await Backfiller(opened, topic, advanced=step.advance).run()
    if job.failed_count or job.skipped_count:
        raise RecalcdError(f"The backfill failed for {job.failed_count:,} pupils, and left {job.skipped_count:,}.")
    return topic


async def _act(opened: asyncpg.Connection, topic: Topic, stage: Stage, scenario: Scenario, screen: Screen) -> Account:
    """Write, wait until everything is fresh, and look at what became of it."""
    work = await choose_work(opened)
    pupil = work[0]
    before = await read_pupil(opened, pupil)
    writers = Writers(stage.settings, plan(work, scenario.write_count), scenario.rate_per_s)
    with screen.step("live writes", scenario.write_count) as step:
        progress = await _write(opened, writers, step)
    verdict = await _verify(opened, topic, scenario, screen)
    return Account(
        student_count=scenario.students,
        wrote=wrote(writers),
        recalculated=await read_recalculated(opened, writers),
        pending_count=progress.pending_count,
        failing_count=progress.failing_count,
        before=before,
        after=await read_pupil(opened, pupil),
        group=await read_group(opened, pupil),
        verdict=verdict,
    )


async def _write(opened: asyncpg.Connection, writers: Writers, step: Step) -> Progress:
    """Write, and wait until nothing is pending, or for so long that something must be wrong."""
    clock = asyncio.get_running_loop().time
    progress, moved_at = None, clock()
    async with _running(writers) as writing:
        while True:
            written = writing.done()  # asked before the look: what is written afterwards would not be seen by it
            before, progress = progress, await _look(opened)
            step.show(writers.count, _note(progress))
            if progress != before:
                moved_at = clock()
            if written and (not progress.pending_count or clock() - moved_at > STUCK_S):
                return progress
            await asyncio.wait([writing], timeout=TICK_S)
            await asyncio.sleep(LAST_TICK_S)


@asynccontextmanager
async def _running(writers: Writers) -> AsyncIterator[asyncio.Task[None]]:
    """Let them write during the block; see in the end what became of it."""
    writing = asyncio.create_task(writers.run())
    try:
        yield writing
        await writing
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


async def _look(opened: asyncpg.Connection) -> Progress:
    return Progress(**await one_row(opened, PROGRESS))


def _note(progress: Progress) -> str:
    return (
        f"{progress.pending_count:,} pending, {progress.recalculation_count:,} recalculated, "
        f"p50 {duration(progress.freshness_p50_s)}"
    )


async def _verify(opened: asyncpg.Connection, topic: Topic, scenario: Scenario, screen: Screen) -> Verdict:
    with screen.step("verify", scenario.students) as step:
        return await Verifier(opened, topic, advanced=step.advance).run()
