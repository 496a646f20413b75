"""What wakes the workers: the armed doorbell, and the poll behind it.

NOTIFY is a hint, the table is the truth. Writers only ring while a daemon is armed; a daemon arms when it is at rest,
on its LISTEN session, so that losing one loses both, and stays armed while writes wake it one by one. It looks once
more before it sleeps. But each NOTIFY makes the next one wait for its commit: when writers are seen to wait for each
other, or none finds it at rest any more, a crowd is at the door, and it disarms for a while, since it finds the next
events by itself, several at a time. Why no wake-up is lost: design.md, The armed doorbell.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NoReturn
from uuid import UUID

import asyncpg

from daemon import telemetry
from daemon.database import DATABASE_ERRORS, can_write, close, is_shared, one_row
from daemon.database import connection as brief_connection
from daemon.errors import DatabaseUnavailable
from daemon.hints import Hints
from daemon.pulse import Pulse, step_s
from daemon.session import Session, open_session
from daemon.settings import Settings
from daemon.sql import statement
from daemon.telemetry import log

LOOK = statement("look")
ARM = statement("arm")
DISARM = statement("disarm")
IS_COMMIT_QUEUED = statement("is_commit_queued")
ECHO = statement("echo")
CHANNEL = "outbox"
DOZE_S = 0.005
"""How soon to try again to fall asleep when silent writers are in flight, or keys are busy; doubles each time."""
CROWD = 5
"""So many more glances that see writers wait for each other than such that don't mute the bell."""
RUSH = 24
"""And so many rings on end that find a batch in hand: one writer that never pauses waits for nobody, but pays, too."""
GLANCE_S = 0.005
"""How long to look away after one. It takes the server 0.2 ms, and 2 ms where thousands of keys are locked."""
MUTE_S = 0.25
"""How long to mute the bell at first, before writers may ring again."""
LONGER = 4
"""So many times as long when the crowd is back as soon, up to a heartbeat; else one of hours would count for days."""
RELISTEN_S = 60.0
"""How long to do without LISTEN on a connection that does not deliver, before trying again."""


class Alarm:
    """Wakes one idle worker per ring; a ring while nobody waits is kept, further ones add nothing."""

    def __init__(self) -> None:
        """Start rung: whatever is pending already must not wait."""
        self._rings: asyncio.Queue[None] = asyncio.Queue(maxsize=1)
        self.ring()

    def ring(self) -> None:
        """Wake one worker."""
        with contextlib.suppress(asyncio.QueueFull):
            self._rings.put_nowait(None)

    async def wait(self) -> None:
        """Wait for a ring. It is taken before the worker claims: a commit during the claim rings again."""
        await self._rings.get()


@dataclass
class Activity:
    """Whether there is work, and when there was word of it last, as the doorbell and the poll need to know."""

    linger_s: float
    _stirred_at: float = field(default_factory=time.monotonic)
    _stirred: asyncio.Event = field(default_factory=asyncio.Event)
    _in_hand: int = 0
    _rested: asyncio.Event = field(default_factory=asyncio.Event)

    @contextlib.contextmanager
    def batch_in_hand(self) -> Iterator[None]:
        """Say that a worker has a batch in hand while the block runs."""
        self._in_hand += 1
        try:
            yield
        finally:
            self._in_hand -= 1
            if not self._in_hand:
                self._rested.set()

    @property
    def is_at_work(self) -> bool:
        """Whether any worker has a batch in hand."""
        return self._in_hand > 0

    async def rested(self) -> None:
        """Wait until no worker has a batch in hand any more."""
        self._rested.clear()
        if self._in_hand:
            await self._rested.wait()

    def stir(self) -> None:
        """Say that a batch was done, or a bell rung, just now."""
        self._stirred_at = time.monotonic()
        self._stirred.set()

    def quiet_s(self) -> float:
        """Return how long ago that was last."""
        return time.monotonic() - self._stirred_at

    def lingering_s(self) -> float:
        """Return how much longer to linger; 0 or less when it was not lately."""
        return self.linger_s - self.quiet_s()

    async def stirred(self) -> None:
        """Wait until it happens again."""
        self._stirred.clear()
        await self._stirred.wait()


