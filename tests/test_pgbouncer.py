"""Debian's PgBouncer in between: what works through which kind of pooling, and that nothing stays behind in a pool."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest
from engine import (
    asleep,
    done,
    enqueue,
    events_of,
    failures,
    impatient,
    make_ledger,
    make_topic,
    on_duty,
    until_empty,
)
from pgbouncer import POOL_SIZE, Pooler, pgbouncer, tracks_prepared_statements
from pydantic import SecretStr
from school import School, found
from servers import Psql
from typed import recalcd_on
from waiting import eventually

import daemon.doorbell
from daemon import telemetry
from daemon.settings import Settings

pytestmark = pytest.mark.own_server


@pytest.fixture
async def transaction_pooler(dsn: str) -> AsyncIterator[Pooler]:
    async with pgbouncer(dsn, "transaction") as pooler:
        yield pooler


@pytest.fixture
async def session_pooler(dsn: str) -> AsyncIterator[Pooler]:
    async with pgbouncer(dsn, "session", default_pool_size=50) as pooler:
        yield pooler


def behind(pooler: Pooler, settings: Settings, **update: Any) -> Settings:
    """Log in as the tests do, so as_given: a pool is one login's, and they look into what a daemon left in it."""
    return impatient(settings, database_url=SecretStr(pooler.dsn), **update)


async def left_behind(db: asyncpg.Connection, pooler: Pooler) -> dict[str, object]:
    """Tell what the sessions of the pool keep that fresh ones would not have."""
    locks = """
        select count(*) from pg_locks as l join pg_database as d on d.oid = l.database
        where d.datname = current_database() and l.locktype = 'advisory'
    """
    settings = """
        select array(
            select s.name || '=' || s.setting from pg_settings as s
            where s.source = 'session' and s.setting is distinct from s.reset_val and s.name <> all (array[
                'application_name', 'client_encoding', 'DateStyle', 'TimeZone', 'standard_conforming_strings'
            ])
        )
    """
    return {
        "channels": await pooler.ask_all_sessions("select array(select pg_listening_channels())"),
        "settings": await pooler.ask_all_sessions(settings),
        "lock_count": await db.fetchval(locks),
    }


CLEAN: dict[str, object] = {"channels": set(), "settings": set(), "lock_count": 0}


async def test_applications_write_through_transaction_pooling_and_wake_a_daemon_that_is_connected_directly(
    db: asyncpg.Connection, settings: Settings, transaction_pooler: Pooler, psql: Psql
) -> None:
    school = await found(db, pupils=12)
    assignment = await school.assign()
    async with on_duty(impatient(settings, poll_interval_s=3600)):
        await asleep(db)

        async def record(pupil: object) -> None:
            client = await transaction_pooler.connect()
            try:
                await School(client).record_feedback(assignment, pupil, 0.5)
            finally:
                await client.close()

        await asyncio.gather(*(record(pupil) for pupil in school.pupils))
        await until_empty(db)
        await asleep(db)
        psql(
            f"select school.record_feedback('{assignment}', '{school.pupils[0]}', 0.75);\n", dsn=transaction_pooler.dsn
        )
        await until_empty(db)
    assert await school.recalculate() == []  # all are true already
    assert await left_behind(db, transaction_pooler) == CLEAN


async def test_a_daemon_behind_transaction_pooling_polls_says_so_and_loses_nothing(
    db: asyncpg.Connection, settings: Settings, transaction_pooler: Pooler, logged: list[Any]
) -> None:
    await make_ledger(db)
    await make_topic(db, "t")
    keys = [f"k{number:03}" for number in range(100)]
    async with on_duty(behind(transaction_pooler, settings, workers=2), as_given=True) as crew:
        await eventually(told(logged, telemetry.LISTENER_DEGRADED))
        assert crew._doorbell.is_degraded
        for key in keys:
            await enqueue(db, "t", key)
        await until_empty(db)
        crew._shared.housekeeping.set()
        await eventually(degraded(db))
        status = await recalcd_on(transaction_pooler.dsn)("status")
        assert "degraded" in status.stdout
        assert await left_behind(db, transaction_pooler) == CLEAN
    assert await done(db, "t") == keys
    assert await failures(db) == {}
    assert not events_of(logged, telemetry.SESSION_LOST, telemetry.BATCH_RETRIED, telemetry.LISTENER_LOST)


@pytest.mark.parametrize("statements", [0, 100])
async def test_a_pooler_that_tracks_prepared_statements_or_could_makes_no_difference(
    db: asyncpg.Connection, dsn: str, settings: Settings, statements: int
) -> None:
    if not tracks_prepared_statements():
        pytest.skip("this PgBouncer never tracks prepared statements: install 1.21 or later")
    await make_ledger(db)
    await make_topic(db, "t")
    async with (
        pgbouncer(dsn, "transaction", max_prepared_statements=statements) as pooler,
        on_duty(behind(pooler, settings), as_given=True),
    ):
        await enqueue(db, "t", *(f"k{number}" for number in range(100)))
        await until_empty(db)
    assert len(await done(db, "t")) == 100


def told(logged: list[Any], event: str) -> Callable[[], Awaitable[bool]]:
    async def is_told() -> bool:
        return bool(events_of(logged, event))

    return is_told


def degraded(db: asyncpg.Connection) -> Callable[[], Awaitable[bool]]:
    async def is_degraded() -> bool:
        return bool(await db.fetchval("select state = 'degraded' from outbox.daemon"))

    return is_degraded


