"""A batch in one statement is, but for its round trips, the batch that is sent step by step."""

import asyncio
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import asyncpg
import pytest
from engine import (
    GATE,
    LEDGER,
    LIVE,
    asleep,
    done,
    enqueue,
    events_of,
    failures,
    impatient,
    make_ledger,
    make_topic,
    next_batch,
    on_duty,
    pending,
    record,
    run_at_once,
    until_empty,
    vanish,
)
from servers import Connect
from waiting import eventually

from daemon import telemetry
from daemon.batch import MAKE_PARTITIONS, NO_PARTITION, CallFailed, Recalculation
from daemon.one_statement import OneStatement
from daemon.settings import Settings

KEPT = Recalculation(None, "live", keep_history=True)


@pytest.fixture(autouse=True)
async def ledger(db: asyncpg.Connection) -> None:
    await make_ledger(db)


async def test_it_returns_what_the_steps_return(db: asyncpg.Connection) -> None:
    found = []
    for run in (next_batch, run_at_once):
        await record(db, "a", 1)
        await record(db, "a", 2)
        await record(db, "b", 3)
        batch = await run(db)
        assert batch is not None
        assert batch.recalculate_ms > 0
        assert batch.claim.started_at > (batch.claim.oldest_event_at or batch.claim.started_at)
        facts = asdict(batch.claim) | {"changed_keys": batch.changed_keys}
        for moment in ("started_at", "oldest_event_at", "asked_at", "head_event_id"):
            del facts[moment]
        found.append(facts)
        assert await pending(db) == []
    assert found[0] == found[1]
    assert found[0]["event_count"] == 3
    assert found[0]["changed_keys"] == ["a", "b"]


async def test_nothing_to_do_is_one_statement(db: asyncpg.Connection) -> None:
    assert await run_at_once(db) is None


async def test_events_of_a_key_in_backoff_are_folded_without_a_call(db: asyncpg.Connection) -> None:
    query = "insert into outbox.failure (topic, key, next_attempt_at) values ($1, 'a', now() + interval '1 hour')"
    await db.execute(query, LEDGER)
    await record(db, "a")
    batch = await run_at_once(db)
    assert batch is not None
    assert (batch.claim.keys, batch.claim.folded_count, batch.changed_keys) == ([], 1, [])


async def test_a_failed_call_tells_whose_it_was_and_leaves_everything_as_it_was(db: asyncpg.Connection) -> None:
    await make_topic(db, "t", "raise exception 'no';")
    await enqueue(db, "t", "a", "a", "b")
    with pytest.raises(CallFailed) as raised:
        await run_at_once(db)
    claim = raised.value.claim
    assert (claim.topic, claim.keys, claim.event_count) == ("t", ["a", "b"], 3)
    assert claim.oldest_event_at is not None
    assert claim.oldest_event_at < claim.started_at
    assert (raised.value.sqlstate, raised.value.vanished) == ("P0001", False)
    assert await pending(db) == ["a", "a", "b"]
    assert await db.fetchval("show statement_timeout") == "0", "what follows is step by step"


async def test_a_call_that_ends_the_session_tells_whose_it_was(connect: Connect, db: asyncpg.Connection) -> None:
    await make_topic(db, "t", "perform pg_terminate_backend(pg_backend_pid());")
    await enqueue(db, "t", "a")
    with pytest.raises(CallFailed) as raised:
        await run_at_once(await connect("worker"))
    assert (raised.value.claim.keys, raised.value.vanished) == (["a"], True)


async def test_a_history_without_a_partition_is_no_keys_fault_but_a_check_of_the_routine_is(
    db: asyncpg.Connection,
) -> None:
    """Both have the same SQLSTATE."""
    await record(db, "a")
    with pytest.raises(asyncpg.CheckViolationError) as raised:
        await run_at_once(db, KEPT)
    assert raised.value.sqlstate == NO_PARTITION
    await make_topic(db, "t", "raise check_violation;")
    await db.fetch(MAKE_PARTITIONS, 1)
    assert await run_at_once(db, KEPT)
    await enqueue(db, "t", "a")
    with pytest.raises(CallFailed):
        await run_at_once(db, KEPT)


