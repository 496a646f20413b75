"""`recalcd run` from its start to its exit code: waiting for the database, signals, drains, and what it refuses."""

import asyncio
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import structlog
from engine import (
    GATE,
    asleep,
    done,
    enqueue,
    failures,
    impatient,
    make_due,
    make_ledger,
    make_topic,
    numbered,
    pending,
    sessions,
    until_empty,
)
from pydantic import SecretStr
from servers import Connect, as_daemon
from waiting import eventually, wait_until_blocked

from daemon import migrations, telemetry
from daemon.embedded import create
from daemon.errors import ConfigurationError, DatabaseRefuses, SchemaMismatch
from daemon.runner import Runner
from daemon.settings import Settings

WORKER, HOUSEKEEPER, LISTENER = "recalcd worker", "recalcd housekeeper", "recalcd listener"


@pytest.fixture(autouse=True)
def restored_process() -> Iterator[None]:
    """Put back what a runner changes for the whole process."""
    handlers, hook = list(logging.getLogger().handlers), sys.excepthook
    yield
    telemetry.configure(Settings(telem_enabled=False))
    structlog.reset_defaults()
    logging.getLogger().handlers = handlers
    sys.excepthook = hook


@dataclass
class Running:
    """A runner at work in this process, which takes this process's signals; and what it wrote to stderr."""

    exit_code: asyncio.Task[int]
    read: Callable[[], str]
    text: str = ""

    def told(self, *events: str) -> list[dict[str, Any]]:
        """Return the log's lines of these events, oldest first."""
        self.text += self.read()
        lines = [json.loads(line) for line in self.text.splitlines()]
        return [line for line in lines if line["event"] in events]

    async def until_told(self, event: str, count: int = 1) -> dict[str, Any]:
        async def is_told() -> list[dict[str, Any]]:
            return self.told(event)[count - 1 :]

        return (await eventually(is_told))[0]

    def signal(self, number: signal.Signals) -> None:
        os.kill(os.getpid(), number)


Run = Callable[..., Any]


@pytest.fixture
def settings(settings: Settings, dsn: str) -> Settings:
    """Log in as a daemon does."""
    return settings.model_copy(update={"database_url": SecretStr(as_daemon(dsn))})


