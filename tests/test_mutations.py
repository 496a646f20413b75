"""Every piece that protects the promise, by the interleaving that breaks it when the piece is left out.

Each test runs twice: as shipped, when the promise holds, and mutated, when it must be seen to break. What is mutated is
a copy of the shipped routine in the test's database, or an object of the daemon; a piece that is gone fails the test.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from engine import (
    GATE,
    LEDGER,
    LEDGER_LOCK,
    LEDGER_READ,
    LIVE,
    audit,
    drain,
    impatient,
    make_ledger,
    mutate,
    next_batch,
    pending,
    record,
    refused,
)
from servers import Connect
from waiting import eventually, wait_until_blocked

import daemon.batch
import daemon.doorbell
from daemon.batch import Batch, CallFailed, Recalculation
from daemon.claim import Claim, claim, claim_keys
from daemon.database import connection, transaction
from daemon.doorbell import Activity, Alarm, Doorbell
from daemon.hints import TRAIL_S, Hints
from daemon.settings import Settings
from daemon.worker import Shared, Worker

K = "k"
CALL = f"call ledger.recalculate(array['{K}'])"

both_ways = pytest.mark.parametrize("mutated", [False, True], ids=["shipped", "mutated"])


@dataclass
class Stage:
    """Sessions by name; the slow one stops between reading and writing until the gate opens."""

    db: asyncpg.Connection
    slow: asyncpg.Connection
    other: asyncpg.Connection

    @asynccontextmanager
    async def meanwhile(self, slowly: Awaitable[Any]) -> AsyncIterator[None]:
        """Run the block while the slow session stands at the gate, having read; then let it finish and commit."""
        async with self.db.transaction():
            await self.db.execute(f"select pg_advisory_xact_lock({GATE})")
            task = asyncio.ensure_future(slowly)
            await wait_until_blocked(self.db, "slow")
            yield
        await task

    async def is_broken(self) -> bool:
        """Let a daemon do what is left, then see whether what is cached is true."""
        await drain(self.other)
        assert await pending(self.other) == []
        return await audit(self.other) != []


@pytest.fixture
async def stage(connect: Connect) -> Stage:
    stage = Stage(await connect("gatekeeper"), await connect("slow"), await connect("other"))
    await stage.slow.execute("set ledger.gate = on")
    return stage


@both_ways
async def test_the_claims_key_lock_keeps_an_older_result_from_overwriting_a_newer_one(
    stage: Stage, mutated: bool
) -> None:
    """Guards pg_try_advisory_xact_lock in outbox.claim_keys. The procedure does not lock, as nobody can force it to."""
    await make_ledger(stage.db, (LEDGER_LOCK, ""))
    if mutated:
        await mutate(stage.db, "claim_keys", "pg_try_advisory_xact_lock(outbox.key_lock_id(p_topic, k.key))", "true")
    await record(stage.db, K)
    async with stage.meanwhile(LIVE.named_keys(stage.slow, LEDGER, [K])):
        await record(stage.other, K)
        await drain(stage.other)
    assert await stage.is_broken() == mutated


@both_ways
async def test_the_procedures_key_lock_makes_a_direct_call_as_safe(stage: Stage, mutated: bool) -> None:
    """Guards outbox.lock_keys as the first statement of a procedure: here it is called from psql, past the daemon."""
    await make_ledger(stage.db, *([(LEDGER_LOCK, "")] if mutated else []))
    await record(stage.db, K)
    async with stage.meanwhile(stage.slow.execute(CALL)):
        await record(stage.other, K)
        await drain(stage.other)
    assert await stage.is_broken() == mutated


IN_THE_READING_STATEMENT = (
    (LEDGER_LOCK, ""),
    (
        LEDGER_READ,
        LEDGER_READ.replace("group by", "and outbox.lock_keys('ledger.account', p_keys) is not null group by"),
    ),
)
IN_A_STABLE_FUNCTION = (
    (LEDGER_LOCK, ""),
    (
        "create procedure ledger.recalculate(",
        f"""
        create function ledger.entries_of(p_keys text[]) returns setof ledger.entry stable language plpgsql as $$
        begin
            {LEDGER_LOCK}
            return query select * from ledger.entry where account = any (p_keys);
        end $$;
        create procedure ledger.recalculate(""",
    ),
    (LEDGER_READ, "from ledger.entries_of(p_keys) as e group by e.account"),
)


@pytest.mark.parametrize(
    ("changes", "mutated"),
    [((), False), (IN_THE_READING_STATEMENT, True), (IN_A_STABLE_FUNCTION, True)],
    ids=["shipped", "in the reading statement", "in a stable function"],
)
async def test_the_lock_is_a_statement_of_its_own_so_that_the_next_snapshot_is_younger(
    stage: Stage, changes: tuple[tuple[str, str], ...], mutated: bool
) -> None:
    """Guards `perform outbox.lock_keys` as a statement of its own, in a volatile routine."""
    await make_ledger(stage.db, *changes)
    await record(stage.db, K)
    await drain(stage.db)
    await stage.slow.execute("reset ledger.gate")
    async with stage.other.transaction():
        await stage.other.execute("select outbox.lock_keys($1, $2)", LEDGER, [K])
        calling = asyncio.create_task(stage.slow.execute(CALL))
        await wait_until_blocked(stage.db, "slow")
        await record(stage.db, K)
        await claim_keys(stage.other, LEDGER, [K])
        await stage.other.execute(CALL)
    await calling
    assert await stage.is_broken() == mutated


@both_ways
async def test_only_what_was_seen_is_deleted(stage: Stage, mutated: bool) -> None:
    """Guards the delete in outbox.claim_keys, before the recalculation: not by key, once it is done."""
    await make_ledger(stage.db)
    if mutated:
        cleared = "delete from outbox.failure as f where f.topic = p_topic and f.key = any (p_keys);"
        await mutate(stage.db, "settle", cleared, cleared + cleared.replace("failure as f", "event as f"))
    await record(stage.db, K)
    async with stage.meanwhile(LIVE.named_keys(stage.slow, LEDGER, [K])):
        await record(stage.other, K)
    assert await stage.is_broken() == mutated


class RecalculatesFirst(Recalculation):
    """Locks, recalculates, and only then claims: in the wrong order."""

    async def named_keys(self, connection: asyncpg.Connection, topic: str, keys: list[str]) -> Batch:
        async with transaction(connection):
            await connection.execute("select outbox.lock_keys($1, $2)", topic, keys)
            seen = Claim(
                topic, keys, 0, None, await connection.fetchval("select now()"), [], None, 0, None, False, False
            )
            batch = await self.call(connection, seen)
            await claim_keys(connection, topic, keys)
            await self.settle(connection, batch)
        return batch


@both_ways
async def test_the_claim_comes_before_the_recalculation(stage: Stage, mutated: bool) -> None:
    """Guards the order of daemon.batch.Recalculation: claim, call, settle."""
    await make_ledger(stage.db)
    await record(stage.db, K)
    how = RecalculatesFirst(None, "live", keep_history=False) if mutated else LIVE
    async with stage.meanwhile(how.named_keys(stage.slow, LEDGER, [K])):
        await record(stage.other, K)
    assert await stage.is_broken() == mutated


@both_ways
async def test_a_recalculation_at_repeatable_read_is_refused(stage: Stage, mutated: bool) -> None:
    """Guards RC001 of outbox.lock_keys. A clean key writes nothing, so there is no write for Postgres to object to."""
    await make_ledger(stage.db)
    if mutated:
        await mutate(stage.db, "lock_keys", "in ('repeatable read', 'serializable')", "= 'never'")
    await record(stage.db, K, 10)
    await drain(stage.db)
    await record(stage.db, K, 1)
    await stage.slow.execute(
        "reset ledger.gate; begin isolation level repeatable read; select count(*) from outbox.event"
    )
    await stage.db.execute(f"delete from ledger.entry where amount = 1; select outbox.enqueue('{LEDGER}', '{K}')")
    assert [batch.changed_keys for batch in await drain(stage.db)] == [[]]
    if mutated:
        await stage.slow.execute(CALL)
        await stage.slow.execute("commit")
    else:
        with refused("RC001"):
            await stage.slow.execute(CALL)
        await stage.slow.execute("rollback")
    assert await stage.is_broken() == mutated


@both_ways
async def test_a_batch_says_read_committed_aloud(
    db: asyncpg.Connection, connect: Connect, monkeypatch: pytest.MonkeyPatch, mutated: bool
) -> None:
    """Guards `begin isolation level read committed` in daemon.database.transaction: a role's default may differ."""
    await make_ledger(db)
    await db.execute("""
        do $$ begin
            execute format('alter database %I set default_transaction_isolation = serializable', current_database());
        end $$
    """)
    await record(db, K)
    strict = await connect("strict")
    if mutated:
        monkeypatch.setattr(daemon.batch, "transaction", lambda connection, *_: connection.transaction())
        with refused("RC001"):
            await next_batch(strict)
    else:
        assert await next_batch(strict) is not None


@both_ways
async def test_an_event_that_stays_behind_is_never_below_the_mark(
    db: asyncpg.Connection, connect: Connect, mutated: bool
) -> None:
    """Guards head_event_id of outbox.claim, which the mark follows: it stays below the first event of a busy key."""
    await make_ledger(db)
    if mutated:
        await mutate(
            db, "claim", "coalesce(min(h.first) - 1, head_event_id)", "coalesce(min(head_event_id), head_event_id)"
        )
    hints, busy = Hints(1), await connect()
    await record(db, "busy")
    await record(db, "free")
    async with busy.transaction():
        await busy.execute("select outbox.lock_keys($1, $2)", LEDGER, ["busy"])
        batch = await next_batch(db)
        assert batch is not None
        hints.claimed(LEDGER, batch.claim.head_event_id, now=0)
    found = await LIVE.next_batch(db, hints.for_claim(now=TRAIL_S), after="", retries_first=False)
    assert await pending(db) == (["busy"] if mutated else [])
    assert (found is None) == mutated


@both_ways
async def test_what_comes_back_from_a_failed_batch_is_not_below_the_mark(
    db: asyncpg.Connection, connect: Connect, settings: Settings, monkeypatch: pytest.MonkeyPatch, mutated: bool
) -> None:
    """Guards forget_marks in Worker._came_back: other workers went on while the batch was in hand."""
    await make_ledger(db)
    if mutated:
        monkeypatch.setattr(Hints, "forget_marks", lambda _: None)
    shared = Shared(settings, uuid4(), Alarm(), Activity(0), Hints(1), asyncio.Event())
    await record(db, "first")
    slow = await connect()
    await slow.execute("begin")
    failing = await claim(slow, {}, after="", retries_first=False)
    assert failing is not None
    await record(db, "second")
    batch = await next_batch(db)
    assert batch is not None
    shared.hints.claimed(LEDGER, batch.claim.head_event_id, now=0)
    shared.hints.for_claim(now=TRAIL_S)
    await slow.execute("rollback")
    Worker(shared)._came_back(CallFailed(failing, asyncpg.RaiseError("no")))
    found = await LIVE.next_batch(db, shared.hints.for_claim(now=TRAIL_S), after="", retries_first=False)
    assert (found is None) == mutated


@pytest.fixture
def doorbell(settings: Settings) -> Doorbell:
    return Doorbell(impatient(settings), uuid4(), Alarm(), Activity(linger_s=0), Hints(1))


@both_ways
async def test_the_second_look_after_arming_finds_what_was_written_silently(
    db: asyncpg.Connection, connect: Connect, doorbell: Doorbell, monkeypatch: pytest.MonkeyPatch, mutated: bool
) -> None:
    """Guards the look in Doorbell._fall_asleep: without it, what is committed just before arming waits for the poll."""
    await make_ledger(db)
    if mutated:
        blind = "select false as ready, 0 as owed_count, null::float8 as next_attempt_s where $1::text[] is not null"
        monkeypatch.setattr(daemon.doorbell, "LOOK", blind)
    assert await next_batch(db) is None  # the daemon finds nothing to do
    await record(db, K)  # silently: nobody is armed
    falls_asleep = await doorbell._fall_asleep(await connect("listener"))
    assert falls_asleep == mutated
    assert await pending(db) == [K]


@both_ways
async def test_a_silent_writers_shared_lock_keeps_daemons_awake_until_it_commits(
    db: asyncpg.Connection, connect: Connect, doorbell: Doorbell, mutated: bool
) -> None:
    """Guards the shared hold of outbox.ring: to look whether somebody is armed, without holding on, is not enough."""
    await make_ledger(db)
    if mutated:
        look = (
            "(select count(*) = 0 from pg_locks as l where l.classid = 29283 and l.mode = 'ExclusiveLock'"
            " and l.database = (select d.oid from pg_database as d where d.datname = current_database()))"
        )
        await mutate(db, "ring", "pg_try_advisory_xact_lock_shared(29283, 1)", look)
    listener, heard = await connect("listener"), []
    await listener.add_listener("outbox", lambda *told: heard.append(told))
    async with db.transaction():
        await record(db, K)  # silently: nobody is armed
        falls_asleep = await doorbell._fall_asleep(listener)
    await listener.execute("select")  # what was sent has arrived
    is_lost = falls_asleep and await pending(db) == [K] and not heard
    assert is_lost == mutated


class ClearsTooLate(Alarm):
    """Clears the flag when the worker comes back to wait: after the claim, instead of before."""

    def __init__(self) -> None:
        self._flag = asyncio.Event()
        self.wait_count = 0

    def ring(self) -> None:
        self._flag.set()

    async def wait(self) -> None:
        self._flag.clear()
        self.wait_count += 1
        await self._flag.wait()


class Overtaken(Worker):
    """Finds nothing, and before it goes back to wait, a write commits and rings."""

    async def _turn(self) -> bool:
        found = await super()._turn()
        if not found and not self._after:
            self._after = "overtaken"
            async with connection(self._shared.settings, application_name="writer") as writer:
                await record(writer, K)
            self._shared.alarm.ring()
        return found


@both_ways
async def test_a_ring_during_the_claim_is_kept(db: asyncpg.Connection, settings: Settings, mutated: bool) -> None:
    """Guards Alarm: a ring is taken before the claim, so that one that comes during it is still there afterwards."""
    await make_ledger(db)
    alarm = ClearsTooLate() if mutated else Alarm()
    shared = Shared(settings, uuid4(), alarm, Activity(0), Hints(1), asyncio.Event())
    await db.execute("select outbox.make_partitions(1)")
    working = asyncio.create_task(Overtaken(shared).run())

    async def is_waiting() -> bool:
        return isinstance(alarm, ClearsTooLate) and alarm.wait_count > 0

    async def is_over() -> bool:
        was_written = await db.fetchval("select count(*) from ledger.entry") > 0
        is_parked = isinstance(alarm, ClearsTooLate) and alarm.wait_count > 1
        return was_written and (is_parked or not await pending(db))

    if mutated:
        await eventually(is_waiting)
        alarm.ring()
    await eventually(is_over)
    working.cancel()
    await asyncio.wait([working])
    assert await pending(db) == ([K] if mutated else [])