async def test_a_transaction_pooler_that_keeps_its_clients_apart_for_once_is_found_by_another_sessions_notification(
    db: asyncpg.Connection,
    settings: Settings,
    transaction_pooler: Pooler,
    logged: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It delivers what a session sends itself, so that proves nothing; and no lock must be left in its pool."""

    async def seems_private(*_: object) -> bool:
        return False

    monkeypatch.setattr(daemon.doorbell, "is_shared", seems_private)
    await make_ledger(db)
    await make_topic(db, "t")
    async with on_duty(behind(transaction_pooler, settings, heartbeat_timeout_s=2), as_given=True):
        await eventually(told(logged, telemetry.LISTENER_DEGRADED))
        await enqueue(db, "t", "k")
        await until_empty(db)
        assert (await left_behind(db, transaction_pooler))["lock_count"] == 0
    assert not events_of(logged, telemetry.DOORBELL_ARMED)


async def test_a_recalculation_longer_than_the_heartbeat_is_left_in_peace_behind_transaction_pooling(
    db: asyncpg.Connection, settings: Settings, transaction_pooler: Pooler, logged: list[Any]
) -> None:
    """The session that answered while connecting is idle, and tells nothing of the one that is at work now."""
    await make_ledger(db)
    await make_topic(db, "t", "perform pg_sleep(2);")
    beat = {"workers": 1, "heartbeat_s": 0.2, "heartbeat_timeout_s": 0.2}
    async with on_duty(behind(transaction_pooler, settings, wake="poll", **beat), as_given=True) as crew:

        async def is_connected() -> bool:
            return crew._workers[0]._session is not None

        async def is_at_work() -> bool:
            sleeping = "datname = current_database() and wait_event = 'PgSleep'"
            count = await db.fetchval(f"select count(*) from pg_stat_activity where {sleeping}")
            return bool(count)  # in the pool a session's name is whoever's

        await eventually(is_connected)
        assert crew._workers[0]._session
        async with transaction_pooler.all_sessions() as held:
            await enqueue(db, "t", "k")
            answered = held.pop(crew._workers[0]._session.pid)
            await next(iter(held.values())).execute("commit")  # the only session that the batch can have
            await eventually(is_at_work)
            await answered.close()
        await until_empty(db)
    assert not events_of(logged, telemetry.SESSION_LOST, telemetry.BATCH_RETRIED)


async def test_a_daemon_behind_session_pooling_has_all_it_needs(
    db: asyncpg.Connection, settings: Settings, session_pooler: Pooler, logged: list[Any]
) -> None:
    await make_ledger(db)
    await make_topic(db, "t")
    async with on_duty(behind(session_pooler, settings, poll_interval_s=3600), as_given=True) as crew:
        await asleep(db)
        await enqueue(db, "t", "k")
        await until_empty(db)
        await asleep(db)
        assert not crew._doorbell.is_degraded
        doctor = await recalcd_on(session_pooler.dsn)("doctor", "--json")
    connection = [each for each in json.loads(doctor.stdout) if each["check"] == "connection"]
    assert [each["level"] for each in connection] == ["ok"]
    assert not events_of(logged, telemetry.LISTENER_DEGRADED, telemetry.LISTENER_LOST)


READING = [
    ("status",),
    ("topic", "list"),
    ("failures", "list"),
    ("explain", "t", "k"),
    ("migrate", "status"),
    ("verify", "--topic", "t", "--key", "k"),
    ("job", "list"),
]
KEEPING = [
    ("migrate", "up"),
    ("migrate", "down", "--set", "reports", "--yes"),
    ("backfill", "--topic", "t"),
    ("replay", "t", "--dead", "--yes"),
    ("tail",),
]


async def test_commands_work_through_transaction_pooling_or_refuse_it(
    db: asyncpg.Connection, transaction_pooler: Pooler
) -> None:
    await make_ledger(db)
    await make_topic(db, "t")
    await enqueue(db, "t", "k")
    recalcd = recalcd_on(transaction_pooler.dsn)
    for command in READING:
        ended = await recalcd(*command)
        assert ended.exit_code in (0, 1), (command, ended.output)
    for command in KEEPING:
        ended = await recalcd(*command)
        assert (ended.exit_code, "transaction pooler" in ended.output) == (78, True), (command, ended.output)
    assert await left_behind(db, transaction_pooler) == CLEAN


async def test_doctor_finds_the_transaction_pooler_and_leaves_nothing_behind(
    db: asyncpg.Connection, transaction_pooler: Pooler
) -> None:
    told = await recalcd_on(transaction_pooler.dsn)("doctor", "--json")
    (found,) = [each for each in json.loads(told.stdout) if each["check"] == "connection"]
    assert (told.exit_code, found["level"]) == (1, "error")
    assert "transaction pooler" in found["sentence"]
    assert await left_behind(db, transaction_pooler) == CLEAN


async def test_commands_that_keep_something_work_through_session_pooling(
    db: asyncpg.Connection, session_pooler: Pooler
) -> None:
    recalcd = recalcd_on(session_pooler.dsn)
    assert (await recalcd("migrate", "up")).exit_code == 0
    await make_ledger(db)
    await make_topic(db, "t")
    assert (await recalcd("replay", "t", "--key", "k", "--yes")).exit_code == 0


async def test_a_pool_that_is_full_is_waited_for(
    db: asyncpg.Connection, settings: Settings, transaction_pooler: Pooler
) -> None:
    """All sessions of the pool are held by applications: the daemon waits its turn, and loses nothing."""
    await make_ledger(db)
    await make_topic(db, "t")
    async with on_duty(behind(transaction_pooler, settings, connect_timeout_s=0.5), as_given=True):
        greedy = [await transaction_pooler.connect() for _ in range(POOL_SIZE)]
        for client in greedy:
            await client.execute("begin")
        await enqueue(db, "t", "k")
        for client in greedy:
            await client.execute("commit")
            await client.close()
        await until_empty(db)
    assert await done(db, "t") == ["k"]