class DeafListener(Exception):
    """The connection took LISTEN, but delivers nothing: a transaction pooler in between."""


class Doorbell:
    """Keeps the LISTEN session, arms it when there is nothing to do, and polls all the while."""

    def __init__(self, settings: Settings, daemon_id: UUID, alarm: Alarm, activity: Activity, hints: Hints) -> None:
        """Take whom to wake, and what tells when to sleep."""
        self._settings = settings
        self._alarm = alarm
        self._activity = activity
        self._hints = hints
        self._echo_channel = f"outbox_echo_{daemon_id.hex}"
        self._echoes: asyncio.Queue[str | None] = asyncio.Queue()
        self._rung = asyncio.Event()
        self._asleep_s: float | None = None
        self._doze_s = DOZE_S
        self._bell: Literal["armed", "guarded", "silent"] = "silent"
        """Whether we are armed, or another daemon was when we looked last: then writers ring."""
        self._crowd = 0
        self._rush = 0
        self._suspected = asyncio.Event()
        """Set when it is time to see whether there is a crowd."""
        self._glance_at = 0.0
        self._unmuted_at = 0.0
        self._mute_s = MUTE_S
        self._listener: Session | None = None
        self.is_listening = False
        self.is_degraded = False
        """Whether a LISTEN session was lost, or could not be had, and is not back yet."""
        self.is_settled = asyncio.Event()
        """Set once it is known how to be woken: by a ring, or not."""
        self.pulse = Pulse("listener", step_s(settings))

    @property
    def is_asleep(self) -> bool:
        """Whether a writer's ring will wake us."""
        return self._asleep_s is not None

    def state(self) -> Literal["listening", "degraded", "off"]:
        """Say what became of the LISTEN session; off: none is wanted, or none was there yet."""
        if self.is_listening:
            return "listening"
        return "degraded" if self.is_degraded else "off"

    async def poll(self) -> None:
        """Ring the alarm for ever: closely after work, rarely when a bell will ring, often when none can."""
        while True:
            try:
                async with asyncio.timeout(self._pause_s() * random.uniform(0.8, 1.0)):
                    await self._activity.stirred()
            except TimeoutError:
                self._alarm.ring()

    def _pause_s(self) -> float:
        settings, activity = self._settings, self._activity
        if self._asleep_s is not None:
            return self._asleep_s
        if activity.lingering_s() <= 0:
            return settings.poll_only_interval_s
        if self._bell == "silent":
            return settings.linger_poll_s
        return max(settings.linger_poll_s, activity.quiet_s())  # a bell rings for nearly all; no need to hurry

    async def listen(self) -> None:
        """Keep a LISTEN session for ever, unless told to poll only."""
        failures = 0
        if self._settings.wake == "poll":
            self.is_settled.set()
        while self._settings.wake != "poll":
            self.pulse.beat()
            try:
                await self._session()
            except DeafListener:
                log.warning(
                    telemetry.LISTENER_DEGRADED,
                    reason="notifications do not arrive: a transaction pooler in between?",
                    remedy="give recalcd a direct or session-pooled connection",
                    poll_only_interval_s=self._settings.poll_only_interval_s,
                )
                pause_s = RELISTEN_S
            except (DatabaseUnavailable, *DATABASE_ERRORS) as error:
                failures = 0 if self.is_listening else failures + 1
                if failures <= 1:
                    log.warning(telemetry.LISTENER_LOST, **telemetry.error_keys(error))
                pause_s = min(0.1 * 2 ** min(failures, 20), self._settings.retry_max_s)
            finally:
                self._bell, self._asleep_s, self.is_listening, self.is_degraded = "silent", None, False, True
                self.is_settled.set()
            self.pulse.beat(pause_s)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))

    async def _session(self) -> NoReturn:
        """Listen, then catch up, then sleep and wake until the connection is lost."""
        connection = await self._connect()
        self._echoes = asyncio.Queue()
        self._suspected.clear()  # whoever was suspected rang for the session before
        try:
            connection.add_termination_listener(self._on_loss)
            # From another session: a pooler may well hand a session its own notifications, and lose everybody else's.
            async with brief_connection(self._settings, application_name="recalcd echo", read_write=True) as other:
                await self._start_listening(connection, other)
                await self._beat(other)
            self.is_listening, self.is_degraded = True, False
            self.is_settled.set()
            log.info(telemetry.LISTENER_STARTED)
            self._alarm.ring()
            while True:
                self.pulse.beat()
                await self._watch(connection, time.monotonic() + self._settings.heartbeat_s)
                await self._beat(connection)
        finally:
            await close(connection)

    async def _connect(self) -> asyncpg.Connection:
        """Connect; if the session before is still there, though we lost it, end it: it may be armed."""
        found = await open_session(self._settings, application_name="recalcd listener")
        lost, self._listener = self._listener, found
        if lost:
            async with self._deadline(found.connection):
                await found.end_lost(lost)
        return found.connection

    async def _start_listening(self, connection: asyncpg.Connection, other: asyncpg.Connection) -> None:
        """Listen; but not in a session that another client gets, too: that would go on listening for nobody."""
        async with self._deadline(connection):
            if await is_shared(connection, other):
                raise DeafListener
            await connection.add_listener(CHANNEL, self._on_ring)
            await connection.add_listener(self._echo_channel, self._on_echo)

    @contextlib.asynccontextmanager
    async def _deadline(self, connection: asyncpg.Connection) -> AsyncIterator[None]:
        """Give a short step on the LISTEN session the time of a heartbeat; what takes longer is taken for lost."""
        try:
            async with asyncio.timeout(self._settings.heartbeat_timeout_s):
                yield
        except TimeoutError:
            connection.terminate()
            raise

    def _on_ring(self, *_: object) -> None:
        self._alarm.ring()
        self._rung.set()
        self._activity.stir()
        is_for_us_to_mute = self._bell == "armed" and self._settings.wake != "always"
        self._rush = self._rush + 1 if self._activity.is_at_work and is_for_us_to_mute else 0
        if self._rush and (self._rush >= RUSH or time.monotonic() >= self._glance_at):
            self._suspected.set()

    def _on_echo(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        self._echoes.put_nowait(str(payload))

    def _on_loss(self, _connection: object) -> None:
        """Wake whoever waits for this session, or its loss would wait for a timeout, and look like a deaf one's."""
        self._rung.set()
        self._echoes.put_nowait(None)

    async def _beat(self, connection: asyncpg.Connection) -> None:
        """Send a notification through the database and back to the LISTEN session.

        Raises TimeoutError when the link is half-open, ConnectionError when the session is gone, DeafListener when it
        lives but never delivered anything, and DatabaseUnavailable when the server takes no writes any more: those
        whose ring we wait for are elsewhere.
        """
        payload = str(time.monotonic_ns())
        async with self._deadline(connection):
            await connection.execute(ECHO, self._echo_channel, payload)
        if not can_write(connection):
            raise DatabaseUnavailable("The server we listen to has become read-only; the primary is elsewhere.")
        try:
            async with asyncio.timeout(self._settings.heartbeat_timeout_s):
                while (echo := await self._echoes.get()) != payload:
                    if echo is None:
                        raise ConnectionResetError("the LISTEN session ended")
        except TimeoutError:
            if self.is_listening:
                raise
            raise DeafListener from None

    async def _watch(self, connection: asyncpg.Connection, until: float) -> None:
        """Sleep and wake until that time, of the monotonic clock."""
        while (left_s := until - time.monotonic()) > 0:
            if connection.is_closed():  # with a batch in hand nothing else would notice before the next heartbeat
                raise ConnectionResetError("the LISTEN session ended")
            if self._suspected.is_set() and await self._is_crowd(connection):
                await self._mute(connection, left_s)
            elif self._bell != "silent" and (linger_s := self._activity.lingering_s()) > 0:
                await self._linger(min(linger_s, left_s))
            elif self._activity.is_at_work:  # its events are still to be seen, so we could not fall asleep
                await self._doze(self._activity.rested())
            elif self._bell == "silent" and await self._arm(connection):
                self._doze_s = DOZE_S
                self._alarm.ring()  # for what was written in silence until now
            elif self._bell != "silent" and await self._fall_asleep(connection):
                await self._sleep(left_s)
            else:
                await self._doze(asyncio.sleep(left_s))

    async def _linger(self, most_s: float) -> None:
        """Put off the next look, which would be in the way of work; a crowd must not wait for it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(most_s):
                await self._suspected.wait()

    async def _is_crowd(self, connection: asyncpg.Connection) -> bool:
        """Glance at the writers; say whether they have waited for each other, or rung on end, for long enough."""
        async with self._deadline(connection):
            is_queued = await connection.fetchval(IS_COMMIT_QUEUED)
        self._crowd = self._crowd + 1 if is_queued else max(0, self._crowd - 1)
        self._glance_at = time.monotonic() + GLANCE_S
        self._suspected.clear()
        return self._crowd >= CROWD or self._rush >= RUSH

    async def _mute(self, connection: asyncpg.Connection, most_s: float) -> None:
        """Let writers be silent while the work lasts, or until it is time to see whether they are still a crowd."""
        async with self._deadline(connection):
            await connection.fetchval(DISARM)
        log.debug(telemetry.DOORBELL_DISARMED)
        self._bell, self._rush, self._crowd = "silent", 0, CROWD - 1  # if it is still there then, one glance will do
        now = time.monotonic()
        longer_s = min(LONGER * self._mute_s, self._settings.heartbeat_s)
        self._mute_s = longer_s if now < self._unmuted_at + self._mute_s else MUTE_S
        self._unmuted_at = now + min(self._mute_s, most_s)
        while (left_s := self._unmuted_at - time.monotonic()) > 0 and not connection.is_closed():
            if (linger_s := self._activity.lingering_s()) <= 0:
                self._unmuted_at = 0.0
                break
            await asyncio.sleep(min(linger_s, left_s))

    async def _doze(self, waker: Awaitable[object]) -> None:
        """Sleep a little, longer each time, and let an idle worker look; until the waker's time has come."""
        try:
            async with asyncio.timeout(self._doze_s):
                await waker
            self._doze_s = DOZE_S
        except TimeoutError:
            self._doze_s = min(2 * self._doze_s, self._settings.poll_only_interval_s)
            self._alarm.ring()

    async def _arm(self, connection: asyncpg.Connection) -> bool:
        """Let writers ring from now on; false while silent ones are in flight."""
        async with self._deadline(connection):
            state = await connection.fetchval(ARM)
        self._bell = "silent" if state == "busy" else state
        if self._bell != "silent":
            log.debug(telemetry.DOORBELL_ARMED, state=state)
        return self._bell != "silent"

    async def _fall_asleep(self, connection: asyncpg.Connection) -> bool:
        """Arm, then look once more; false when there is something to do after all."""
        self._rung.clear()
        if self._bell != "armed" and not await self._arm(connection):
            return False
        async with self._deadline(connection):
            look = await one_row(connection, LOOK, self._hints.skipped(time.monotonic()))
        if look["ready"]:
            self._hints.sweep()
            self._alarm.ring()
            return False
        self._doze_s = DOZE_S
        next_attempt_s = self._settings.poll_interval_s if look["next_attempt_s"] is None else look["next_attempt_s"]
        self._asleep_s = max(0.01, min(self._settings.poll_interval_s, next_attempt_s))
        return True

    async def _sleep(self, most_s: float) -> None:
        """Sleep until rung, until there was work without a ring, or for most_s seconds."""
        wakers = (self._rung.wait(), self._activity.stirred(), asyncio.sleep(most_s))
        sleepers = [asyncio.ensure_future(waker) for waker in wakers]
        try:
            await asyncio.wait(sleepers, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._asleep_s = None
            for sleeper in sleepers:
                sleeper.cancel()
