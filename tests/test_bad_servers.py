"""The server's bad days, on servers of their own: full in every way, read-only, and with a clock that steps."""

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path

import asyncpg
import pytest
from clock import Clock, clock_in
from engine import failures, make_ledger, mutate, numbered, pending, sessions, terminate
from process import WITHIN_S, Daemon, Writer, daemon, recovered
from servers import TestServer
from waiting import eventually

from daemon import telemetry
from daemon.database import CONNECTION_ERRORS, close
from daemon.embedded import EmbeddedPostgres, create, embedded_postgres
from daemon.housekeeping import ROUND_S
from daemon.status import read_status

pytestmark = pytest.mark.own_server

ACCOUNTS = numbered(12)
QUEUE_PAGES = 64
SMALL: dict[str, object] = {
    "fsync": "off",
    "autovacuum": "off",
    "max_connections": 16,
    "max_notify_queue_pages": QUEUE_PAGES,
}


@pytest.fixture(scope="module")
def small() -> Iterator[EmbeddedPostgres]:
    """Start a server with little room for anything."""
    with embedded_postgres(settings=SMALL) as server:
        asyncio.run(TestServer(server.dsn(), "template_small").migrate_template())
        yield server


@pytest.fixture
async def dsn(small: EmbeddedPostgres) -> AsyncIterator[str]:
    """URI of a fresh database on the small server, with a ledger."""
    async with TestServer(small.dsn(), "template_small").database("small") as dsn:
        yield dsn


