"""The daemon's row in outbox.daemon, what became of the others, and the history's partitions."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from engine import (
    asleep,
    done,
    enqueue,
    events_of,
    impatient,
    make_ledger,
    make_topic,
    numbered,
    on_duty,
    terminate,
    until_empty,
)
from servers import Connect
from waiting import eventually

import daemon.housekeeping
from daemon import __version__, telemetry
from daemon.housekeeping import HEARTBEAT
from daemon.settings import Settings

OLD = "outbox.batch_20200101"


@pytest.fixture(autouse=True)
async def topic(db: asyncpg.Connection) -> None:
    await make_ledger(db)
    await make_topic(db, "t")


async def partitions(db: asyncpg.Connection) -> list[str]:
    rows = await db.fetch("select inhrelid::regclass::text from pg_inherits where inhparent = 'outbox.batch'::regclass")
    return sorted(row[0] for row in rows)


async def make_old_partition(db: asyncpg.Connection) -> None:
    await db.execute(f"create table {OLD} partition of outbox.batch for values from ('2020-01-01') to ('2020-01-02')")


@asynccontextmanager
async def read_history(connect: Connect) -> AsyncIterator[None]:
    """Read the history in a long transaction, as pg_dump does."""
    reader = await connect()
    async with reader.transaction():
        await reader.fetch("select from outbox.batch")
        yield


async def test_a_daemon_says_that_it_is_here_and_that_it_leaves(db: asyncpg.Connection, settings: Settings) -> None:
    async with on_duty(impatient(settings)):
        row = await db.fetchrow("select * from outbox.daemon")
        assert row is not None
        assert (row["version"], row["ended_at"], row["state"]) == (__version__, None, "working")
        query = "select application_name from pg_stat_activity where pid = $1 and backend_start = $2"
        here = await db.fetchval(query, row["backend_pid"], row["backend_started_at"])
        assert here == "recalcd housekeeper"
    row = await db.fetchrow("select * from outbox.daemon")
    assert row is not None
    assert row["state"] == "stopped"
    assert row["ended_at"] is not None


async def test_the_row_tells_the_state_again_and_again(
    db: asyncpg.Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon.housekeeping, "ROUND_S", 0.05)

    async def is_idle() -> bool:
        return await db.fetchval("select state = 'idle' and seen_at > started_at from outbox.daemon") is True

    async with on_duty(impatient(settings)):
        await eventually(is_idle)


async def test_a_daemon_that_vanished_is_found_and_makes_its_successor_cautious(
    db: asyncpg.Connection, settings: Settings
) -> None:
    await db.execute("""
        insert into outbox.daemon (daemon_id, host, pid, version, state, backend_pid, backend_started_at)
        values (gen_random_uuid(), 'host', 1, '0', 'working', 1, now())
    """)
    async with on_duty(impatient(settings)) as crew:
        assert crew._shared.is_cautious
        assert await db.fetchval("select count(*) from outbox.daemon where state = 'vanished' and ended_at is not null")
        await enqueue(db, "t", "k")
        await until_empty(db)
    assert await done(db, "t") == ["k"]
    assert await db.fetchval("select count(*) from outbox.suspect") == 0


async def test_what_a_daemon_calls_while_cautious_is_on_record_before_the_call(
    db: asyncpg.Connection, settings: Settings
) -> None:
    await db.execute("""
        insert into outbox.daemon (daemon_id, host, pid, version, state, backend_pid, backend_started_at, ended_at)
        values (gen_random_uuid(), 'host', 1, '0', 'vanished', 1, now(), clock_timestamp())
    """)
    await make_topic(db, "u", "if (select count(*) from outbox.suspect) <> 2 then raise 'not on record'; end if;")
    async with on_duty(impatient(settings)):
        await enqueue(db, "u", "a", "b")
        await until_empty(db)
    assert await done(db, "u") == ["a", "b"]


async def is_cautious(db: asyncpg.Connection) -> object:
    """Return what the heartbeat of an idle daemon says, the same one each time."""
    return await db.fetchval(HEARTBEAT, UUID(int=1), "host", 1, "0", "idle")


async def test_keys_in_hand_are_no_cause_for_alarm_until_their_lock_is_gone(
    db: asyncpg.Connection, connect: Connect
) -> None:
    other, keys = await connect(), numbered(20)  # so many that some have a negative lock id
    async with other.transaction():
        await other.execute("select outbox.lock_keys('t', $1)", keys)
        await db.execute("select outbox.suspect_keys('t', $1)", keys)  # as a cautious daemon notes whom it calls
        await db.execute("update outbox.suspect set last_crashed_at = last_crashed_at - interval '2 seconds'")
        assert await is_cautious(db) is False
    assert await is_cautious(db) is True


async def test_what_a_clock_that_was_ahead_left_behind_is_no_cause_for_alarm(db: asyncpg.Connection) -> None:
    await db.execute("""
        insert into outbox.daemon (daemon_id, host, pid, version, state, backend_pid, backend_started_at, ended_at)
        values (gen_random_uuid(), 'host', 1, '0', 'vanished', 1, now(), now() + interval '1 year');
        insert into outbox.suspect (topic, key, crash_count, last_crashed_at)
        values ('t', 'k', 1, now() + interval '1 year');
    """)
    assert await is_cautious(db) is False


async def test_a_living_daemon_is_nobodys_cause_for_alarm(db: asyncpg.Connection, settings: Settings) -> None:
    async with on_duty(impatient(settings)), on_duty(impatient(settings)) as second:
        assert not second._shared.is_cautious
        assert await db.fetchval("select count(*) from outbox.daemon where ended_at is null") == 2


async def test_daemons_that_ended_a_week_ago_are_forgotten(db: asyncpg.Connection, settings: Settings) -> None:
    await db.execute("""
        insert into outbox.daemon (daemon_id, host, pid, version, state, backend_pid, backend_started_at, ended_at)
        select gen_random_uuid(), 'host', 1, '0', 'stopped', 1, now(), now() - days * interval '1 day'
        from unnest(array[6, 8]) as days
    """)
    async with on_duty(impatient(settings)):
        assert await db.fetchval("select count(*) from outbox.daemon where state = 'stopped'") == 1


async def test_the_history_is_kept_for_the_days_that_the_setting_says(
    db: asyncpg.Connection, settings: Settings, logged: list[Any]
) -> None:
    await make_old_partition(db)
    async with on_duty(impatient(settings, history_days=3)):
        assert OLD not in await partitions(db)
        assert len(await partitions(db)) == 1 + daemon.housekeeping.DAYS_AHEAD
        await enqueue(db, "t", "k")
        await until_empty(db)
    assert await db.fetchval("select count(*) from outbox.batch where kind = 'live' and keys = array['k']") == 1
    assert [each["partition"] for each in events_of(logged, telemetry.PARTITION_DROPPED)] == [OLD.split(".")[1]]


async def test_zero_days_mean_no_history_at_all(db: asyncpg.Connection, settings: Settings) -> None:
    async with on_duty(impatient(settings, history_days=0)):
        await enqueue(db, "t", "k")
        await until_empty(db)
    assert await partitions(db) == []
    assert await done(db, "t") == ["k"]


async def test_a_backup_that_reads_the_history_does_not_keep_a_daemon_from_starting(
    db: asyncpg.Connection, connect: Connect, settings: Settings, logged: list[Any]
) -> None:
    await make_old_partition(db)
    async with read_history(connect), on_duty(impatient(settings)):
        await enqueue(db, "t", "k")
        await until_empty(db)
    assert OLD in await partitions(db)
    assert [each["sqlstate"] for each in events_of(logged, telemetry.HOUSEKEEPING_FAILED)] == ["55P03"]


async def test_an_old_partition_is_dropped_once_its_reader_is_gone(
    db: asyncpg.Connection, connect: Connect, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon.housekeeping, "ROUND_S", 0.05)
    monkeypatch.setattr(daemon.housekeeping, "PARTITIONS_AGAIN_S", 0.1)
    await make_old_partition(db)

    async def is_dropped() -> bool:
        return OLD not in await partitions(db)

    async with read_history(connect):
        crew = on_duty(impatient(settings))
        await crew.__aenter__()
    await eventually(is_dropped)
    await crew.__aexit__(None, None, None)


async def test_a_missing_partition_is_made_as_soon_as_a_batch_needs_it(
    db: asyncpg.Connection, settings: Settings
) -> None:
    async with on_duty(impatient(settings)):
        await db.execute(f"drop table outbox.batch_{datetime.now(UTC):%Y%m%d}")
        await enqueue(db, "t", "k")
        await until_empty(db)
    assert await done(db, "t") == ["k"]
    assert await db.fetchval("select count(*) from outbox.batch") == 1


async def test_a_worker_that_asks_for_a_partition_need_ask_only_once(
    db: asyncpg.Connection, settings: Settings
) -> None:
    today = f"outbox.batch_{datetime.now(UTC):%Y%m%d}"
    async with on_duty(impatient(settings)) as crew:
        await asleep(db)
        await db.execute(f"drop table {today}")
        crew._shared.housekeeping.set()

        async def is_made() -> bool:
            return today in await partitions(db)

        await eventually(is_made)


async def test_a_housekeeper_whose_connection_breaks_gets_another(
    db: asyncpg.Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon.housekeeping, "ROUND_S", 0.05)

    async def is_seen_again() -> bool:
        query = "select exists (select from outbox.daemon as d join pg_stat_activity as a on a.pid = d.backend_pid)"
        return bool(await db.fetchval(query))

    async with on_duty(impatient(settings)):
        await asleep(db)
        await terminate(db, "recalcd housekeeper")
        await eventually(is_seen_again)
        assert await db.fetchval("select ended_at is null from outbox.daemon")
