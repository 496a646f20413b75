"""outbox.settle: what is written and told when a batch is done; and the history's partitions."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from engine import LIVE, enqueue, failures, make_ledger, make_topic, next_batch, numbered, refused
from servers import Connect
from waiting import eventually, wait_until_blocked

from daemon.batch import Recalculation

LIMIT = 8000  # of NOTIFY: https://www.postgresql.org/docs/current/sql-notify.html
Hear = Callable[[], Awaitable[list[str]]]


@pytest.fixture(autouse=True)
async def topic(db: asyncpg.Connection) -> None:
    await make_ledger(db)
    await make_topic(db, "t", "p_changed_keys := array(select k from unnest(p_keys) as k where k like '%!');")


@pytest.fixture
async def hear(connect: Connect, db: asyncpg.Connection) -> Hear:
    """Return a function that returns the payloads heard on the readers' channel up to now."""
    listener = await connect("listener")
    heard: list[str] = []
    fences: list[str] = []
    await listener.add_listener("recalculated", lambda *told: heard.append(told[-1]))
    await listener.add_listener("fence", lambda *told: fences.append(told[-1]))

    async def hear() -> list[str]:
        passed = len(fences)
        await db.execute("notify fence")

        async def is_passed() -> bool:
            return len(fences) > passed

        await eventually(is_passed)
        return heard

    return hear


async def settle(db: asyncpg.Connection, changed: list[str] | None, topic: str = "t") -> None:
    query = "select outbox.settle($1, $2, $3, 0, null, '{}', clock_timestamp(), 1, null, 'live', false)"
    await db.execute(query, topic, changed or ["k"], changed)


def keys_in(payloads: list[str]) -> list[str]:
    return [key for payload in payloads for key in json.loads(payload)["keys"]]


async def test_readers_are_told_the_changed_keys_with_the_commit(db: asyncpg.Connection, hear: Hear) -> None:
    await enqueue(db, "t", "a", "b!", "c!")
    async with db.transaction():
        await settle(db, ["b!", "c!"])
    assert [json.loads(payload) for payload in await hear()] == [{"topic": "t", "keys": ["b!", "c!"]}]


async def test_readers_are_told_nothing_that_rolls_back_or_did_not_change(db: asyncpg.Connection, hear: Hear) -> None:
    transaction = db.transaction()
    await transaction.start()
    await settle(db, ["a"])
    await transaction.rollback()
    await settle(db, [])
    await settle(db, None)
    assert await hear() == []


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param(numbered(1000), id="short"),
        pytest.param([f"{n:04}" + "k" * 251 for n in range(1000)], id="long"),
        pytest.param([f"{n:03}" + "\x01" * 252 for n in range(100)], id="six bytes a character"),
        pytest.param([f"{n:03}" + '"' * 252 for n in range(100)], id="quotes"),
        pytest.param([f"{n:03}" + "\\" * 252 for n in range(100)], id="backslashes"),
        pytest.param([f"{n:03}" + "🙂" * 252 for n in range(100)], id="four bytes a character"),
        pytest.param([*numbered(50), "é" * 255, *numbered(50, 50), "\x1f" * 255], id="mixed"),
    ],
)
async def test_payloads_stay_under_the_limit_and_hold_every_key_once(
    db: asyncpg.Connection, hear: Hear, keys: list[str]
) -> None:
    await settle(db, keys, topic="\x02" * 100)  # the longest topic in the longest spelling
    payloads = await hear()
    assert sorted(keys_in(payloads)) == sorted(keys)
    assert max(len(payload.encode()) for payload in payloads) < LIMIT
    assert len(payloads) <= 2 + sum(len(json.dumps(key, ensure_ascii=False).encode()) + 2 for key in keys) // 5000


async def test_what_was_held_against_the_keys_is_cleared_and_nothing_else(db: asyncpg.Connection) -> None:
    for key in ("done", "other"):
        await db.execute("select outbox.fail_key('t', $1, true, 1, 'P0001', 'no', null, null, null)", key)
        await db.execute("select outbox.suspect_keys('t', array[$1::text])", key)
    await settle(db, ["done"])
    assert list(await failures(db)) == ["other"]
    assert await db.fetchval("select array_agg(key) from outbox.suspect") == ["other"]


async def test_the_history_keeps_what_a_batch_took_and_changed(db: asyncpg.Connection) -> None:
    await db.execute("select outbox.make_partitions(1)")
    await db.execute("select outbox.enqueue('t', array['a', 'a', 'b!'], 'why')")
    before = await db.fetchval("select clock_timestamp()")
    await next_batch(db, Recalculation(None, "replay", keep_history=True))
    row = await db.fetchrow("select * from outbox.batch")
    assert row is not None
    told = {name: row[name] for name in ("topic", "keys", "changed_keys", "event_count", "reasons", "kind")}
    assert told == {
        "topic": "t",
        "keys": ["a", "b!"],
        "changed_keys": ["b!"],
        "event_count": 3,
        "reasons": ["why"],
        "kind": "replay",
    }
    assert row["oldest_event_at"] < before < row["started_at"] < row["finished_at"]
    assert row["recalculate_ms"] > 0