async def test_what_a_routine_did_to_the_session_is_undone_even_when_it_fails(db: asyncpg.Connection) -> None:
    leaks = "perform pg_advisory_lock(7), set_config('search_path', 'pg_catalog', false);"
    for trouble in (leaks, f"{leaks} raise exception 'no';"):
        await make_topic(db, "t", trouble)
        await enqueue(db, "t", "a")
        with suppress(CallFailed):
            await run_at_once(db)
        assert await db.fetchval("show search_path") != "pg_catalog"
        assert await db.fetchval("select count(*) from pg_locks where locktype = 'advisory' and objid = 7") == 0


class Untidy:
    """A connection that breaks when its session is to be tidied."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def execute(self, query: str) -> None:
        if query.startswith("reset"):
            self._connection.terminate()
        await self._connection.execute(query)


async def test_a_session_that_can_not_be_tidied_is_closed_and_its_batch_counts(
    connect: Connect, db: asyncpg.Connection
) -> None:
    await record(db, "a")
    untidy: Any = Untidy(await connect("worker"))
    assert await run_at_once(untidy)
    assert untidy.is_closed()
    assert await pending(db) == []


async def test_each_topic_has_its_own_limit(db: asyncpg.Connection) -> None:
    sees = "if current_setting('statement_timeout') <> '{}' then raise 'another'; end if;"
    await make_topic(db, "a", sees.format("7s"), statement_timeout_s=7)
    await make_topic(db, "b", sees.format("2min"), statement_timeout_s=120)
    at_once = OneStatement(LIVE, db)
    for topic in ("a", "b", "b", "a"):
        await enqueue(db, topic, "k")
        assert await at_once.next_batch({}, after="", retries_first=False)
        assert await db.fetchval("show statement_timeout") == {"a": "7s", "b": "2min"}[topic]


async def test_a_limit_that_a_batch_in_steps_took_from_the_session_is_set_again(db: asyncpg.Connection) -> None:
    at_once = OneStatement(LIVE, db)
    await record(db, "a")
    assert await at_once.next_batch({}, after="", retries_first=False)
    await record(db, "a")
    assert await next_batch(db)
    assert await db.fetchval("show statement_timeout") == "0"
    await record(db, "a")
    assert await at_once.next_batch({}, after="", retries_first=False)
    assert await db.fetchval("show statement_timeout") == "30s"


async def test_topics_of_different_limits_take_turns_past_one_whose_keys_are_busy(
    db: asyncpg.Connection, connect: Connect
) -> None:
    limits = {"a": 7, "b": 30, "c": 7, "d": 120}
    for topic, limit_s in limits.items():
        await make_topic(db, topic, statement_timeout_s=limit_s)
        await enqueue(db, topic, "k", "l")
    at_once, holder, after, turns = OneStatement(LIVE, db), await connect("holder"), "", []
    async with holder.transaction():
        for topic in ("a", "d"):
            await holder.execute("select outbox.lock_keys($1, '{k,l}')", topic)
        while batch := await at_once.next_batch({"": {"keys": 1}}, after=after, retries_first=False):
            after = batch.claim.topic
            turns.append(after)
        assert turns == ["b", "c", "b", "c"]
        for topic in limits:
            assert bool(await pending(db, topic)) == (topic in "ad")
    assert await at_once.next_batch({}, after=after, retries_first=False)


async def test_a_call_is_cut_at_the_limit_of_its_topic(db: asyncpg.Connection) -> None:
    await make_topic(db, "t", "perform pg_sleep(60);", statement_timeout_s=1)
    await enqueue(db, "t", "k")
    with pytest.raises(CallFailed) as raised:
        await run_at_once(db)
    assert (raised.value.claim.keys, raised.value.sqlstate) == (["k"], "57014")


async def test_a_claim_that_takes_too_long_is_charged_to_nobody_and_made_without_a_limit(
    db: asyncpg.Connection, connect: Connect
) -> None:
    await record(db, "a")
    worker, blocker = await connect("worker"), await connect("blocker")
    async with blocker.transaction():
        await blocker.execute("lock table outbox.topic in access exclusive mode")
        task = asyncio.create_task(run_at_once(worker))
        await until_blocked_in(db, "outbox.run_batch(")
        await db.execute("select pg_cancel_backend($1)", worker.get_server_pid())  # as when the time is up
        await until_blocked_in(db, "outbox.claim(")
    batch = await task
    assert batch is not None
    assert batch.claim.keys == ["a"]


async def test_the_steps_of_a_claim_have_no_limit_whatever_the_session_has(
    db: asyncpg.Connection, connect: Connect
) -> None:
    await record(db, "a")
    worker, blocker = await connect("worker"), await connect("blocker")
    await worker.execute("set statement_timeout = 500")  # milliseconds
    async with blocker.transaction():
        await blocker.execute("lock table outbox.topic in access exclusive mode")
        task = asyncio.create_task(next_batch(worker))
        await until_blocked_in(db, "outbox.claim(", for_s=0.6)
    assert await task


async def test_a_call_that_was_cut_before_its_time_is_made_again(db: asyncpg.Connection, connect: Connect) -> None:
    """Its claim had to wait, and used up the rest; or an administrator canceled it."""
    await make_topic(db, "t", f"if v_call = 1 then perform pg_advisory_xact_lock_shared({GATE}); end if;")
    await enqueue(db, "t", "a")
    worker, blocker = await connect("worker"), await connect("blocker")
    async with blocker.transaction():
        await blocker.execute(f"select pg_advisory_xact_lock({GATE})")
        task = asyncio.create_task(run_at_once(worker))
        await until_blocked_in(db, "outbox.run_batch(")
        await db.execute("select pg_cancel_backend($1)", worker.get_server_pid())
        assert await task
    assert await done(db, "t") == ["a"]


async def until_blocked_in(db: asyncpg.Connection, routine: str, *, for_s: float = 0) -> None:
    """Wait until the worker's statement, which is of that routine and has run for so long, waits for a lock."""

    async def is_blocked() -> bool:
        query = (
            "select query from pg_stat_activity where application_name = 'worker' and wait_event_type = 'Lock'"
            " and clock_timestamp() - query_start >= make_interval(secs => $1)"
        )
        return routine in (await db.fetchval(query, for_s) or "")

    await eventually(is_blocked)


