"""outbox.lock_keys: what a procedure calls first, so that no two recalculations of a key overlap."""

import asyncio

import asyncpg
import pytest
from engine import make_ledger, refused
from servers import Connect
from waiting import wait_until_blocked

from daemon.claim import claim_keys

LOCK = "select outbox.lock_keys($1, $2)"
HELD = """
    select count(*) from pg_locks as l join pg_database as d on d.oid = l.database
    where d.datname = current_database() and l.locktype = 'advisory' and l.objsubid = 1 and l.granted
      and (l.classid::bigint << 32 | l.objid::bigint) = any ($1::bigint[])
"""


async def in_lock_order(db: asyncpg.Connection, keys: list[str]) -> list[str]:
    rows = await db.fetch("select k from unnest($1::text[]) as k order by outbox.key_lock_id('t', k)", keys)
    return [row["k"] for row in rows]


async def held_by(db: asyncpg.Connection, keys: list[str]) -> int:
    """Count the locks of these keys that anybody holds."""
    ids = await db.fetchval("select array_agg(outbox.key_lock_id('t', k)) from unnest($1::text[]) as k", keys)
    return int(await db.fetchval(HELD, ids))


async def test_keys_are_locked_one_by_one_in_the_order_of_their_ids(db: asyncpg.Connection, connect: Connect) -> None:
    keys = await in_lock_order(db, ["a", "b", "c", "d", "e", "f"])
    holder, locker = await connect(), await connect("locker")
    async with holder.transaction():
        await holder.execute(LOCK, "t", keys[3:4])
        async with locker.transaction():
            # The wrong way round: without the order by, the last ones would be taken before the wait.
            locking = asyncio.create_task(locker.execute(LOCK, "t", keys[::-1]))
            await wait_until_blocked(db, "locker")
            assert await held_by(db, keys[:3]) == 3
            assert await held_by(db, keys[4:]) == 0
            await holder.execute("rollback")
            await locking
            assert await held_by(db, keys) == 6
            await holder.execute("begin")


async def test_opposite_orders_do_not_deadlock(db: asyncpg.Connection, connect: Connect) -> None:
    keys = await in_lock_order(db, ["a", "b"])
    gate, first, second = await connect(), await connect("first"), await connect("second")
    async with gate.transaction():
        await gate.execute(LOCK, "t", keys[:1])
        waiting = [
            asyncio.create_task(lock_and_commit(first, keys)),
            asyncio.create_task(lock_and_commit(second, keys[::-1])),
        ]
        await wait_until_blocked(db, "first")
        await wait_until_blocked(db, "second")
    async with asyncio.timeout(10):
        await asyncio.gather(*waiting)


async def lock_and_commit(connection: asyncpg.Connection, keys: list[str]) -> None:
    async with connection.transaction():
        await connection.execute(LOCK, "t", keys)


async def test_the_locks_end_with_the_transaction(db: asyncpg.Connection) -> None:
    async with db.transaction():
        await db.execute(LOCK, "t", ["a", "b"])
        assert await held_by(db, ["a", "b"]) == 2
    assert await held_by(db, ["a", "b"]) == 0


async def test_locking_again_what_the_claim_locked_does_not_wait(db: asyncpg.Connection) -> None:
    await make_ledger(db)
    async with asyncio.timeout(5), db.transaction():
        await claim_keys(db, "t", ["a", "b"])
        await db.execute(LOCK, "t", ["b", "a", "b"])


async def test_the_same_key_of_another_topic_has_another_lock(db: asyncpg.Connection, connect: Connect) -> None:
    other = await connect()
    async with asyncio.timeout(5), db.transaction(), other.transaction():
        await db.execute(LOCK, "t", ["a"])
        await other.execute(LOCK, "u", ["a"])


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_a_snapshot_that_may_be_older_than_the_locks_is_refused(db: asyncpg.Connection, isolation: str) -> None:
    with refused("RC001", "isolation level read committed"):
        async with db.transaction(isolation=isolation):  # type: ignore[arg-type]  # a literal, parametrised
            await db.execute(LOCK, "t", ["a"])


async def test_no_keys_are_locked_at_once_and_a_null_is_refused(db: asyncpg.Connection) -> None:
    await db.execute(LOCK, "t", [])
    for topic, keys in ((None, ["a"]), ("t", None), ("t", ["a", None])):
        with refused("RC003", "without nulls"):
            await db.execute("select outbox.lock_keys($1::text, $2::text[])", topic, keys)