@pytest.fixture
def run(settings: Settings, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the daemon while the block runs; then stop it, unless it ended by itself."""

    @asynccontextmanager
    async def run(
        load: Callable[[], Settings] | None = None, *, drain: bool = False, **update: Any
    ) -> AsyncIterator[Running]:
        settled = impatient(settings, log_format="json", **update)
        runner = Runner(load or (lambda: settled), drain=drain)
        running = Running(asyncio.create_task(runner.run()), lambda: capsys.readouterr().err)
        try:
            yield running
        finally:
            if not running.exit_code.done():
                runner.stop()
            await asyncio.wait([running.exit_code])

    return run


@pytest.fixture
async def ledger(db: asyncpg.Connection) -> None:
    await make_ledger(db)
    await make_topic(db, "t")


@pytest.fixture
async def gate(connect: Connect, db: asyncpg.Connection) -> asyncpg.Connection:
    """Close the gate at which topic t then waits; unlock it to open."""
    await make_ledger(db)
    await make_topic(db, "t", f"perform pg_advisory_xact_lock_shared({GATE});")
    gate = await connect("gatekeeper")
    await gate.execute(f"select pg_advisory_lock({GATE})")
    return gate


@pytest.mark.usefixtures("ledger")
async def test_told_to_stop_at_rest_it_ends_at_once(db: asyncpg.Connection, run: Run) -> None:
    async with run() as running:
        await asleep(db)
        running.signal(signal.SIGTERM)
        assert await asyncio.wait_for(running.exit_code, 5) == 0
        assert [each["ending"] for each in running.told(telemetry.DAEMON_STOPPED)] == ["stopped"]
    assert await db.fetchval("select state from outbox.daemon") == "stopped"
    assert await sessions(db, WORKER) + await sessions(db, LISTENER) + await sessions(db, HOUSEKEEPER) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_told_to_stop_at_work_it_finishes_the_batch_in_hand(
    db: asyncpg.Connection, gate: asyncpg.Connection, run: Run, number: signal.Signals
) -> None:
    await db.execute("select outbox.set_topic('t', p_batch_keys => 10)")
    await enqueue(db, "t", *numbered(30))
    async with run(workers=1) as running:
        await wait_until_blocked(db, WORKER)
        running.signal(number)
        await running.until_told(telemetry.DAEMON_STOPPING)
        assert not running.exit_code.done()
        await gate.execute(f"select pg_advisory_unlock({GATE})")
        assert await running.exit_code == 0
    assert await done(db, "t") == numbered(10)
    assert await pending(db) == numbered(20, 10)
    assert await failures(db) == {}


async def test_told_to_stop_twice_it_rolls_back_and_charges_nobody(
    db: asyncpg.Connection, gate: asyncpg.Connection, run: Run
) -> None:
    await enqueue(db, "t", *numbered(10))
    async with run() as running:
        await wait_until_blocked(db, WORKER)
        running.signal(signal.SIGTERM)
        await running.until_told(telemetry.DAEMON_STOPPING)
        running.signal(signal.SIGTERM)
        assert await asyncio.wait_for(running.exit_code, 5) == 0
    await gate.execute(f"select pg_advisory_unlock({GATE})")
    assert (await pending(db), await failures(db)) == (numbered(10), {})
    assert await db.fetchval("select count(*) from outbox.suspect") == 0


async def test_a_batch_that_outlasts_the_grace_period_is_rolled_back(
    db: asyncpg.Connection, gate: asyncpg.Connection, run: Run
) -> None:
    await enqueue(db, "t", "k")
    async with run(stop_grace_s=0.3) as running:
        await wait_until_blocked(db, WORKER)
        running.signal(signal.SIGTERM)
        assert await asyncio.wait_for(running.exit_code, 5) == 0
    await gate.execute(f"select pg_advisory_unlock({GATE})")
    assert (await pending(db), await failures(db)) == (["k"], {})


async def test_told_to_stop_in_careful_mode_it_leaves_the_rest_in_the_outbox(db: asyncpg.Connection, run: Run) -> None:
    await make_ledger(db)
    await make_topic(db, "t", "if cardinality(p_keys) > 1 then raise 'no'; end if; perform pg_sleep(0.05);")
    await enqueue(db, "t", *numbered(200))
    async with run(workers=1) as running:
        await running.until_told(telemetry.BATCH_COMMITTED)
        running.signal(signal.SIGTERM)
        assert await asyncio.wait_for(running.exit_code, 5) == 0
    assert sorted([*await done(db, "t"), *await pending(db)]) == numbered(200)
    assert await pending(db)
    assert await failures(db) == {}


@pytest.mark.usefixtures("ledger")
async def test_a_hangup_reads_the_settings_again_and_leaves_no_session_behind(
    db: asyncpg.Connection, settings: Settings, run: Run
) -> None:
    given = [impatient(settings, log_format="json", workers=count) for count in (1, 3)]

    async def has_three_workers() -> bool:
        await enqueue(db, "t", *numbered(10))  # workers connect when there is something to do
        return await sessions(db, WORKER) == 3

    async with run(lambda: given.pop(0)) as running:
        await asleep(db)
        running.signal(signal.SIGHUP)
        await running.until_told(telemetry.SETTINGS_RELOADED)
        await eventually(has_three_workers)
        await until_empty(db)
        await asleep(db)
        assert await sessions(db, HOUSEKEEPER) == 1
    assert await db.fetchval("select count(*) from outbox.daemon") == 1


@pytest.mark.usefixtures("ledger")
async def test_bad_settings_are_refused_and_the_old_ones_kept(
    db: asyncpg.Connection, settings: Settings, run: Run
) -> None:
    given = [impatient(settings, log_format="json")]

    def load() -> Settings:
        if not given:
            raise ConfigurationError("RECALCD_WORKERS is 'many', but must be a whole number from 1 to 64.")
        return given.pop()

    async with run(load) as running:
        await asleep(db)
        running.signal(signal.SIGHUP)
        assert "RECALCD_WORKERS" in (await running.until_told(telemetry.SETTINGS_REFUSED))["error"]
        await asleep(db)
        await enqueue(db, "t", "k")
        await until_empty(db)


async def test_told_to_stop_while_it_reloads_it_stops(
    db: asyncpg.Connection, gate: asyncpg.Connection, run: Run
) -> None:
    await enqueue(db, "t", "k")
    async with run() as running:
        await wait_until_blocked(db, WORKER)
        running.signal(signal.SIGHUP)
        running.signal(signal.SIGTERM)
        await running.until_told(telemetry.DAEMON_STOPPING)
        await gate.execute(f"select pg_advisory_unlock({GATE})")
        assert await asyncio.wait_for(running.exit_code, 5) == 0
    assert await db.fetchval("select state from outbox.daemon") == "stopped"


@pytest.mark.usefixtures("ledger")
async def test_a_drain_ends_when_nothing_is_pending(db: asyncpg.Connection, run: Run) -> None:
    await enqueue(db, "t", *numbered(500))
    async with run(drain=True) as running:
        assert await running.exit_code == 0
        assert [each["ending"] for each in running.told(telemetry.DAEMON_STOPPED)] == ["drained"]
    assert await done(db, "t") == numbered(500)


async def test_a_drain_waits_for_what_is_owed_and_tells_of_the_dead(db: asyncpg.Connection, run: Run) -> None:
    await make_ledger(db)
    await make_topic(db, "t", "if 'bad' = any (p_keys) then raise 'no'; end if;", max_attempts=2)
    await enqueue(db, "t", "bad", "good")
    async with run(drain=True, poll_interval_s=0.1) as running:

        async def is_owed() -> bool:
            return "bad" in await failures(db) and not await pending(db)

        await eventually(is_owed)
        assert not running.exit_code.done()
        await make_due(db)
        assert await running.exit_code == 1
        assert running.told(telemetry.DRAIN_LEFT_DEAD)[0]["dead_count"] == 1
    assert set(await done(db, "t")) == {"good"}  # both workers may have met the bad batch


@pytest.mark.usefixtures("ledger")
async def test_a_drain_does_not_wait_for_a_paused_topic(db: asyncpg.Connection, run: Run) -> None:
    await db.execute("update outbox.topic set paused_at = now() where topic = 't'")
    await enqueue(db, "t", "k")
    async with run(drain=True) as running:
        assert await running.exit_code == 1
        assert [each["topic"] for each in running.told(telemetry.DRAIN_LEFT_PAUSED)] == ["t"]
    assert await pending(db) == ["k"]


@pytest.mark.usefixtures("ledger")
async def test_a_drain_leaves_nothing_of_a_paused_topic_that_has_nothing(db: asyncpg.Connection, run: Run) -> None:
    await db.execute("update outbox.topic set paused_at = now() where topic = 't'")
    async with run(drain=True) as running:
        assert await running.exit_code == 0
        assert not running.told(telemetry.DRAIN_LEFT_PAUSED)


async def test_a_drain_ends_though_a_topic_is_broken_and_names_it(db: asyncpg.Connection, run: Run) -> None:
    await make_ledger(db)
    for topic in ("broken", "sound", "unused"):
        await make_topic(db, topic)
    await db.execute("drop procedure ledger.broken; drop procedure ledger.unused")
    await enqueue(db, "broken", "k")
    await enqueue(db, "sound", *numbered(500))
    async with run(drain=True, retry_max_s=30.0) as running:  # longer than a drain takes to look
        assert await asyncio.wait_for(running.exit_code, 10) == 1
        assert [each["topic"] for each in running.told(telemetry.DRAIN_LEFT_BROKEN)] == ["broken"]
    assert await done(db, "sound") == numbered(500)
    assert await pending(db) == ["k"]


async def test_a_drain_says_once_what_it_waits_for(db: asyncpg.Connection, run: Run) -> None:
    await make_ledger(db)
    await make_topic(db, "t", "if v_call = 1 then raise 'no'; end if;")
    await enqueue(db, "t", "k")
    async with run(drain=True, workers=1, poll_interval_s=0.1) as running:
        told = await running.until_told(telemetry.DRAIN_WAITING)
        assert (told["owed_count"], 0 < told["next_attempt_s"] <= 5) == (1, True)
        await make_due(db)
        assert await running.exit_code == 0
        assert len(running.told(telemetry.DRAIN_WAITING)) == 1


async def test_a_database_that_is_not_up_yet_is_waited_for(
    settings: Settings, run: Run, request: pytest.FixtureRequest
) -> None:
    if request.config.getoption("--pg") not in {"18", "16"}:
        pytest.skip("needs a server of its own to start late")
    server = create(version=int(request.config.getoption("--pg")), settings={"fsync": "off"})
    try:
        await asyncio.to_thread(server.initialise)
        late = impatient(settings, log_format="json", database_url=SecretStr(server.dsn()))
        async with run(lambda: late) as running:
            await running.until_told(telemetry.DATABASE_AWAITED, count=2)
            await asyncio.to_thread(server.start)
            with pytest.raises(SchemaMismatch, match="migrate up"):
                await running.exit_code  # it is up now, and empty
            admin = await asyncpg.connect(server.dsn())
            await migrations.up(admin, set_names=["outbox"])
            await make_ledger(admin)
            await make_topic(admin, "t")
            await admin.close()
            await asyncio.to_thread(server.stop)
        async with run(lambda: late) as running:
            await running.until_told(telemetry.DATABASE_AWAITED)
            await asyncio.to_thread(server.start)
            await running.until_told(telemetry.LISTENER_STARTED)
            await asyncio.to_thread(server.stop, "immediate")  # and when it goes away again
            await running.until_told(telemetry.LISTENER_LOST)
            await asyncio.to_thread(server.start)
            admin = await asyncpg.connect(server.dsn())
            await enqueue(admin, "t", *numbered(10))
            await until_empty(admin)
            assert await done(admin, "t") == numbered(10)
            await admin.close()
            running.signal(signal.SIGTERM)
            assert await running.exit_code == 0
    finally:
        await asyncio.to_thread(server.stop, "immediate")
        shutil.rmtree(server.home)


async def test_told_to_stop_while_it_waits_for_the_database_it_stops(run: Run, tmp_path: Path) -> None:
    nowhere = SecretStr(f"postgresql://nobody@/nothing?host={tmp_path}")
    async with run(database_url=nowhere) as running:
        await running.until_told(telemetry.DATABASE_AWAITED)
        running.signal(signal.SIGTERM)
        assert await asyncio.wait_for(running.exit_code, 5) == 0


@pytest.mark.usefixtures("ledger")
async def test_a_hangup_while_it_waits_for_the_wrong_database_finds_the_right_one(
    db: asyncpg.Connection, settings: Settings, run: Run, tmp_path: Path
) -> None:
    nowhere = SecretStr(f"postgresql://nobody@/nothing?host={tmp_path}")
    right = impatient(settings, log_format="json")
    given = [right.model_copy(update={"database_url": nowhere}), right]
    async with run(lambda: given.pop(0)) as running:
        await running.until_told(telemetry.DATABASE_AWAITED)
        running.signal(signal.SIGHUP)
        await running.until_told(telemetry.SETTINGS_RELOADED)
        await asleep(db)


async def test_a_database_that_can_never_be_is_refused_at_once(run: Run, dsn: str) -> None:
    wrong = SecretStr(dsn.replace("/recalcd_test_", "/no_such_database_"))
    async with run(database_url=wrong) as running:
        with pytest.raises(DatabaseRefuses, match="no_such_database"):
            await asyncio.wait_for(running.exit_code, 10)


async def test_a_read_only_database_is_waited_for(db: asyncpg.Connection, run: Run) -> None:
    await make_ledger(db)
    name = await db.fetchval("select current_database()")
    await db.execute(f"alter database {name} set default_transaction_read_only = on")
    async with run() as running:
        assert "read-only" in (await running.until_told(telemetry.DATABASE_AWAITED))["error"]
        await db.execute(f"alter database {name} reset default_transaction_read_only")
        await asleep(db)


async def test_without_a_schema_it_says_what_to_run(run: Run, empty_dsn: str) -> None:
    async with run(database_url=SecretStr(empty_dsn)) as running:
        with pytest.raises(SchemaMismatch, match="recalcd migrate up"):
            await running.exit_code


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("delete from outbox.migration where set_name = 'outbox' and version = 3", "older than this release"),
        ("insert into outbox.migration values ('outbox', 99, 'future', 'x')", "newer than this release"),
        (
            "update outbox.routine set checksum = 'x' where file_name = 'outbox.claim.sql'",
            "outbox.claim.sql is changed",
        ),
        ("drop function outbox.ring", "outbox.ring.sql is missing"),
    ],
    ids=["older", "newer", "another routine", "a routine dropped"],
)
async def test_with_the_schema_of_another_release_it_says_what_to_do(
    db: asyncpg.Connection, run: Run, change: str, says: str
) -> None:
    await db.execute(change)
    async with run() as running:
        with pytest.raises(SchemaMismatch, match=says):
            await running.exit_code


@pytest.mark.usefixtures("ledger")
async def test_a_schema_that_goes_away_under_it_ends_it(db: asyncpg.Connection, run: Run) -> None:
    async with run(poll_interval_s=0.1) as running:
        await asleep(db)
        await db.execute("drop function outbox.claim")
        await enqueue(db, "t", "k")
        with pytest.raises(SchemaMismatch, match="changed beneath"):
            await asyncio.wait_for(running.exit_code, 10)


@pytest.mark.usefixtures("ledger")
async def test_an_unwritable_folder_for_telemetry_stops_no_recalculation(
    db: asyncpg.Connection, run: Run, tmp_path: Path
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("no folder")
    async with run(telem_enabled=True, telem_dir=in_the_way) as running:
        await asleep(db)
        await enqueue(db, "t", "k")
        await until_empty(db)
        await running.until_told(telemetry.TELEMETRY_FAILED)
    assert await done(db, "t") == ["k"]
