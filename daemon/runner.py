"""The daemon: starts the tasks, waits for a signal, and stops them so that nothing is lost and nobody is charged."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from enum import Enum
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import asyncpg
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from daemon import __version__, signals, systemd, telemetry
from daemon.auditor import Auditor
from daemon.database import CONNECTION_ERRORS, blame_of, sqlstate_of
from daemon.doorbell import Activity, Alarm, Doorbell
from daemon.drain import Drain
from daemon.errors import FORBIDDEN, Blame, ConfigurationError, DatabaseRefuses, DatabaseUnavailable, SchemaMismatch
from daemon.hints import Hints
from daemon.housekeeping import Housekeeper
from daemon.migration_state import check_schema
from daemon.monitoring import Monitoring
from daemon.pulse import Pulse, feed_watchdog
from daemon.redaction import error_facts
from daemon.session import brief_session
from daemon.settings import Settings
from daemon.sql import statement
from daemon.telemetry import log
from daemon.worker import Shared, Worker

if TYPE_CHECKING:
    from daemon.metrics import Metrics

COUNT_DEAD = statement("count_dead")
PAUSED_WITH_WORK = statement("paused_with_work")
PARTING_S = 10.0
"""Longer than it takes to close connections and say goodbye, each of which is given up after two seconds."""
PATIENCE_S = 60.0
"""TimeoutStartSec of the unit: what a start may take besides waiting for the database."""
_SCHEMA_GONE = (
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedFunctionError,
    asyncpg.InvalidSchemaNameError,
    asyncpg.InternalServerError,  # "cache lookup failed": dropped between being found and being called
)


class Ending(Enum):
    """Why a crew went off duty."""

    STOPPED = "stopped"
    DRAINED = "drained"
    RELOADED = "reloaded"


class Crew:
    """The tasks that one reading of the settings starts."""

    def __init__(self, settings: Settings, daemon_id: UUID, metrics: "Metrics | None" = None) -> None:
        """Prepare; nothing runs yet."""
        self._shared = Shared(
            settings=settings,
            daemon_id=daemon_id,
            alarm=Alarm(),
            activity=Activity(settings.linger_s),
            hints=Hints(settings.batch_target_s),
            housekeeping=asyncio.Event(),
            metrics=metrics,
        )
        shared = self._shared
        self._doorbell = Doorbell(settings, daemon_id, shared.alarm, shared.activity, shared.hints)
        if metrics:
            metrics.listener_state = self._doorbell.state
        self._housekeeper = Housekeeper(shared, self._state)
        self.drain = Drain(settings, shared.hints)
        self._workers = [Worker(shared) for _ in range(settings.workers)]
        self._off_duty = asyncio.Event()
        self.ending: Ending | None = None
        self.pulses: list[Pulse] = []
        """Of the loops that are running."""

    async def prepare(self) -> None:
        """Find the database as we need it, and say that we are here. Raises SchemaMismatch, DatabaseUnavailable."""
        async with brief_session(self._shared.settings, application_name="recalcd start") as connected:
            await check_schema(connected)
        await self._housekeeper.make_round()

    def go_off_duty(self, ending: Ending) -> None:
        """Ask everybody to finish the batch in hand and leave. To stop outranks what was asked before."""
        if self.ending is None or ending is Ending.STOPPED:
            self.ending = ending
        self._off_duty.set()

    async def serve(self, *, drain: bool, hurry: asyncio.Event) -> Ending:
        """Work until told to go. hurry, set later, means: roll back what is in hand."""
        background = [self._doorbell.listen(), self._doorbell.poll(), self._housekeeper.run(), self._report_for_duty()]
        if drain:
            background.append(self._watch_drain())
        elif self._shared.settings.verify_keys_per_minute:
            background.append(Auditor(self._shared.settings).run())
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in background]
            working = {group.create_task(worker.run()): worker for worker in self._workers}
            self.pulses = [self._doorbell.pulse, self._housekeeper.pulse, *(each.pulse for each in self._workers)]
            await self._off_duty.wait()
            await self._finish(working, hurry)
            self.pulses = []
            for task in tasks:
                task.cancel()
        if self.ending is not Ending.RELOADED:
            await self._housekeeper.say_goodbye()
        await self.close()
        return self.ending or Ending.STOPPED

    async def close(self) -> None:
        """Give back what the preparation opened."""
        await self._housekeeper.close()

    async def _finish(self, working: dict[asyncio.Task[None], Worker], hurry: asyncio.Event) -> None:
        """Let batches in hand be finished, within the grace period; the idle leave at once."""
        grace_s = self._shared.settings.stop_grace_s
        systemd.extend_timeout(grace_s + PARTING_S)
        self._shared.stopping.set()
        for task, worker in working.items():
            if not worker.has_batch_in_hand:
                task.cancel()
        hurried = asyncio.ensure_future(hurry.wait())
        finished = asyncio.ensure_future(asyncio.wait(working))
        await asyncio.wait([hurried, finished], timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        for task in working:
            task.cancel()
        await asyncio.wait(working)

    async def _report_for_duty(self) -> None:
        """Tell systemd that start-up or reload is over, once we listen, or know that we can't."""
        await self._doorbell.is_settled.wait()
        systemd.ready()
        self._housekeeper.show_status()

    async def _watch_drain(self) -> None:
        """Go off duty when nothing is left to do."""
        await self.drain.watch()
        self.go_off_duty(Ending.DRAINED)

    def _state(self) -> str:
        if self._off_duty.is_set():
            return "stopping"
        if self._doorbell.is_degraded:
            return "degraded"
        return "idle" if self._doorbell.is_asleep else "working"


