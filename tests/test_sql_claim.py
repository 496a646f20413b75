"""outbox.claim and outbox.claim_keys: what a batch takes, what it leaves, and that nobody holds it up."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import asyncpg
import pytest
from engine import enqueue, failures, make_due, make_ledger, make_topic, numbered, pending, refused
from servers import Connect

from daemon.claim import Claim, claim, claim_keys

T, OTHER = "t", "u"
Holding = Callable[..., AbstractAsyncContextManager[Claim]]


@pytest.fixture(autouse=True)
async def topics(db: asyncpg.Connection) -> None:
    await make_ledger(db)
    await make_topic(db, T)


@pytest.fixture
def holding(connect: Connect) -> Holding:
    """Hold a claim of named keys in a transaction of somebody else's, uncommitted, while the block runs."""

    @asynccontextmanager
    async def holding(*keys: str) -> AsyncIterator[Claim]:
        other = await connect("holder")
        async with other.transaction():
            yield await claim_keys(other, T, sorted(keys))

    return holding


async def take(
    db: asyncpg.Connection, *, after: str = "", retries_first: bool = False, topic: str = T, **hints: object
) -> Claim | None:
    """Claim and commit; the events are gone, as if recalculated."""
    async with asyncio.timeout(5), db.transaction():
        return await claim(db, {topic: hints}, after=after, retries_first=retries_first)


async def fail(db: asyncpg.Connection, *keys: str, times: int = 1) -> None:
    """Let keys fail, so that they are in backoff."""
    for key in keys * times:
        await db.execute("select outbox.fail_key('t', $1, true, 1, 'P0001', 'no', null, null, null)", key)


def keys_of(taken: Claim | None) -> list[str]:
    assert taken is not None
    return taken.keys


async def test_nothing_is_taken_from_an_empty_outbox(db: asyncpg.Connection) -> None:
    assert await take(db) is None


async def test_all_events_of_a_key_are_taken_at_once_those_behind_the_head_included(db: asyncpg.Connection) -> None:
    await enqueue(db, T, "b", "a", "b", "c", *["a"] * 100)
    taken = await take(db, keys=2)  # looks at two events: b and a
    assert taken is not None
    assert (taken.topic, taken.keys, taken.event_count) == (T, ["a", "b"], 103)
    assert await pending(db) == ["c"]


async def test_the_claim_says_what_it_took(db: asyncpg.Connection) -> None:
    first = await db.fetchval("select clock_timestamp()")
    for reason in ["often"] * 3 + ["once", None] + [f"rare {n}" for n in range(20)]:
        await db.execute("select outbox.enqueue('t', 'a', $1)", reason)
    ((last, oldest),) = await db.fetch("select max(event_id), min(enqueued_at) from outbox.event")
    taken = await take(db)
    assert taken is not None
    assert (taken.event_count, taken.oldest_event_at, taken.head_event_id) == (25, oldest, last)
    assert taken.started_at > first
    assert taken.reasons[0] == "often"
    assert len(taken.reasons) == 10
    assert (taken.folded_count, taken.is_full, taken.suspects) == (0, False, False)


async def test_the_head_is_full_when_as_many_events_were_seen_as_keys_are_allowed(db: asyncpg.Connection) -> None:
    await enqueue(db, T, "a", "a", "b")
    full = await take(db, keys=2)
    assert full is not None
    assert (full.keys, full.is_full) == (["a"], True)


async def test_a_batch_is_no_larger_than_the_topic_allows(db: asyncpg.Connection) -> None:
    await db.execute("select outbox.set_topic('t', p_batch_keys => 3)")
    await enqueue(db, T, *numbered(5))
    assert keys_of(await take(db, keys=1000)) == numbered(3)


async def test_a_claim_skips_keys_that_another_daemon_holds_and_does_not_wait(
    db: asyncpg.Connection, holding: Holding
) -> None:
    await enqueue(db, T, "7", "8", "9")
    async with holding("7", "8"):
        assert keys_of(await take(db)) == ["9"]