@pytest.fixture
async def ledger(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    async with open_to(dsn) as db:
        await make_ledger(db)
        yield db


@asynccontextmanager
async def open_to(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    db = await asyncpg.connect(dsn)
    try:
        yield db
    finally:
        await close(db)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "daemon.log"


async def sees(db: asyncpg.Connection, account: str) -> None:
    """Write to an account of its own, and wait until its balance is cached."""
    await db.execute("select ledger.record($1, 1)", account)

    async def is_cached() -> bool:
        return bool(await db.fetchval("select exists (select from ledger.balance where account = $1)", account))

    await eventually(is_cached, timeout_s=WITHIN_S)


# Out of connections


@asynccontextmanager
async def no_connection_left(dsn: str, db: asyncpg.Connection) -> AsyncIterator[None]:
    """Take every connection, the daemon's too, as an application does that leaks them."""
    taken: list[asyncpg.Connection] = []

    async def is_out() -> bool:
        await terminate(db, "recalcd worker")
        await terminate(db, "recalcd listener")
        with suppress(asyncpg.TooManyConnectionsError):
            while True:
                taken.append(await asyncpg.connect(dsn))
        return await sessions(db, "recalcd worker") + await sessions(db, "recalcd listener") == 0

    try:
        await eventually(is_out, timeout_s=WITHIN_S)
        yield
    finally:
        for each in taken:
            await close(each)


async def test_a_server_without_a_connection_left_is_waited_for_and_named(
    ledger: asyncpg.Connection, dsn: str, log: Path
) -> None:
    async with daemon(dsn, log) as started, Writer(dsn, ACCOUNTS).at_work() as writer:
        await started.until_told(telemetry.BATCH_COMMITTED)
        async with no_connection_left(dsn, ledger):
            (told, *_) = await started.until_told(telemetry.BATCH_RETRIED, error_type="DatabaseUnavailable")
            assert "It is up, but all its connections are taken" in told["error"]
            await writer.writes_on()
        await sees(ledger, "afterwards")
        assert not started.told(telemetry.KEY_FAILED, telemetry.KEY_DIED)
    async with daemon(dsn, log):
        await recovered(ledger)
    assert await ledger.fetchval("select count(*) from ledger.entry") > writer.written_count


# Read-only


async def test_a_server_that_turns_read_only_for_a_while_is_waited_for(
    ledger: asyncpg.Connection, dsn: str, log: Path
) -> None:
    async with daemon(dsn, log) as started, Writer(dsn, ACCOUNTS).at_work() as writer:

        async def is_refused() -> bool:
            return "25006" in writer.refused

        await started.until_told(telemetry.BATCH_COMMITTED)
        await ledger.execute("alter system set default_transaction_read_only = on")
        try:
            await ledger.execute("select pg_reload_conf()")
            told = await started.until_told(telemetry.BATCH_RETRIED, error_type="DatabaseUnavailable")
            assert told[0]["error"].startswith("The database is read-only")
            await eventually(is_refused, timeout_s=WITHIN_S)
        finally:
            await ledger.execute("alter system reset default_transaction_read_only")
            await ledger.execute("select pg_reload_conf()")
        await writer.writes_on()
        await sees_when_writable(ledger, "afterwards")
        assert not started.told(telemetry.KEY_FAILED, telemetry.BATCH_FAILED)
    async with daemon(dsn, log):
        await recovered(ledger)


async def sees_when_writable(db: asyncpg.Connection, account: str) -> None:
    async def is_writable() -> bool:
        return str(await db.fetchval("show default_transaction_read_only")) == "off"

    await eventually(is_writable)
    await sees(db, account)


# The queue of notifications


@asynccontextmanager
async def full_queue(dsn: str) -> AsyncIterator[None]:
    """Listen, and sit in a transaction, until no notification finds room."""
    async with open_to(dsn) as sitter, open_to(dsn) as filler:
        await sitter.execute("listen anything")
        await sitter.execute("begin; select 1")
        with suppress(asyncpg.ProgramLimitExceededError):
            for _ in range(2 * QUEUE_PAGES):
                await filler.execute("select pg_notify('anything', repeat('x', 7900))")
        assert await filler.fetchval("select pg_notification_queue_usage()") > 0.9
        yield
        await sitter.execute("commit")


async def test_a_full_notify_queue_stops_neither_writers_nor_batches(
    ledger: asyncpg.Connection, dsn: str, log: Path
) -> None:
    async with daemon(dsn, log) as started, Writer(dsn, ACCOUNTS).at_work() as writer:
        await started.until_told(telemetry.BATCH_COMMITTED)
        async with full_queue(dsn):
            refused = len(writer.refused)
            await started.until_told(telemetry.LISTENER_LOST, sqlstate="54000")
            await writer.writes_on()
            await sees(ledger, "meanwhile")
            assert writer.refused[refused:] == []
            problems = (await read_status(ledger)).problems
            assert any("the NOTIFY queue is" in each and "sits in a transaction" in each for each in problems)
        await started.until_told(telemetry.LISTENER_STARTED, count=2)
        assert not started.told(telemetry.BATCH_RETRIED, telemetry.BATCH_FAILED, telemetry.KEY_FAILED)
    async with daemon(dsn, log):
        await recovered(ledger)


async def test_a_commit_that_finds_the_notify_queue_full_is_tried_again_and_charged_to_nobody(
    ledger: asyncpg.Connection, dsn: str, log: Path
) -> None:
    await mutate(ledger, "settle", "where pg_notification_queue_usage() < 0.5", "")  # as if it filled up since the look
    async with daemon(dsn, log) as started:
        await started.until_told(telemetry.LISTENER_STARTED)
        async with full_queue(dsn):
            await ledger.execute("select ledger.record('a', 1)")
            (told, *_) = await started.until_told(telemetry.BATCH_RETRIED, sqlstate="54000")
            assert "NOTIFY queue" in told["error"]
            assert await pending(ledger) == ["a"]
        await read_status(ledger)  # asks how full it is, and with that lets the server reuse what everybody has read
        await recovered(ledger)
        assert not started.told(telemetry.BATCH_FAILED, telemetry.KEY_FAILED)


# Disk full


@contextmanager
def tmpfs(folder: Path, size_mb: int) -> Iterator[None]:
    """Mount a small file system there. Skips the test where that is not permitted."""
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m,mode=0700", "none", str(folder)]
    done = subprocess.run(mounting, capture_output=True, check=False, text=True)
    if done.returncode != 0:
        pytest.skip(f"needs to mount a tmpfs, to fill a disk: run as root, with CAP_SYS_ADMIN ({done.stderr.strip()})")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Leave no byte free there while the block runs."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(65536))
    with ballast.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(512))
    yield
    ballast.unlink()


async def test_a_full_disk_beneath_the_tables_is_waited_for_and_charged_to_nobody(
    small: EmbeddedPostgres, log: Path
) -> None:
    folder = small.home / "disk"
    folder.mkdir()
    with tmpfs(folder, size_mb=64):
        if os.geteuid() == 0:
            os.chown(folder, small.data.stat().st_uid, small.data.stat().st_gid)
        async with open_to(small.dsn()) as admin:
            await admin.execute(f"create tablespace disk location '{folder}'")
            await admin.execute("create database on_disk template template_small tablespace disk strategy file_copy")
            try:
                await run_out_of_disk(small.dsn("on_disk"), folder, log)
            finally:
                await admin.execute("drop database on_disk with (force)")
                await admin.execute("drop tablespace disk")


async def run_out_of_disk(dsn: str, folder: Path, log: Path) -> None:
    async with open_to(dsn) as db, daemon(dsn, log) as started:
        await make_ledger(db)
        await sees(db, "before")
        await db.execute("select outbox.pause_topic('ledger.account', 'to have work at hand')")
        await db.execute("select ledger.record('account ' || n, n) from generate_series(1, 2000) as n")
        with full(folder):
            await db.execute("select outbox.resume_topic('ledger.account')")
            (told, *_) = await started.until_told(telemetry.BATCH_FAILED, sqlstate="53100")
            assert told["blame"] == "server"
            assert "No space left on device" in told["error"]
            with pytest.raises(asyncpg.DiskFullError):  # nor can the application write
                await db.execute("select ledger.record('account ' || n, n) from generate_series(1, 20000) as n")
            assert await failures(db) == {}
        await recovered(db)
        assert not started.told(telemetry.KEY_FAILED)


@pytest.fixture
def on_small_disk() -> Iterator[EmbeddedPostgres]:
    """Start a server whose whole cluster, write-ahead log and all, is on a small file system."""
    server = create(settings={"fsync": "off", "max_wal_size": "48MB", "min_wal_size": "32MB"})
    try:
        with tmpfs(server.data, size_mb=160):
            try:
                server.initialise()
                server.start()
                asyncio.run(TestServer(server.dsn(), "ledger").migrate_template())
                yield server
            finally:
                server.stop("immediate")
    finally:
        shutil.rmtree(server.home)


async def test_a_server_that_crashes_for_want_of_disk_loses_nothing(on_small_disk: EmbeddedPostgres, log: Path) -> None:
    server, dsn = on_small_disk, on_small_disk.dsn("ledger")
    async with open_to(dsn) as db:
        await make_ledger(db)
    async with daemon(dsn, log) as started, Writer(dsn, ACCOUNTS).at_work() as writer:
        await started.until_told(telemetry.BATCH_COMMITTED)
        with full(server.data):
            await write_until_it_crashes(dsn)
            await started.until_told(telemetry.BATCH_RETRIED)
        await eventually(partial(is_back, server, dsn), timeout_s=30)
        await writer.writes_on()
        assert started.lives()
    async with open_to(dsn) as db, daemon(dsn, log):
        await recovered(db)
        assert await db.fetchval("select count(*) from ledger.entry") >= writer.written_count
        assert await db.fetchval("select count(*) from outbox.suspect") == 0


async def is_back(server: EmbeddedPostgres, dsn: str) -> bool:
    """Whether the server answers; one whose own restart failed for want of disk, too, is started again."""
    if server.pid is None:
        await asyncio.to_thread(server.start)
    with suppress(*CONNECTION_ERRORS, asyncpg.CannotConnectNowError):
        async with open_to(dsn):
            return True
    return False


async def write_until_it_crashes(dsn: str) -> None:
    """Write to the log until it finds no room for another segment, which Postgres answers with a PANIC."""
    async with open_to(dsn) as db:
        with suppress(*CONNECTION_ERRORS):
            while True:
                with suppress(asyncpg.DiskFullError):
                    await db.execute("select pg_logical_emit_message(false, 'ballast', repeat('x', 1000000))")


# Clocks


@pytest.fixture(scope="module")
def clock() -> Iterator[Clock]:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is shut to the user that the server runs as
        Path(folder).chmod(0o755)
        yield clock_in(Path(folder))


@pytest.fixture(scope="module")
def unsteady_server(clock: Clock) -> Iterator[TestServer]:
    """Start a server that lives by that clock."""
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in clock.environment.items():
                patch.setenv(name, value)
            server = stack.enter_context(embedded_postgres(settings={"fsync": "off", "autovacuum": "off"}))
        home = TestServer(server.dsn(), "template_unsteady")
        asyncio.run(home.migrate_template())
        yield home


@pytest.fixture
async def unsteady(unsteady_server: TestServer, clock: Clock) -> AsyncIterator[str]:
    """URI of a fresh database there, with a ledger; the clock is right to begin with."""
    clock.step("+0")
    async with unsteady_server.database("unsteady") as dsn:
        async with open_to(dsn) as db:
            await make_ledger(db)
        yield dsn


async def test_a_server_whose_clock_steps_stays_fresh_and_keeps_its_history(
    unsteady: str, clock: Clock, log: Path
) -> None:
    async with open_to(unsteady) as db, daemon(unsteady, log) as started:
        today = await db.fetchval("select current_date")
        async with Writer(unsteady, ACCOUNTS).at_work() as writer:
            await sees(db, "before")
            for offset in ("+1h", "-1h", "-2d", "+9d", "+400d", "+0"):
                clock.step(offset)
                await sees(db, f"at {offset}")
                await writer.writes_on()
        shifted = await db.fetchval("select max(started_at)::date - $1 from outbox.batch", today)
        assert shifted >= 400, "the clock did not step"
        assert await db.fetchval("select count(*) from outbox.batch where started_at::date = $1", today)
        assert {each["sqlstate"] for each in started.told(telemetry.BATCH_RETRIED)} == {"23514"}
        assert not started.told(telemetry.KEY_FAILED, telemetry.BATCH_FAILED)
        await recovered(db)


async def test_a_key_in_backoff_does_not_wait_until_a_clock_set_back_is_right_again(
    unsteady: str, clock: Clock, log: Path
) -> None:
    async with open_to(unsteady) as db, daemon(unsteady, log) as started:
        await db.execute("select outbox.set_topic('ledger.account', p_retry_base_s => 2, p_retry_max_s => 2)")
        await db.execute("alter table ledger.balance add constraint no_debts check (amount >= 0)")
        await db.execute("select ledger.record('poor', -1)")
        await started.until_told(telemetry.KEY_FAILED)
        clock.step("-1h")
        assert await db.fetchval("select last_failed_at > clock_timestamp() from outbox.failure")
        await db.execute("alter table ledger.balance drop constraint no_debts")
        await recovered(db, within_s=ROUND_S + 2 + WITHIN_S)


async def test_daemons_are_seen_to_live_whichever_way_the_clock_steps(unsteady: str, clock: Clock, log: Path) -> None:
    async with open_to(unsteady) as db, daemon(unsteady, log) as started:
        await started.until_told(telemetry.LISTENER_STARTED)

        async def is_healthy() -> bool:
            status = await read_status(db)
            return not status.problems and [each.is_running(status.limits) for each in status.daemons] == [True]

        for offset in ("+1h", "-1h"):
            clock.step(offset)
            await eventually(is_healthy, timeout_s=ROUND_S + WITHIN_S)


async def test_a_daemon_whose_own_clock_steps_notices_nothing(
    ledger: asyncpg.Connection, dsn: str, clock: Clock, log: Path
) -> None:
    async with daemon(dsn, log, clock.environment) as started, Writer(dsn, ACCOUNTS).at_work():
        for offset in ("+0", "+1h", "-1h", "+400d"):
            clock.step(offset)
            await sees(ledger, f"at {offset}")
        assert not troubles(started)
        assert await started.stop() == 0
    days = {json.loads(line)["timestamp"][:10] for line in started.text().splitlines()}
    assert len(days) > 1, "the clock did not step"


def troubles(started: Daemon) -> list[str]:
    lines = [json.loads(line) for line in started.text().splitlines()]
    return [line["event"] for line in lines if line["level"] != "info"]
