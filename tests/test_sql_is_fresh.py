"""outbox.is_fresh and outbox.wait_fresh: what a reader may ask."""

import asyncio

import asyncpg
import pytest
from engine import drain, enqueue, failures, make_due, make_ledger, make_topic, refused
from servers import Connect
from waiting import eventually

FRESH = "select outbox.is_fresh('t', 'k')"
WAIT = "select outbox.wait_fresh('t', 'k', make_interval(secs => $1))"
FAIL = "select outbox.fail_key('t', 'k', true, 1, 'P0001', 'no', null, null, null)"


@pytest.fixture(autouse=True)
async def topic(db: asyncpg.Connection) -> None:
    await make_ledger(db)
    await make_topic(db, "t", "if 'bad' = any (p_keys) then raise 'no'; end if;")


async def is_waiting(db: asyncpg.Connection) -> bool:
    query = "select count(*) from pg_stat_activity where application_name = 'reader' and wait_event = 'PgSleep'"
    return bool(await db.fetchval(query))


async def test_a_key_is_fresh_unless_an_event_of_its_own_waits(db: asyncpg.Connection) -> None:
    await enqueue(db, "t", "other")
    assert await db.fetchval(FRESH)
    await enqueue(db, "t", "k")
    assert not await db.fetchval(FRESH)
    await drain(db)
    assert await db.fetchval(FRESH)


async def test_a_key_whose_failure_is_owed_is_not_fresh_though_no_event_waits(db: asyncpg.Connection) -> None:
    await db.execute(FAIL)
    assert not await db.fetchval(FRESH)
    await db.execute("update outbox.failure set state = 'dead'")
    assert not await db.fetchval(FRESH)


async def test_freshness_is_of_the_readers_own_snapshot(db: asyncpg.Connection, connect: Connect) -> None:
    writer = await connect()
    async with writer.transaction():
        await enqueue(writer, "t", "k")
        assert await db.fetchval(FRESH)
        assert not await writer.fetchval(FRESH)


async def test_the_wait_ends_when_another_session_has_done_the_key(db: asyncpg.Connection, connect: Connect) -> None:
    await enqueue(db, "t", "k")
    reader = await connect("reader")
    waiting = asyncio.create_task(reader.fetchval(WAIT, 30))
    await eventually(lambda: is_waiting(db))
    await drain(db)
    assert await waiting


async def test_what_is_fresh_is_not_waited_for(db: asyncpg.Connection) -> None:
    assert await db.fetchval(WAIT, 0)


async def test_the_wait_gives_up_when_its_time_is_over(db: asyncpg.Connection) -> None:
    await enqueue(db, "t", "k")
    assert not await db.fetchval(WAIT, 0.05)
    await drain(db)
    assert await db.fetchval(WAIT, 0.05)


async def test_a_dead_key_is_not_waited_for(db: asyncpg.Connection) -> None:
    await db.execute(FAIL)
    await db.execute("update outbox.failure set state = 'dead'")
    async with asyncio.timeout(10):
        assert not await db.fetchval(WAIT, 60)


async def test_a_wait_ends_when_the_key_dies_meanwhile(db: asyncpg.Connection, connect: Connect) -> None:
    await db.execute(FAIL)
    reader = await connect("reader")
    waiting = asyncio.create_task(reader.fetchval(WAIT, 60))
    await eventually(lambda: is_waiting(db))
    await db.execute("update outbox.failure set state = 'dead'")
    async with asyncio.timeout(10):
        assert not await waiting


async def test_a_retrying_key_is_waited_for(db: asyncpg.Connection, connect: Connect) -> None:
    await db.execute(FAIL)
    reader = await connect("reader")
    waiting = asyncio.create_task(reader.fetchval(WAIT, 30))
    await eventually(lambda: is_waiting(db))
    await make_due(db)
    await drain(db)
    assert await waiting
    assert await failures(db) == {}


async def test_waiting_for_ones_own_uncommitted_write_is_refused(db: asyncpg.Connection) -> None:
    with refused("RC007", "Commit it"):
        async with db.transaction():
            await enqueue(db, "t", "k")
            await db.fetchval(WAIT, 30)


@pytest.mark.parametrize("between", ["savepoint a", "savepoint a; savepoint b; release savepoint b"])
@pytest.mark.parametrize("after", ["select 1", "release savepoint a"])
async def test_waiting_for_a_write_under_a_savepoint_of_ones_own_is_refused(
    db: asyncpg.Connection, between: str, after: str
) -> None:
    with refused("RC007", "Commit it"):
        async with db.transaction():
            await db.execute("create temporary table other ()")
            await db.execute(between)
            await enqueue(db, "t", "k")
            await db.execute(after)
            await db.fetchval(WAIT, 30)


async def test_a_transaction_that_wrote_something_else_may_wait(db: asyncpg.Connection, connect: Connect) -> None:
    other = await connect()
    async with db.transaction():
        await db.execute("create temporary table other (); savepoint a; create temporary table another ()")
        await enqueue(other, "t", "k")  # its id is younger than ours
        assert not await db.fetchval(WAIT, 0.01)


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_waiting_with_a_snapshot_that_never_changes_is_refused(db: asyncpg.Connection, isolation: str) -> None:
    with refused("RC001", "read committed"):
        async with db.transaction(isolation=isolation):  # type: ignore[arg-type]  # a literal, parametrised
            await db.fetchval(WAIT, 30)


async def test_readers_need_no_privilege_on_the_tables(db: asyncpg.Connection) -> None:
    role = await db.fetchval("select current_database() || '_reader'")
    await db.execute(f"create role {role} in role recalcd_reader")
    try:
        await db.execute(f"set role {role}")
        assert await db.fetchval(FRESH)
        assert await db.fetchval(WAIT, 1)
    finally:
        await db.execute(f"reset role; drop owned by {role}; drop role {role}")
