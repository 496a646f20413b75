"""Who keeps a lock keeps the key waiting that it is about, and no other: not its batch, its topic, nor the daemon."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from engine import GATE, done, enqueue, impatient, make_due, make_ledger, make_topic, on_duty, vanish
from links import WORKER
from servers import Connect
from waiting import eventually, wait_until_blocked

from daemon.settings import Settings

T = "t"
WAITS = f"if 'slow' = any (p_keys) then perform pg_advisory_xact_lock_shared({GATE}); end if;"


@pytest.fixture(autouse=True)
async def topics(db: asyncpg.Connection) -> None:
    """Make a topic whose key `slow` waits at the gate."""
    await make_ledger(db)
    await make_topic(db, T, WAITS, statement_timeout_s=300)


@asynccontextmanager
async def gate_shut(gatekeeper: asyncpg.Connection) -> AsyncIterator[None]:
    await gatekeeper.execute(f"select pg_advisory_lock({GATE})")
    try:
        yield
    finally:
        await gatekeeper.execute(f"select pg_advisory_unlock({GATE})")


async def until_done(db: asyncpg.Connection, topic: str, *keys: str) -> None:
    async def are_done() -> bool:
        return set(keys) <= set(await done(db, topic))

    await eventually(are_done)


@pytest.mark.parametrize("is_due", [True, False])
async def test_a_failure_that_somebody_locks(
    db: asyncpg.Connection, settings: Settings, connect: Connect, is_due: bool
) -> None:
    await db.execute("select outbox.fail_key('t', 'k', true, 0, '22012', 'x', null, null, null)")
    if is_due:
        await make_due(db)
    operator = await connect()
    async with on_duty(impatient(settings, workers=1)):
        async with operator.transaction():
            await operator.execute("update outbox.failure set message = 'looking into it'")
            await enqueue(db, T, "k", "a", "b")
            await until_done(db, T, "a", "b")
            assert "k" not in await done(db, T)
        await make_due(db)
        await db.execute("select outbox.ring()")
        await until_done(db, T, "k")


async def test_a_failure_of_a_suspect_that_is_to_be_convicted(
    db: asyncpg.Connection, settings: Settings, connect: Connect
) -> None:
    await db.execute("select outbox.fail_key('t', 'k', true, 0, '22012', 'x', null, null, null)")
    await db.execute("select outbox.suspect_keys('t', '{k}'), outbox.suspect_keys('t', '{k}')")
    operator = await connect()
    async with on_duty(impatient(settings, workers=1)), operator.transaction():
        await operator.execute("update outbox.failure set message = 'looking into it'")
        await enqueue(db, T, "k", "a", "b")
        await until_done(db, T, "a", "b")


async def test_due_failures_that_are_busy(db: asyncpg.Connection, settings: Settings, connect: Connect) -> None:
    for key in ("busy", "k"):
        await db.execute("select outbox.fail_key('t', $1, true, 0, '22012', 'x', null, null, null)", key)
    await db.execute("update outbox.failure set next_attempt_at = now() - '1 s'::interval * (2 - (key = 'k')::integer)")
    await db.execute("select outbox.set_topic('t', p_batch_keys => 1)")  # one is all that a look sees
    other = await connect()
    async with other.transaction():
        await other.execute("select outbox.lock_keys('t', '{busy}')")
        async with on_duty(impatient(settings, workers=1)):
            await until_done(db, T, "k")


async def test_due_failures_that_a_claim_has_only_seen(
    db: asyncpg.Connection, settings: Settings, connect: Connect
) -> None:
    await db.execute("select outbox.fail_key('t', 'k', true, 0, '22012', 'x', null, null, null)")
    await make_due(db)
    await enqueue(db, T, "a")
    other = await connect()
    async with other.transaction(isolation="read_committed"):
        assert await other.fetchval("select c.keys from outbox.claim() as c") == ["a"]
        await enqueue(db, T, "k", "b")
        async with on_duty(impatient(settings, workers=1)):
            await until_done(db, T, "k", "b")


async def test_an_event_that_was_passed_over_for_its_key_was_busy(
    db: asyncpg.Connection, settings: Settings, connect: Connect
) -> None:
    """It is not kept from others by the batch that the claim came to."""
    gatekeeper, other = await connect(), await connect()
    async with on_duty(impatient(settings, workers=2)), gate_shut(gatekeeper):
        async with other.transaction():
            await other.execute("select outbox.lock_keys('t', '{k}')")
            await enqueue(db, T, "k", "slow")
            await wait_until_blocked(db, WORKER)
        await until_done(db, T, "k")


async def test_a_busy_key_with_more_events_than_a_look_at_the_head_sees(
    db: asyncpg.Connection, settings: Settings, connect: Connect
) -> None:
    other = await connect()
    async with on_duty(impatient(settings, workers=1)), other.transaction():
        await other.execute("select outbox.lock_keys('t', '{busy}')")
        await enqueue(db, T, *["busy"] * 1100)
        await enqueue(db, T, "a", "b")
        await until_done(db, T, "a", "b")


@pytest.mark.parametrize("is_suspect", [True, False])
async def test_new_events_of_a_suspect_that_is_being_tried(
    db: asyncpg.Connection, settings: Settings, connect: Connect, is_suspect: bool
) -> None:
    if is_suspect:
        await db.execute("select outbox.suspect_keys('t', '{slow}')")
    else:  # a cautious daemon notes whomever it calls
        await vanish(db)
    async with on_duty(impatient(settings, workers=2)), gate_shut(await connect()):
        await enqueue(db, T, "slow")
        await wait_until_blocked(db, WORKER)
        await enqueue(db, T, "slow", "a", "b")
        await until_done(db, T, "a", "b")


async def test_a_claim_that_somebody_cancels(db: asyncpg.Connection, settings: Settings, connect: Connect) -> None:
    await vanish(db)  # step by step, so that the claim is a statement of its own
    other = await connect()
    async with on_duty(impatient(settings, workers=1)):
        async with other.transaction():
            await other.execute("lock table outbox.event in access exclusive mode")
            await other.execute("insert into outbox.event (topic, key) values ('t', 'k'); select outbox.ring()")
            await wait_until_blocked(db, WORKER)
            await db.execute(
                "select pg_cancel_backend(a.pid) from pg_stat_activity as a "
                "where a.datname = current_database() and a.application_name = $1 and a.wait_event_type = 'Lock'",
                WORKER,
            )
        await until_done(db, T, "k")
