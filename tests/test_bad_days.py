"""The server's bad days, on one server: what other sessions, roles and migrations do to a daemon at work.

The daemon is a process of its own, and a writer goes on through the trouble. Each time: the log says what it is, nobody
innocent is charged, the daemon lives (or leaves with the right exit code), and it recovers by itself.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
from engine import LEDGER, enqueue, failures, make_ledger, numbered, pending, until_empty
from oracle import drift
from process import Daemon, Writer, charged, daemon, recovered
from pydantic import SecretStr
from school import School, found
from servers import Connect
from waiting import eventually, wait_until_blocked

from daemon import migrations, telemetry
from daemon.session import open_session
from daemon.settings import Settings

WORKER = "recalcd worker"
ACCOUNTS = numbered(12)


@pytest.fixture
async def ledger(db: asyncpg.Connection) -> asyncpg.Connection:
    await make_ledger(db)
    await db.execute("select outbox.set_topic('ledger.account', p_retry_base_s => 1)")
    return db


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "daemon.log"


@asynccontextmanager
async def under_load(dsn: str, log: Path, **environment: str) -> AsyncIterator[tuple[Daemon, Writer]]:
    """Run a daemon and a writer that has been served already."""
    async with daemon(dsn, log, environment) as started, Writer(dsn, ACCOUNTS).at_work() as writer:
        await started.until_told(telemetry.BATCH_COMMITTED)
        yield started, writer


# Locks of others


async def test_a_deadlock_with_an_application_is_retried_and_charged_to_nobody(
    ledger: asyncpg.Connection, connect: Connect, dsn: str, log: Path
) -> None:
    await ledger.execute("insert into ledger.balance values ('a', 0, 0), ('b', 0, 0)")
    application = await connect("application")
    await application.execute("set deadlock_timeout = '60s'")  # so that it is the daemon's transaction that is ended
    async with daemon(dsn, log) as started:
        await started.until_told(telemetry.LISTENER_STARTED)
        async with application.transaction():
            await application.execute("update ledger.balance set amount = 7 where account = 'b'")
            await ledger.execute("select ledger.record('a', 1), ledger.record('b', 1)")
            await wait_until_blocked(ledger, WORKER)  # it has a, and waits for b
            await application.execute("update ledger.balance set amount = 7 where account = 'a'")
            (told,) = await started.until_told(telemetry.BATCH_FAILED)
        assert (told["sqlstate"], told["blame"], told["error"]) == ("40P01", "contention", "deadlock detected")
        await recovered(ledger)
        assert not started.told(telemetry.KEY_FAILED, telemetry.KEY_DIED)


async def test_a_row_moved_to_another_partition_beneath_a_recalculation_is_contention(
    ledger: asyncpg.Connection, connect: Connect, dsn: str, log: Path
) -> None:
    await ledger.execute("""
        drop table ledger.balance;
        create table ledger.balance (
            account text, amount bigint not null, entry_count bigint not null, year integer not null default 2025
        ) partition by list (year);
        create table ledger.balance_2025 partition of ledger.balance for values in (2025);
        create table ledger.balance_2026 partition of ledger.balance for values in (2026);
        insert into ledger.balance values ('a', 0, 0);
        create or replace procedure ledger.recalculate(in p_keys text[], inout p_changed_keys text[] default null)
        language plpgsql as $$
        begin
            perform outbox.lock_keys('ledger.account', p_keys);
            update ledger.balance as b
            set (amount, entry_count) = (
                select sum(e.amount), count(*) from ledger.entry as e where e.account = b.account
            )
            where b.account = any (p_keys);
            p_changed_keys := p_keys;
        end $$;
    """)
    application = await connect("application")
    async with daemon(dsn, log) as started:
        await started.until_told(telemetry.LISTENER_STARTED)
        async with application.transaction():
            await application.execute("update ledger.balance set year = 2026")
            await ledger.execute("select ledger.record('a', 3)")
            await wait_until_blocked(ledger, WORKER)
        (told,) = await started.until_told(telemetry.BATCH_FAILED)
        assert (told["sqlstate"], told["blame"]) == ("40001", "contention")
        await recovered(ledger)
        assert not started.told(telemetry.KEY_FAILED, telemetry.KEY_DIED)


async def test_an_alter_table_that_outlasts_the_statement_timeout_is_charged_to_nobody(
    ledger: asyncpg.Connection, connect: Connect, dsn: str, log: Path
) -> None:
    await ledger.execute("select outbox.set_topic('ledger.account', p_statement_timeout_s => 1)")
    migration = await connect("migration")
    async with under_load(dsn, log) as (started, _):
        async with migration.transaction():
            await migration.execute("alter table ledger.entry alter amount type numeric")  # rewrites: nobody may read
            await ledger.execute("select outbox.enqueue('ledger.account', $1::text[])", ACCOUNTS)
            await started.until_told(telemetry.KEY_FAILED)
            assert await charged(ledger) == []
        await recovered_under_load(ledger, started)
    assert {each["sqlstate"] for each in started.told(telemetry.BATCH_FAILED)} == {"55P03"}
    assert {each["blame"] for each in started.told(telemetry.BATCH_FAILED)} == {"contention"}


async def recovered_under_load(db: asyncpg.Connection, started: Daemon) -> None:
    """Wait until nobody is owed anything while the writer goes on."""

    async def is_nobody_owed() -> bool:
        return not await failures(db)

    await eventually(is_nobody_owed, timeout_s=30)
    assert started.lives()


async def test_ddl_of_the_source_beneath_a_daemon_at_work_fails_no_batch(
    ledger: asyncpg.Connection, dsn: str, log: Path
) -> None:
    async with under_load(dsn, log) as (started, writer):
        for ddl in (
            "create index entry_amount_idx on ledger.entry (amount)",
            "drop index ledger.entry_account_idx",
            "alter table ledger.entry add note text default 'none'",
            "alter table ledger.entry alter amount type numeric",
            "alter table ledger.entry alter amount type bigint",
            "alter table ledger.balance add note text",
            "alter table ledger.balance drop column note",
            "create index entry_account_idx on ledger.entry (account)",
            "alter table ledger.entry drop column note",
        ):
            await ledger.execute(ddl)
            await writer.writes_on()
    assert not started.told(telemetry.BATCH_FAILED, telemetry.KEY_FAILED), started.text()
    async with daemon(dsn, log):
        await recovered(ledger)


async def test_a_lock_timeout_lets_the_others_pass_and_charges_nobody(
    ledger: asyncpg.Connection, connect: Connect, dsn: str, log: Path
) -> None:
    await ledger.execute("select outbox.set_topic('ledger.account', p_statement_timeout_s => 1)")
    await ledger.execute("insert into ledger.balance values ('held', 0, 0)")
    holder = await connect("application")

    async def others_are_fresh() -> bool:
        return await pending(ledger) == [] and list(await failures(ledger)) == ["held"]

    async with daemon(dsn, log) as started:
        await started.until_told(telemetry.LISTENER_STARTED)
        async with holder.transaction():
            await holder.execute("select from ledger.balance where account = 'held' for update")
            for account in ("a", "held", "z"):
                await ledger.execute("select ledger.record($1, 1)", account)
            await eventually(others_are_fresh, timeout_s=30)
            assert await charged(ledger) == []
        (told, *_) = started.told(telemetry.BATCH_FAILED)
        assert (told["sqlstate"], told["blame"]) == ("55P03", "contention")
        await recovered(ledger)


# A role and its privileges


@pytest.fixture
async def role(ledger: asyncpg.Connection, worker: str) -> AsyncIterator[str]:
    """Make a role of its own that may do what a daemon must, as where nobody may create recalcd_daemon."""
    name = f"recalcd_{await ledger.fetchval('select oid from pg_database where datname = current_database()')}_{worker}"
    await ledger.execute(f"""
        create role {name} login;
        grant usage on schema outbox, ledger to {name};
        grant select, insert, update, delete on all tables in schema outbox, ledger to {name};
        revoke insert, update, delete on outbox.migration, outbox.routine from {name};
        grant execute on all routines in schema outbox to {name};
    """)
    yield name
    await ledger.execute(f"drop owned by {name}; drop role {name}")


def dsn_of(role: str, dsn: str) -> str:
    url = urlsplit(dsn)
    return url._replace(netloc=f"{role}@{url.netloc.rpartition('@')[2]}").geturl()


@pytest.fixture
def plain_dsn(role: str, dsn: str, request: pytest.FixtureRequest) -> str:
    if request.config.getoption("--pg") not in {"18", "16"}:
        pytest.skip("needs a server that lets a role without a password in: run with --pg 18")
    return dsn_of(role, dsn)


async def test_a_daemon_of_a_plain_role_needs_nothing_of_schema_reports(
    ledger: asyncpg.Connection, plain_dsn: str, dsn: str, log: Path
) -> None:
    await ledger.execute("revoke usage on schema reports from public")
    async with daemon(plain_dsn, log, as_given=True) as started, Writer(dsn, ACCOUNTS).at_work():
        await started.until_told(telemetry.BATCH_COMMITTED)
    async with daemon(plain_dsn, log, as_given=True):
        await recovered(ledger)


async def test_a_source_that_may_not_be_read_any_more_is_the_topics_trouble_and_no_keys(
    ledger: asyncpg.Connection, role: str, plain_dsn: str, dsn: str, log: Path
) -> None:
    async with daemon(plain_dsn, log, as_given=True) as started, Writer(dsn, ACCOUNTS).at_work() as writer:
        await started.until_told(telemetry.BATCH_COMMITTED)
        await ledger.execute(f"revoke select on ledger.entry from {role}")
        await enqueue(ledger, LEDGER, *ACCOUNTS)
        (told, *_) = await started.until_told(telemetry.TOPIC_BROKEN)
        await writer.writes_on(30)
        assert (told["sqlstate"], told["error"]) == ("42501", "permission denied for table entry")
        assert await charged(ledger) == []
        await ledger.execute(f"grant select on ledger.entry to {role}")
        await started.until_told(telemetry.BATCH_COMMITTED, count=len(started.told(telemetry.BATCH_COMMITTED)) + 1)
    assert not started.told(telemetry.KEY_DIED)
    async with daemon(plain_dsn, log, as_given=True):
        await recovered(ledger)


async def test_an_outbox_that_may_not_be_written_any_more_is_waited_for(
    ledger: asyncpg.Connection, role: str, plain_dsn: str, dsn: str, log: Path
) -> None:
    async with daemon(plain_dsn, log, as_given=True) as started, Writer(dsn, ACCOUNTS).at_work() as writer:
        await started.until_told(telemetry.BATCH_COMMITTED)
        await ledger.execute(f"revoke delete on outbox.event from {role}")
        (told, *_) = await started.until_told(telemetry.BATCH_RETRIED)
        assert (told["sqlstate"], told["error"]) == ("42501", "permission denied for table event")
        await writer.writes_on()
        again = log.with_name("second.log")  # as after a restart meanwhile
        async with daemon(plain_dsn, again, as_given=True) as second:
            await second.until_told(telemetry.BATCH_RETRIED)
            await ledger.execute(f"grant delete on outbox.event to {role}")
            await writer.writes_on()
            assert started.lives()
            assert second.lives()
    assert not started.told(telemetry.KEY_FAILED)
    async with daemon(plain_dsn, log, as_given=True):
        await recovered(ledger)


async def test_a_daemon_that_starts_without_its_privileges_waits_for_them(
    ledger: asyncpg.Connection, role: str, plain_dsn: str, log: Path
) -> None:
    await ledger.execute(f"revoke usage on schema outbox from {role}; select ledger.record('a', 1)")
    async with daemon(plain_dsn, log, as_given=True) as started:
        (told, *_) = await started.until_told(telemetry.DATABASE_AWAITED)
        assert "permission denied for schema outbox" in told["error"]
        await ledger.execute(f"grant usage on schema outbox to {role}")
        await recovered(ledger)


async def test_a_login_that_becomes_another_role_serves_as_any_other(
    ledger: asyncpg.Connection, role: str, plain_dsn: str, log: Path, settings: Settings
) -> None:
    """The server hides from it when its sessions began, so nobody can ask what has become of them."""
    login = f"{role}_login"
    await ledger.execute(f"create role {login} login noinherit in role {role}; alter role {login} set role = {role}")
    try:
        async with daemon(dsn_of(login, plain_dsn), log, as_given=True):
            for amount in range(3):
                await ledger.execute("select ledger.record('a', $1)", amount)
                await recovered(ledger)
        its_own = settings.model_copy(update={"database_url": SecretStr(dsn_of(login, plain_dsn))})
        opened = await open_session(its_own, application_name="test")
        assert not opened.is_direct
        await opened.connection.close()
    finally:
        await ledger.execute(f"drop role {login}")


async def test_a_daemon_that_starts_while_its_tables_are_locked_waits_for_them(
    ledger: asyncpg.Connection, connect: Connect, dsn: str, log: Path
) -> None:
    await ledger.execute("select ledger.record('a', 1)")
    await ledger.execute(f"alter database {urlsplit(dsn).path[1:]} set lock_timeout = '50ms'")  # of new sessions
    holder = await connect("application")
    await holder.execute("begin; lock outbox.daemon")
    async with daemon(dsn, log) as started:
        (told, *_) = await started.until_told(telemetry.DATABASE_AWAITED)
        assert "lock timeout" in told["error"]
        await holder.execute("rollback")
        await recovered(ledger)


async def test_a_login_that_is_taken_away_and_given_back_costs_a_running_daemon_nothing(
    ledger: asyncpg.Connection, role: str, plain_dsn: str, dsn: str, log: Path
) -> None:
    async with daemon(plain_dsn, log, as_given=True) as started, Writer(dsn, ACCOUNTS).at_work() as writer:
        await started.until_told(telemetry.BATCH_COMMITTED)
        await ledger.execute(f"alter role {role} nologin")
        await ledger.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = $1", role)
        (told, *_) = await started.until_told(telemetry.BATCH_RETRIED, error_type="DatabaseRefuses")
        assert f'role "{role}" is not permitted to log in' in told["error"]
        await writer.writes_on()
        await ledger.execute(f"alter role {role} login")
        await started.until_told(telemetry.BATCH_COMMITTED, count=len(started.told(telemetry.BATCH_COMMITTED)) + 1)
    async with daemon(plain_dsn, log, as_given=True):
        await recovered(ledger)


async def test_daemons_of_different_roles_see_that_the_other_one_lives(
    ledger: asyncpg.Connection, plain_dsn: str, dsn: str, log: Path
) -> None:
    async def states() -> list[str]:
        rows = await ledger.fetch("select state from outbox.daemon order by started_at")
        return [row["state"] for row in rows]

    async with daemon(dsn, log) as first:
        await first.until_told(telemetry.LISTENER_STARTED)
        async with daemon(plain_dsn, log.with_name("plain.log"), as_given=True) as plain:
            await plain.until_told(telemetry.LISTENER_STARTED)
            assert "vanished" not in await states()
            await first.kill()
            async with daemon(plain_dsn, log.with_name("third.log"), as_given=True) as third:
                await third.until_told(telemetry.LISTENER_STARTED)
                assert (await states())[0] == "vanished"


# The schema


@pytest.mark.parametrize("to", [4, 2])
async def test_a_schema_migrated_down_and_up_beneath_a_daemon_ends_it_and_loses_nothing(
    ledger: asyncpg.Connection, connect: Connect, dsn: str, log: Path, to: int
) -> None:
    """Daemons of the owner: a recalcd_daemon loses its privileges with the schema, and waits for them, as above."""
    admin = await connect("migration")
    await migrations.down(admin, set_names=["reports"])
    async with daemon(dsn, log, as_given=True) as started:
        async with Writer(dsn, ACCOUNTS).at_work():
            await started.until_told(telemetry.BATCH_COMMITTED)
        await until_empty(ledger)  # or going down is refused
        await migrations.down(admin, set_names=["outbox"], to=to)
        for account in ACCOUNTS:  # the outbox itself is still there, its routines may not be
            await admin.execute(
                "with e as (insert into ledger.entry (account, amount) values ($1, 5)) "
                "insert into outbox.event (topic, key) values ('ledger.account', $1)",
                account,
            )
        assert await started.exit_code() == 4
        assert "The schema changed beneath the daemon" in started.text()
    async with daemon(dsn, log.with_name("again.log"), as_given=True) as again:  # as systemd would
        assert await again.exit_code() == 4
        assert "Run `recalcd migrate up`." in again.text()
    await migrations.up(admin)
    async with daemon(dsn, log):
        await recovered(ledger)


async def test_a_migration_that_applies_the_routines_again_is_no_trouble(
    ledger: asyncpg.Connection, connect: Connect, dsn: str, log: Path
) -> None:
    admin = await connect("migration")
    async with under_load(dsn, log) as (started, writer):
        for _ in range(2):
            await admin.execute("update outbox.routine set checksum = 'another' where set_name = 'outbox'")
            await migrations.up(admin)
            await writer.writes_on()
        assert started.lives()
    assert not started.told(telemetry.KEY_FAILED), started.text()
    async with daemon(dsn, log):
        await recovered(ledger)


# The school keeps the promise, too


async def test_a_school_whose_source_is_altered_and_forbidden_for_a_while_ends_up_true(
    db: asyncpg.Connection, connect: Connect, dsn: str, log: Path
) -> None:
    school = await found(db, pupils=4)
    activity = await school.assign()

    async def write(count: int) -> None:
        writer = School(await connect())
        for number in range(count):
            await writer.record_feedback(activity, school.pupils[number % 4], number % 10 / 10)

    async with daemon(dsn, log) as started:
        await write(8)
        await started.until_told(telemetry.BATCH_COMMITTED)
        writing = asyncio.create_task(write(60))
        await db.execute("alter table school.feedback rename column score to mark")
        await db.execute("alter table school.feedback rename column mark to score")
        await db.execute("alter table school.feedback add remark text")
        await db.execute("alter table school.feedback drop column remark")
        await asyncio.gather(writing, return_exceptions=True)  # a write that failed is not written
        await eventually(partial(is_served, db), timeout_s=30)
    assert await drift(db) == []


async def is_served(db: asyncpg.Connection) -> bool:
    return not await pending(db) and not await failures(db)