class Runner:
    """`recalcd run`: from the first attempt to connect to the exit code."""

    def __init__(self, load: Callable[[], Settings], *, drain: bool = False) -> None:
        """Take what reads the settings, now and at every SIGHUP."""
        self._load = load
        self._monitoring = Monitoring()
        self._drain = drain
        self._daemon_id = uuid4()
        self._crew: Crew | None = None
        self._hurry = asyncio.Event()
        self._stop_count = 0
        self._starting: asyncio.Task[None] | None = None
        self._has_served = False

    async def run(self) -> int:
        """Return the exit code: 0, or 1 when a drain leaves something. Raises RecalcdError for every other ending."""
        settings = self._load()
        self._monitoring.configure(settings)
        signals.catch(stop=self.stop, reload=self.reload)
        log.info(telemetry.DAEMON_STARTED, daemon_id=self._daemon_id, version=__version__, workers=settings.workers)
        async with self._watchdog():
            while (ending := await self._on_duty(settings)) is Ending.RELOADED:
                settings = self._reload(settings)
        log.info(telemetry.DAEMON_STOPPED, ending=ending.value)
        return await self._what_is_left(settings) if ending is Ending.DRAINED else 0

    async def _on_duty(self, settings: Settings) -> Ending:
        """Wait for the database, however long that takes, then work until told otherwise."""
        self._crew = Crew(settings, self._daemon_id, self._monitoring.metrics)
        self._starting = asyncio.create_task(self._patiently(settings, self._crew.prepare))
        try:
            await self._starting
        except asyncio.CancelledError:
            if self._crew.ending is None:
                raise
            await self._crew.close()
            return self._crew.ending
        self._has_served = True
        try:
            return await self._crew.serve(drain=self._drain, hurry=self._hurry)
        except BaseExceptionGroup as group:
            raise _reason(group) from None

    @contextlib.asynccontextmanager
    async def _watchdog(self) -> AsyncIterator[None]:
        """Feed systemd's watchdog in this block, if it has one. While no crew serves, it is enough that we turn."""
        interval_s = systemd.watchdog_interval_s()
        feeding = asyncio.create_task(feed_watchdog(interval_s, self._pulses)) if interval_s else None
        try:
            yield
        finally:
            if feeding:
                feeding.cancel()

    def _pulses(self) -> list[Pulse]:
        return self._crew.pulses if self._crew else []

    def _reload(self, settings: Settings) -> Settings:
        try:
            settings = self._load()
        except ConfigurationError as error:
            log.error(telemetry.SETTINGS_REFUSED, error=str(error))
        else:
            self._monitoring.configure(settings)
            log.info(telemetry.SETTINGS_RELOADED, workers=settings.workers)
        return settings

    def stop(self) -> None:
        """Finish the batch in hand and exit; the second time, roll it back."""
        self._stop_count += 1
        systemd.stopping()
        log.info(telemetry.DAEMON_STOPPING, hurry=self._stop_count > 1)
        if self._stop_count > 1:
            self._hurry.set()
        self._go_off_duty(Ending.STOPPED)

    def reload(self) -> None:
        """Read the settings again: between two batches, or while the database of the old ones is awaited."""
        systemd.reloading()
        self._go_off_duty(Ending.RELOADED)

    def _go_off_duty(self, ending: Ending) -> None:
        if self._crew is not None:
            self._crew.go_off_duty(ending)
        if self._starting is not None:
            self._starting.cancel()  # does nothing once the start is over

    async def _patiently(self, settings: Settings, step: Callable[[], Awaitable[None]]) -> None:
        """Do the step as soon as the database is there."""
        retrying = AsyncRetrying(
            wait=wait_random_exponential(multiplier=0.1, max=settings.retry_max_s),
            retry=retry_if_exception(_may_start_later),
            before_sleep=self._tell_of_waiting,
        )
        await retrying(step)

    def _tell_of_waiting(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        facts = telemetry.error_keys(error) if error else {}
        log.warning(telemetry.DATABASE_AWAITED, attempt=state.attempt_number, **facts)
        wait_s = state.next_action.sleep if state.next_action else 0.0
        if self._has_served:
            systemd.ready()  # the settings are read again: whoever asked for that need not wait for the database
        else:
            systemd.extend_timeout(wait_s + PATIENCE_S)  # waiting for a database is no failed start
        systemd.status(f"waiting for the database: {facts.get('error')}")

    async def _what_is_left(self, settings: Settings) -> int:
        """Return the exit code of a drain."""
        async with brief_session(settings, application_name="recalcd drain") as connected:
            dead_count = await connected.fetchval(COUNT_DEAD)
            paused_topics = [row["topic"] for row in await connected.fetch(PAUSED_WITH_WORK)]
        if dead_count:
            log.warning(telemetry.DRAIN_LEFT_DEAD, dead_count=dead_count)
        broken_topics = self._crew.drain.broken_topics if self._crew else []
        for topic in broken_topics:
            remedy = "create the procedure, grant execute on it, or name another one with `recalcd topic set`"
            log.error(telemetry.DRAIN_LEFT_BROKEN, topic=topic, remedy=remedy)
        for topic in paused_topics:
            log.warning(telemetry.DRAIN_LEFT_PAUSED, topic=topic, remedy=f"recalcd topic resume {topic}")
        return 1 if dead_count or broken_topics or paused_topics else 0


def _may_start_later(error: BaseException) -> bool:
    """Say whether waiting may help: a wrong DSN stays wrong; but privileges are granted again, and locks let go."""
    if isinstance(error, DatabaseRefuses):
        return False
    if isinstance(error, asyncpg.PostgresError):
        return sqlstate_of(error) == FORBIDDEN or blame_of(error) in (Blame.SERVER, Blame.CONTENTION)
    return isinstance(error, (DatabaseUnavailable, *CONNECTION_ERRORS))


def _reason(error: BaseException) -> BaseException:
    """Return what ended a task group: its first error, the others being echoes."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, _SCHEMA_GONE):
        return SchemaMismatch(
            f"The schema changed beneath the daemon: {error_facts(error).message}. See `recalcd migrate status`."
        )
    return error
