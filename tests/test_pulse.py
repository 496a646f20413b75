"""What systemd is told of a daemon: ready, its status, and that it is alive, which must not be said of one that hangs.

The daemon runs in this process; what it would tell systemd is read from a socket of our own.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

import asyncpg
import pytest
from engine import asleep, done, enqueue, events_of, impatient, make_ledger, make_topic, until_empty
from process import WITHIN_S
from proxy import Proxy
from pydantic import SecretStr
from waiting import eventually

from daemon import pulse, systemd, telemetry
from daemon.doorbell import Activity, Alarm, Doorbell
from daemon.hints import Hints
from daemon.pulse import Pulse, feed_watchdog, step_s
from daemon.runner import Runner
from daemon.settings import Settings
from daemon.worker import Shared, Worker

WATCHDOG_S = 0.2
BRIEF = {"heartbeat_s": 0.5, "heartbeat_timeout_s": 0.5, "connect_timeout_s": 0.5}
SLACK_S = 0.5


@dataclass
class Systemd:
    """The other end of $NOTIFY_SOCKET."""

    receiver: socket.socket
    heard: list[str] = field(default_factory=list)

    def listen(self) -> list[str]:
        """Return every message so far, oldest first."""
        while True:
            try:
                self.heard.append(self.receiver.recv(4096).decode())
            except BlockingIOError:
                return self.heard

    def count(self, message: str) -> int:
        return self.listen().count(message)

    def told(self, start: str) -> list[str]:
        return [each for each in self.listen() if each.startswith(start)]

    async def until_told(self, start: str, count: int = 1) -> list[str]:
        async def is_told() -> list[str]:
            told = self.told(start)
            return told if len(told) >= count else []

        return await eventually(is_told, timeout_s=WITHIN_S)

    async def is_fed_for(self, seconds: float) -> None:
        """Wait for so many signs of life that, at the pace they may come, this time has passed."""
        await self.until_told("WATCHDOG=1", self.count("WATCHDOG=1") + round(2 * seconds / WATCHDOG_S))


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    """Stand in for systemd, with a watchdog of WATCHDOG_S."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", str(round(WATCHDOG_S * 1e6)))
        monkeypatch.setattr(pulse, "SLACK_S", SLACK_S)
        monkeypatch.setattr("daemon.housekeeping.ROUND_S", 0.2)
        yield Systemd(receiver)


@pytest.fixture
def brief(settings: Settings) -> Settings:
    """Shorten every deadline, so that a hang is known as one soon."""
    return impatient(settings, **BRIEF)


Run = Callable[..., Any]


@pytest.fixture
def run(brief: Settings, logged: list[Any], monkeypatch: pytest.MonkeyPatch) -> Run:  # noqa: ARG001  # collects the log
    """Run the daemon while the block runs; it has to be killed if it hangs, as systemd does."""
    monkeypatch.setattr(telemetry, "configure", lambda _: None)

    @asynccontextmanager
    async def run(settings: Settings = brief) -> AsyncIterator[Runner]:
        runner = Runner(lambda: settings)
        running = asyncio.create_task(runner.run())
        try:
            yield runner
            assert runner._stop_count or not running.done(), running.result()
        finally:
            runner.stop()
            runner.stop()
            await asyncio.wait([running], timeout=WITHIN_S)

    return run


def take_away(proxy: Proxy) -> None:
    """Let the database be away until the test ends."""
    proxy.is_refusing = True
    for link in proxy.links:
        link.cut()


async def for_ever(*_: object, **__: object) -> NoReturn:
    """Hang as a bug of ours would: wait for what nobody will ever do."""
    await asyncio.Event().wait()
    raise AssertionError


@pytest.fixture(autouse=True)
async def topic(db: asyncpg.Connection) -> None:
    await make_ledger(db)
    await make_topic(db, "t")


def test_a_promise_is_broken_when_its_time_is_over() -> None:
    loop = Pulse("loop", step_s=-1)  # over before it begins
    assert not loop.is_overdue
    loop.beat()
    assert loop.is_overdue
    loop.beat(pause_s=1000)
    assert not loop.is_overdue
    loop.beat()
    loop.rest()
    assert not loop.is_overdue