async def test_new_events_of_a_held_key_wait_for_its_holder(db: asyncpg.Connection, holding: Holding) -> None:
    await enqueue(db, T, "7")
    async with holding("7"):
        await enqueue(db, T, "7")
        assert await take(db) is None
    assert keys_of(await take(db)) == ["7"]


async def test_what_is_taken_comes_back_when_the_transaction_rolls_back(
    db: asyncpg.Connection, connect: Connect
) -> None:
    await enqueue(db, T, "7", "7")
    other = await connect()
    transaction = other.transaction()
    await transaction.start()
    assert keys_of(await claim(other, {}, after="", retries_first=False)) == ["7"]
    assert await take(db) is None
    await transaction.rollback()
    taken = await take(db)
    assert taken is not None
    assert taken.event_count == 2


async def test_events_whose_ids_commit_out_of_order_are_all_taken(db: asyncpg.Connection, connect: Connect) -> None:
    late = await connect()
    async with late.transaction():
        await enqueue(late, T, "a", "late")
        await enqueue(db, T, "a", "b")
        assert keys_of(await take(db)) == ["a", "b"]
    taken = await take(db)
    assert taken is not None
    assert (taken.keys, taken.event_count) == (["a", "late"], 2)


async def test_below_the_mark_nothing_is_taken_until_the_sweep(db: asyncpg.Connection) -> None:
    await enqueue(db, T, "a", "b", "a")
    third = await db.fetchval("select max(event_id) from outbox.event")
    taken = await take(db, above=third - 1)
    assert taken is not None
    assert (taken.keys, taken.event_count) == (["a"], 1)
    assert await take(db, above=third) is None
    assert keys_of(await take(db, above=0)) == ["a", "b"]


async def test_an_event_that_stays_behind_keeps_the_mark_below_itself(db: asyncpg.Connection, connect: Connect) -> None:
    await enqueue(db, T, "a", "busy", "b")
    first = await db.fetchval("select min(event_id) from outbox.event")
    other = await connect()
    async with other.transaction():
        await other.execute("select outbox.lock_keys('t', array['busy'])")  # a direct call of the procedure, say
        taken = await take(db)
    assert taken is not None
    assert taken.keys == ["a", "b"]
    assert taken.head_event_id == first
    assert keys_of(await take(db, above=taken.head_event_id)) == ["busy"]


async def test_the_turn_goes_round(db: asyncpg.Connection) -> None:
    await make_topic(db, OTHER)
    for topic in (OTHER, T):
        await enqueue(db, topic, *numbered(4))
    served = []
    after = ""
    while taken := await take_any(db, after):
        served.append(after := taken.topic)
    assert served == [T, OTHER, T, OTHER, T, OTHER, T, OTHER]


async def take_any(db: asyncpg.Connection, after: str) -> Claim | None:
    hints: dict[str, dict[str, object]] = {topic: {"keys": 1} for topic in (T, OTHER)}
    async with db.transaction():
        return await claim(db, hints, after=after, retries_first=False)


async def test_a_topic_that_is_paused_or_skipped_is_left_alone(db: asyncpg.Connection) -> None:
    await enqueue(db, T, "7")
    assert await take(db, skip=True) is None
    await db.execute("update outbox.topic set paused_at = now() where topic = 't'")
    assert await take(db) is None
    await db.execute("update outbox.topic set paused_at = null where topic = 't'")
    assert keys_of(await take(db)) == ["7"]


async def test_hints_for_unknown_topics_are_harmless(db: asyncpg.Connection) -> None:
    await enqueue(db, T, "7")
    assert keys_of(await take(db, topic="gone", above=99, keys=1, skip=True)) == ["7"]


async def test_a_key_in_backoff_does_not_clog_the_head(db: asyncpg.Connection) -> None:
    await fail(db, "bad")
    await db.execute("select outbox.set_topic('t', p_batch_keys => 3)")
    await enqueue(db, T, "bad", "bad", "bad", "bad", "good")
    folding = await take(db)
    assert folding is not None
    assert (folding.keys, folding.folded_count) == ([], 4)
    assert keys_of(await take(db)) == ["good"]
    assert (await failures(db))["bad"]["event_count"] == 5
    assert await pending(db) == []