async def test_without_history_no_row_is_written_and_no_partition_needed(db: asyncpg.Connection) -> None:
    await enqueue(db, "t", "a")
    assert await next_batch(db, LIVE)
    assert await db.fetchval("select count(*) from outbox.batch") == 0


async def partitions(db: asyncpg.Connection) -> list[str]:
    rows = await db.fetch(
        "select relname from pg_class where relispartition and relname like 'batch_2%' and relkind = 'r'"
    )
    return sorted(row["relname"] for row in rows)


def named(*days: int) -> list[str]:
    today = datetime.now(UTC)
    return [f"batch_{today + timedelta(days=day):%Y%m%d}" for day in days]


async def test_partitions_are_made_ahead_once_and_know_their_day(db: asyncpg.Connection) -> None:
    assert await db.fetchval("select outbox.make_partitions(2)") == named(0, 1, 2)
    assert await db.fetchval("select outbox.make_partitions(3)") == named(3)
    assert await db.fetchval("select outbox.make_partitions(3)") == []
    assert await partitions(db) == named(0, 1, 2, 3)
    await settle_at(db, datetime.now(UTC).replace(hour=23, minute=59, second=59, microsecond=999999))
    await settle_at(db, datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0))
    assert await db.fetchval("select array_agg(distinct tableoid::regclass::text) from outbox.batch") == [
        f"outbox.{named(0)[0]}"
    ]


async def settle_at(db: asyncpg.Connection, started_at: datetime) -> None:
    query = "select outbox.settle('t', array['a'], null, 0, null, '{}', $1, 1, null, 'live', true)"
    await db.execute(query, started_at)


async def test_days_are_of_utc_whatever_the_session_says(db: asyncpg.Connection) -> None:
    for zone in ("Pacific/Kiritimati", "Pacific/Pago_Pago"):
        await db.execute(f"set timezone = '{zone}'")
        await db.execute("select outbox.make_partitions(0), outbox.drop_partitions(0)")
    assert await partitions(db) == named(0)


async def test_old_partitions_are_dropped_and_the_days_to_keep_stay(db: asyncpg.Connection) -> None:
    await db.execute("select outbox.make_partitions(0)")
    for day in (-1, -2, -3, -4, -400):
        name, date = named(day)[0], f"current_date {day}"
        await db.execute(f"""
            set timezone = 'UTC';
            do $$ begin execute format(
                'create table outbox.{name} partition of outbox.batch for values from (%L) to (%L)', {date}, {date} + 1
            ); end $$
        """)
    assert await db.fetchval("select outbox.drop_partitions(2)") == named(-400, -4, -3)
    assert await partitions(db) == named(-2, -1, 0)


async def test_a_clock_that_jumps_a_year_ahead_costs_no_day_of_the_history(db: asyncpg.Connection) -> None:
    await db.execute("set timezone = 'UTC'")
    for day in range(370, 365, -1):  # a year ago, as the clock has it now
        name = named(-day)[0]
        await db.execute(f"""
            do $$ begin execute format(
                'create table outbox.{name} partition of outbox.batch for values from (%L) to (%L)',
                current_date - {day}, current_date - {day} + 1
            ); end $$
        """)
        if day != 366:  # made ahead, but not used yet
            await settle_at(db, datetime.now(UTC) - timedelta(days=day))
    assert await db.fetchval("select outbox.drop_partitions(3)") == named(-370, -366)
    assert await partitions(db) == named(-369, -368, -367)


async def test_dropping_gives_up_rather_than_make_everybody_queue(db: asyncpg.Connection, connect: Connect) -> None:
    await db.execute("""
        create table outbox.batch_20200101 partition of outbox.batch for values from ('2020-01-01') to ('2020-01-02')
    """)
    reader = await connect()
    async with reader.transaction():
        await reader.fetch("select from outbox.batch")
        with refused("55P03"):
            await db.execute("select outbox.drop_partitions(3)")
    assert await db.fetchval("select outbox.drop_partitions(3)") == ["batch_20200101"]


async def test_making_partitions_does_not_wait_for_batches_in_flight(db: asyncpg.Connection, connect: Connect) -> None:
    await db.execute("select outbox.make_partitions(0)")
    settling = await connect()
    async with settling.transaction():
        await settle_at(settling, datetime.now(UTC))
        await db.execute("set statement_timeout = '5s'")
        assert await db.fetchval("select outbox.make_partitions(1)") == named(1)


async def test_two_daemons_that_make_partitions_do_not_collide(db: asyncpg.Connection, connect: Connect) -> None:
    first, second = await connect(), await connect("second")
    async with first.transaction():
        await first.execute("select outbox.make_partitions(1)")
        waiting: asyncio.Task[Any] = asyncio.create_task(second.fetchval("select outbox.make_partitions(1)"))
        await wait_until_blocked(db, "second")
    assert await waiting == []