async def test_a_worker_that_waits_for_its_next_attempt_promises_no_more_than_that(settings: Settings) -> None:
    shared = Shared(settings, uuid4(), Alarm(), Activity(0), Hints(1), asyncio.Event())
    worker = Worker(shared)
    worker.pulse = Pulse("worker", step_s=-1)
    worker.pulse.beat()
    pausing = asyncio.create_task(worker._pause(1000))
    await asyncio.sleep(0)
    assert not worker.pulse.is_overdue
    shared.stopping.set()
    await pausing


async def test_no_sign_of_life_while_a_loop_is_overdue(supervisor: Systemd, logged: list[Any]) -> None:
    loop = Pulse("loop", step_s=-1)
    feeding = asyncio.create_task(feed_watchdog(0.01, lambda: [Pulse("other", 1), loop]))
    await supervisor.until_told("WATCHDOG=1")
    loop.beat()

    async def is_noticed() -> list[Any]:
        return events_of(logged, telemetry.WATCHDOG_WITHHELD)

    await eventually(is_noticed)
    count = supervisor.count("WATCHDOG=1")
    await asyncio.sleep(0.05)
    assert supervisor.count("WATCHDOG=1") == count
    assert [each["loops"] for each in await is_noticed()] == [["loop"]]
    loop.rest()
    await supervisor.until_told("WATCHDOG=1", count + 1)
    feeding.cancel()