async def test_a_failure_that_falls_due_is_claimed_without_any_event(db: asyncpg.Connection) -> None:
    await fail(db, "bad")
    assert await take(db) is None
    await make_due(db)
    taken = await take(db)
    assert taken is not None
    assert (taken.keys, taken.event_count) == (["bad"], 0)


async def test_retries_and_new_events_take_turns_and_never_share_a_batch(db: asyncpg.Connection) -> None:
    await fail(db, "bad")
    await make_due(db)
    await enqueue(db, T, "good")
    async with db.transaction():
        assert keys_of(await claim(db, {}, after="", retries_first=True)) == ["bad"]
    async with db.transaction():
        assert keys_of(await claim(db, {}, after="", retries_first=False)) == ["good"]


async def test_a_new_event_of_a_due_key_is_taken_with_it(db: asyncpg.Connection) -> None:
    await fail(db, "bad")
    await make_due(db)
    await enqueue(db, T, "bad")
    taken = await take(db, retries_first=True)
    assert taken is not None
    assert (taken.keys, taken.event_count) == (["bad"], 1)


async def test_a_retry_leaves_the_mark_below_the_events_it_passed_over(db: asyncpg.Connection) -> None:
    await fail(db, "bad")
    await make_due(db)
    await enqueue(db, T, "good")
    taken = await take(db, retries_first=True)
    assert taken is not None
    assert taken.keys == ["bad"]
    assert taken.head_event_id is not None
    assert keys_of(await take(db, above=taken.head_event_id)) == ["good"]


async def test_a_dead_key_is_not_due(db: asyncpg.Connection) -> None:
    await fail(db, "bad", times=8)
    await make_due(db)
    assert (await failures(db))["bad"]["state"] == "dead"
    assert await take(db) is None


async def test_named_keys_are_taken_with_their_events_whoever_is_first_in_the_queue(db: asyncpg.Connection) -> None:
    await enqueue(db, T, *numbered(5))
    async with db.transaction():
        taken = await claim_keys(db, T, ["k004", "k002", "without events"])
    assert (taken.keys, taken.event_count) == (["k002", "k004", "without events"], 2)
    assert await pending(db) == ["k000", "k001", "k003"]


async def test_an_event_row_that_somebody_locks_is_left_and_does_not_block(
    db: asyncpg.Connection, connect: Connect
) -> None:
    await enqueue(db, T, "7", "7")
    other = await connect()
    async with other.transaction():
        await other.fetch("select from outbox.event order by event_id limit 1 for update")
        taken = await take(db)
        assert taken is not None
        assert (taken.keys, taken.event_count) == (["7"], 1)
    assert await pending(db) == ["7"]


async def test_in_a_backlog_too_an_event_row_that_somebody_locks_is_left_and_does_not_block_for_long(
    db: asyncpg.Connection, connect: Connect
) -> None:
    await enqueue(db, T, "7", "7", "8", "9")
    other = await connect()
    async with other.transaction():
        await other.fetch("select from outbox.event order by event_id limit 1 for update")
        taken = await take(db, keys=2)
        assert taken is not None
        assert (taken.keys, taken.event_count, taken.is_full) == (["7", "8"], 2, True)
        assert await pending(db) == ["7", "9"]
    assert keys_of(await take(db)) == ["7", "9"]


async def test_nobody_has_to_wait_for_a_look_at_a_busy_keys_events(db: asyncpg.Connection, connect: Connect) -> None:
    await enqueue(db, T, "busy", "a")
    other = await connect()
    async with other.transaction(), db.transaction():
        await other.execute("select outbox.lock_keys('t', array['busy'])")
        assert keys_of(await claim(db, {}, after="", retries_first=False)) == ["a"]
        await other.fetch("select from outbox.event where key = 'busy' for update nowait")