async def test_a_daemon_whose_role_begins_otherwise_still_reads_committed(
    db: asyncpg.Connection, settings: Settings, logged: list[Any]
) -> None:
    await make_topic(db, "t")
    database = await db.fetchval("select quote_ident(current_database())")
    await db.execute(f"alter database {database} set default_transaction_isolation = serializable")
    async with on_duty(impatient(settings, workers=1)):
        await asleep(db)
        await enqueue(db, "t", "k")
        await until_empty(db)
    assert await done(db, "t") == ["k"]
    assert await failures(db) == {}
    assert not events_of(logged, telemetry.BATCH_RETRIED, telemetry.BATCH_FAILED)


async def test_a_daemon_that_has_reason_to_goes_step_by_step(db: asyncpg.Connection, settings: Settings) -> None:
    """Whom it is about to call must be written down first, and committed."""
    await make_topic(db, "t", "insert into ledger.seen select key from outbox.suspect;")
    await db.execute("create table ledger.seen (key text)")
    await vanish(db)
    async with on_duty(impatient(settings, workers=1)):
        await enqueue(db, "t", "k")

        async def is_done() -> bool:
            return await done(db, "t") == ["k"]

        await eventually(is_done)
    assert [row["key"] for row in await db.fetch("select key from ledger.seen")] == ["k"]