async def test_ready_is_said_once_it_listens_and_not_before(
    db: asyncpg.Connection, supervisor: Systemd, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_listen = asyncio.Event()
    start_listening = Doorbell._start_listening

    async def when_allowed(*arguments: Any) -> None:
        await may_listen.wait()
        await start_listening(*arguments)

    monkeypatch.setattr(Doorbell, "_start_listening", when_allowed)
    await enqueue(db, "t", "k")
    async with run():
        await until_empty(db)  # it works already, though nobody could wake it yet
        assert supervisor.count("READY=1") == 0
        may_listen.set()
        await supervisor.until_told("READY=1")


@pytest.mark.parametrize("wake", ["poll", "doorbell"])
async def test_ready_is_said_by_one_that_can_not_listen_too_and_the_status_says_so(
    supervisor: Systemd, brief: Settings, run: Run, monkeypatch: pytest.MonkeyPatch, wake: str
) -> None:
    if wake == "doorbell":

        async def refuse(*_: object) -> NoReturn:
            raise ConnectionResetError

        monkeypatch.setattr(Doorbell, "_start_listening", refuse)
    async with run(brief.model_copy(update={"wake": wake})):
        await supervisor.until_told("READY=1")
        status = supervisor.told("STATUS=")[-1]
        assert status.startswith("STATUS=degraded") == (wake == "doorbell"), status


async def test_the_status_counts_what_is_pending_and_tells_the_freshness(
    db: asyncpg.Connection, supervisor: Systemd, run: Run
) -> None:
    await make_topic(db, "later")
    await db.execute("update outbox.topic set paused_at = now() where topic = 'later'")
    await enqueue(db, "later", "a", "b", "c")
    await enqueue(db, "t", "k")

    async def tells() -> bool:
        status = supervisor.told("STATUS=")[-1:]
        return bool(status) and "3 pending, the oldest for" in status[0] and ", freshness 0." in status[0]

    async with run():
        await eventually(tells)


async def test_an_idle_daemon_is_alive(db: asyncpg.Connection, supervisor: Systemd, brief: Settings, run: Run) -> None:
    async with run():
        await asleep(db)
        await supervisor.is_fed_for(1.2 * step_s(brief))


async def test_a_daemon_without_its_database_is_alive(
    supervisor: Systemd,
    run: Run,
    proxy: Proxy,
    through: Callable[..., Settings],
) -> None:
    settings = through(**BRIEF)
    async with run(settings):
        await supervisor.until_told("READY=1")
        take_away(proxy)
        await supervisor.until_told("STATUS=without the database")
        await supervisor.is_fed_for(1.2 * step_s(settings))


async def test_a_long_recalculation_is_alive(
    db: asyncpg.Connection, supervisor: Systemd, brief: Settings, run: Run
) -> None:
    await make_topic(db, "t", f"perform pg_sleep({2 * step_s(brief)});")
    await enqueue(db, "t", "k")
    async with run():
        await supervisor.until_told("READY=1")
        await supervisor.is_fed_for(1.2 * step_s(brief))
        assert await done(db, "t") == []  # still at it


@pytest.mark.parametrize(
    "hang",
    [(Worker, "_run_batch", "worker"), (Worker, "_connected", "worker"), (Doorbell, "_watch", "listener")],
)
async def test_a_loop_that_hangs_in_our_own_code_is_not_alive(
    hang: tuple[type, str, str], supervisor: Systemd, run: Run, logged: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, step, loop = hang
    monkeypatch.setattr(owner, step, for_ever)

    async def is_noticed() -> list[Any]:
        return events_of(logged, telemetry.WATCHDOG_WITHHELD)

    async with run():
        noticed = await eventually(is_noticed, timeout_s=WITHIN_S)
        assert set(noticed[0]["loops"]) == {loop}
        count = supervisor.count("WATCHDOG=1")
        await asyncio.sleep(3 * WATCHDOG_S)
        assert supervisor.count("WATCHDOG=1") == count


async def test_a_hangup_is_told_at_once_and_ready_when_it_listens_again(
    db: asyncpg.Connection, supervisor: Systemd, run: Run
) -> None:
    async with run():
        await supervisor.until_told("READY=1")
        os.kill(os.getpid(), signal.SIGHUP)
        await supervisor.until_told("READY=1", 2)
        await asleep(db)
    heard = [each.partition("\n")[0] for each in supervisor.listen()]
    assert [each for each in heard if each in ("READY=1", "RELOADING=1")] == ["READY=1", "RELOADING=1", "READY=1"]


async def test_a_hangup_does_not_wait_for_a_database_that_is_away(
    supervisor: Systemd, run: Run, proxy: Proxy, through: Callable[..., Settings]
) -> None:
    async with run(through(**BRIEF)):
        await supervisor.until_told("READY=1")
        take_away(proxy)
        os.kill(os.getpid(), signal.SIGHUP)
        await supervisor.until_told("STATUS=waiting for the database")
        await supervisor.until_told("READY=1", 2)


async def test_a_start_without_a_database_is_not_ready_and_asks_for_time(
    supervisor: Systemd, brief: Settings, run: Run, tmp_path: Path
) -> None:
    nowhere = SecretStr(f"postgresql://nobody@/nothing?host={tmp_path}")
    async with run(brief.model_copy(update={"database_url": nowhere})):
        (first, *_) = await supervisor.until_told("EXTEND_TIMEOUT_USEC=", 2)
        assert int(first.partition("=")[2]) >= 60_000_000
        assert supervisor.count("READY=1") == 0


async def test_draining_it_asks_for_the_time_that_it_may_take(supervisor: Systemd, brief: Settings, run: Run) -> None:
    async with run(brief.model_copy(update={"stop_grace_s": 77.0})) as runner:
        await supervisor.until_told("READY=1")
        runner.stop()
        assert int((await supervisor.until_told("EXTEND_TIMEOUT_USEC="))[-1].partition("=")[2]) >= 77_000_000


_SIGNAL_AT_IMPORT = """
import importlib.abc, os, signal, sys
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *_):
        if name == "daemon.runner":
            os.kill(os.getpid(), signal.{name})
sys.meta_path.insert(0, Finder())
import cli
cli.main(["run"])
"""


@pytest.mark.parametrize(("name", "event"), [("SIGTERM", "daemon.stopped"), ("SIGHUP", "settings.reloaded")])
def test_a_signal_at_the_very_start_waits_until_the_daemon_can_answer(name: str, event: str, dsn: str) -> None:
    environment = os.environ | {"RECALCD_DATABASE_URL": dsn, "RECALCD_LOG_FORMAT": "json"}
    program = _SIGNAL_AT_IMPORT.format(name=name)
    process = subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        told = any(event in line for line in process.stderr)
        assert told, f"it ended with {process.wait()}"
    finally:
        process.terminate()
        process.communicate()


def test_nothing_is_counted_for_a_status_that_nobody_reads() -> None:
    assert not systemd.is_supervised()