@pytest.mark.parametrize("hints", [{}, {"keys": 1}])
async def test_a_claim_keeps_the_limits_of_its_topic_for_its_transaction_only(
    db: asyncpg.Connection, hints: dict[str, object]
) -> None:
    await db.execute("select outbox.set_topic('t', p_statement_timeout_s => 7)")
    await enqueue(db, T, "7")
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "jit")
    before = [await db.fetchval(f"show {name}") for name in names]
    async with db.transaction():
        assert await claim(db, {T: hints}, after="", retries_first=False)
        assert [await db.fetchval(f"show {name}") for name in names] == ["7s", "3500ms", "30s", "off"]
    assert [await db.fetchval(f"show {name}") for name in names] == before


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_a_claim_refuses_a_snapshot_that_may_be_older_than_its_locks(
    db: asyncpg.Connection, isolation: str
) -> None:
    await enqueue(db, T, "7")
    with refused("RC001", "isolation level read committed"):
        async with db.transaction(isolation=isolation):  # type: ignore[arg-type]  # a literal, parametrised
            await claim(db, {}, after="", retries_first=False)
    assert await pending(db) == ["7"]


async def test_a_backlog_is_never_read_by_a_sequential_scan(db: asyncpg.Connection) -> None:
    """Claim from a table that the planner believes to be tiny, as autovacuum may have told it."""
    await db.execute("analyze outbox.event")
    await db.execute("insert into outbox.event (topic, key) select 't', n::text from generate_series(1, 2000) as n")
    await take(db)
    scans = "select seq_scan from pg_stat_all_tables where relid = 'outbox.event'::regclass"
    await db.execute("select pg_stat_force_next_flush()")
    before = await db.fetchval(scans)
    await take(db)
    await db.execute("select pg_stat_force_next_flush()")
    assert await db.fetchval(scans) == before


async def test_hints_are_json_of_what_the_daemon_remembers(db: asyncpg.Connection) -> None:
    await enqueue(db, T, "7")
    for hints in (
        "{}",
        json.dumps({T: {}}),
        json.dumps({T: {"above": None, "keys": None, "skip": None}}),
    ):
        async with db.transaction():
            row = await db.fetchrow("select * from outbox.claim($1)", hints)
            assert row is not None
            assert row["keys"] == ["7"]
            await db.execute("select outbox.enqueue('t', '7')")


@pytest.mark.parametrize(("limit_s", "session"), [(7, "7s"), (120, "2min"), (86400, "24h")])
async def test_of_a_topic_whose_limit_is_not_the_sessions_nothing_is_taken_but_its_name(
    db: asyncpg.Connection, limit_s: int, session: str
) -> None:
    await make_topic(db, "busy", statement_timeout_s=30)
    await make_topic(db, "t", statement_timeout_s=limit_s)
    await enqueue(db, "t", "a")
    hints = json.dumps({"": {"limited": True}})
    for setting, keys in (("0", None), ("30s", None), ("500ms", None), (session, ["a"])):
        await db.execute(f"set statement_timeout = '{setting}'")
        async with db.transaction():
            (row,) = await db.fetch("select c.topic, c.keys, c.event_count from outbox.claim($1) as c", hints)
            assert tuple(row) == ("t", keys, keys and 1)
            assert await pending(db, "t") == ([] if keys else ["a"])


async def test_the_limit_of_a_topic_whose_keys_are_busy_is_not_taken_for_the_sessions(
    db: asyncpg.Connection, connect: Connect
) -> None:
    await make_topic(db, "a", statement_timeout_s=7)
    await make_topic(db, "b", statement_timeout_s=7)
    await enqueue(db, "a", "k")
    holder = await connect("holder")
    async with holder.transaction():
        await claim_keys(holder, "a", ["k"])
        await enqueue(db, "a", "k")
        await enqueue(db, "b", "k")
        await db.execute("select outbox.set_topic('b', p_statement_timeout_s => 30)")
        await db.execute("set statement_timeout = '7s'")
        async with db.transaction():
            hints = json.dumps({"": {"limited": True}})
            (row,) = await db.fetch("select c.topic, c.keys from outbox.claim($1) as c", hints)
            assert tuple(row) == ("b", None)
        await db.execute("set statement_timeout = '30s'")
        async with db.transaction():  # a is to be named, though it has nothing to take; then b
            (row,) = await db.fetch("select c.topic, c.keys from outbox.claim($1, 'a') as c", hints)
            assert tuple(row) == ("b", ["k"])
