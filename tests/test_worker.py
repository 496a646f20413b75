"""A daemon at work: topics that wait or break, connections that are lost, workers that share."""

import asyncio
import time
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from engine import (
    GATE,
    asleep,
    done,
    enqueue,
    events_of,
    failures,
    impatient,
    make_ledger,
    make_topic,
    numbered,
    on_duty,
    pending,
    sessions,
    terminate,
    until_empty,
)
from servers import Connect
from waiting import TIMEOUT_S, eventually, wait_until_blocked

from daemon import telemetry
from daemon.batch import prepare_history
from daemon.doorbell import Activity, Alarm
from daemon.hints import TRAIL_S, Hints
from daemon.settings import Settings
from daemon.worker import Shared, Worker

CROWD = numbered(500)


@pytest.fixture
def prompt(settings: Settings) -> Settings:
    return impatient(settings, workers=1)


@pytest.fixture(autouse=True)
async def ledger(db: asyncpg.Connection) -> None:
    await make_ledger(db)


async def test_a_topic_whose_procedure_is_gone_stops_nobody_else_and_resumes_when_it_is_back(
    db: asyncpg.Connection, prompt: Settings, logged: list[Any]
) -> None:
    await make_topic(db, "t")
    await make_topic(db, "u")
    await db.execute("drop procedure ledger.t")
    async with on_duty(impatient(prompt, poll_interval_s=0.1)):
        await enqueue(db, "t", *CROWD)
        await enqueue(db, "u", *CROWD)
        await until_empty(db, "u")
        assert await pending(db, "t") == CROWD
        assert await failures(db) == {}
        assert {each["topic"] for each in events_of(logged, telemetry.TOPIC_BROKEN)} == {"t"}
        await make_topic(db, "t")
        await until_empty(db)
    assert await done(db, "t") == CROWD
    assert await failures(db) == {}


async def test_a_procedure_that_may_not_be_called_breaks_its_topic_and_charges_nobody(
    db: asyncpg.Connection, prompt: Settings, logged: list[Any]
) -> None:
    await make_topic(db, "t")
    await make_topic(db, "u")
    await db.execute("revoke execute on procedure ledger.t from public")
    async with on_duty(prompt):
        await enqueue(db, "t", "k")
        await enqueue(db, "u", "k")
        await until_empty(db, "u")

        async def is_told() -> bool:
            return bool(events_of(logged, telemetry.TOPIC_BROKEN))

        await eventually(is_told)
    assert (await pending(db), await failures(db)) == (["k"], {})


async def test_a_topic_removed_with_events_in_the_outbox_hurts_nobody(db: asyncpg.Connection, prompt: Settings) -> None:
    await make_topic(db, "t")
    await make_topic(db, "u")
    await enqueue(db, "t", "k")
    await db.execute("delete from outbox.topic where topic = 't'")
    async with on_duty(prompt):
        await enqueue(db, "u", "k")
        await until_empty(db, "u")
    assert await pending(db) == ["k"]


async def test_a_paused_topic_waits_and_goes_on(db: asyncpg.Connection, prompt: Settings) -> None:
    await make_topic(db, "t")
    await make_topic(db, "u")
    await db.execute("update outbox.topic set paused_at = now(), paused_reason = 'migration' where topic = 't'")
    async with on_duty(impatient(prompt, poll_interval_s=0.1)):
        await enqueue(db, "t", "k")
        await enqueue(db, "u", "k")
        await until_empty(db, "u")
        assert await pending(db) == ["k"]
        await db.execute("update outbox.topic set paused_at = null where topic = 't'")
        await until_empty(db)


async def test_a_backlog_of_one_topic_does_not_hold_up_the_others(db: asyncpg.Connection, prompt: Settings) -> None:
    for topic in ("t", "u", "v"):
        await make_topic(db, topic, batch_keys=10)
    await enqueue(db, "t", *CROWD)
    await enqueue(db, "v", *CROWD[:20])
    await enqueue(db, "u", "k")
    async with on_duty(prompt):
        await until_empty(db)
    rows = await db.fetch("select topic, max(call) from ledger.done group by topic")
    last = {row["topic"]: row["max"] for row in rows}
    assert last["u"] <= 3
    assert last["v"] <= 6
    assert last["t"] == 53


async def test_workers_share_a_backlog_and_never_have_a_key_at_once(db: asyncpg.Connection, settings: Settings) -> None:
    await db.execute(
        "do $$ begin execute format('alter database %I set ledger.gate = dawdle', current_database()); end $$"
    )
    await make_topic(db, "t", "perform ledger.stop_at_gate(); perform pg_sleep(0.002);", batch_keys=20)
    await prepare_history(db, days_ahead=1)
    await enqueue(db, "t", *CROWD)
    async with on_duty(impatient(settings, workers=4)):
        await until_empty(db)
    assert set(await done(db, "t")) == set(CROWD)  # a key may be done again, by outbox.claim; but only when it was free
    took = "tstzrange({0}.started_at, {0}.started_at + make_interval(secs => {0}.recalculate_ms / 1000))"
    shared_keys = await db.fetch(f"""
        select a.keys && b.keys
        from outbox.batch as a join outbox.batch as b on a.batch_id < b.batch_id
        where {took.format("a")} && {took.format("b")}
    """)
    assert {row[0] for row in shared_keys} == {False}  # not empty: they did share it


async def test_a_daemon_wakes_by_the_bell_alone(db: asyncpg.Connection, prompt: Settings) -> None:
    await make_topic(db, "t")
    async with on_duty(impatient(prompt, poll_interval_s=3600)):
        for key in CROWD[:3]:
            await asleep(db)
            await enqueue(db, "t", key)
            await until_empty(db)
    assert await done(db, "t") == CROWD[:3]


@pytest.mark.parametrize("victim", ["recalcd worker", "recalcd listener", "recalcd housekeeper"])
async def test_a_connection_that_is_lost_at_rest_comes_back(
    db: asyncpg.Connection, prompt: Settings, victim: str
) -> None:
    await make_topic(db, "t")
    async with on_duty(prompt):
        await enqueue(db, "t", "before")
        await until_empty(db)
        await asleep(db)
        assert await terminate(db, victim) == 1
        await asleep(db)
        await enqueue(db, "t", "after")
        await until_empty(db)
    assert await done(db, "t") == ["after", "before"]
    assert await failures(db) == {}


async def test_a_worker_that_is_ended_at_work_does_its_batch_again_and_charges_nobody(
    db: asyncpg.Connection, connect: Connect, prompt: Settings, logged: list[Any]
) -> None:
    await make_topic(db, "t", f"perform pg_advisory_xact_lock_shared({GATE});")
    gate = await connect()
    await gate.execute(f"select pg_advisory_lock({GATE})")

    async def all_are_suspected() -> bool:
        return bool(await db.fetchval("select count(*) = 500 from outbox.suspect"))

    async with on_duty(prompt):
        await enqueue(db, "t", *CROWD)
        await wait_until_blocked(db, "recalcd worker")
        assert await terminate(db, "recalcd worker") == 1
        await eventually(all_are_suspected)
        await wait_until_blocked(db, "recalcd worker")
        await gate.execute(f"select pg_advisory_unlock({GATE})")
        await until_empty(db)
    assert await done(db, "t") == CROWD
    assert await failures(db) == {}
    assert await db.fetchval("select count(*) from outbox.suspect") == 0
    assert len(events_of(logged, telemetry.BATCH_VANISHED)) == 1


async def test_all_connections_lost_at_once_cost_nothing_but_time(db: asyncpg.Connection, prompt: Settings) -> None:
    await make_topic(db, "t")
    names = ["recalcd worker", "recalcd listener", "recalcd housekeeper"]
    async with on_duty(prompt):
        await enqueue(db, "t", "before")
        await until_empty(db)
        for name in names:
            await terminate(db, name)
        await enqueue(db, "t", *CROWD)
        await until_empty(db)
        await asleep(db)
        assert [await sessions(db, name) for name in names[:2]] == [1, 1]


async def test_a_batch_grows_back_after_a_slow_moment_though_keys_repeat(
    db: asyncpg.Connection, prompt: Settings
) -> None:
    await make_topic(db, "t", "if v_call = 1 then perform pg_sleep(1.5); end if;", batch_keys=100)
    await enqueue(db, "t", *[key for key in CROWD for _ in range(2)])  # a head of n events holds n/2 keys
    async with on_duty(impatient(prompt, batch_target_s=0.5)):
        await until_empty(db)
    largest = await db.fetchval(
        "select max(n) from (select count(*) as n from ledger.done where call > 1 group by call) as c"
    )
    assert largest == 50


async def test_chained_topics_are_done_in_turn(db: asyncpg.Connection, prompt: Settings) -> None:
    await make_topic(db, "u")
    await make_topic(db, "t", "perform outbox.enqueue('u', p_keys, 'chained');")
    async with on_duty(prompt):
        await asleep(db)
        await enqueue(db, "t", *CROWD)
        await until_empty(db)
    assert await done(db, "u") == CROWD


async def test_what_lies_below_the_mark_of_a_topic_does_not_wait_for_the_busy_ones(
    db: asyncpg.Connection, prompt: Settings
) -> None:
    for topic in ("busy", "quiet"):
        await make_topic(db, topic)
        await enqueue(db, topic, "first")
    forgetful = prompt.model_copy(update={"history_days": 0})  # no housekeeper makes partitions here
    shared = Shared(forgetful, uuid4(), Alarm(), Activity(0), Hints(1), asyncio.Event())
    worker = Worker(shared)
    while await worker._turn():
        pass
    shared.hints.claimed("quiet", 1_000_000, time.monotonic() - TRAIL_S)
    await enqueue(db, "quiet", "given back by another daemon")
    shared.hints.sweep()
    for _ in range(6):
        worker._after = "quiet"  # whose turn is always just over
        await enqueue(db, "busy", "again")
        await worker._turn()
    await worker._disconnect()
    assert await done(db, "quiet") == ["first", "given back by another daemon"]


@pytest.mark.parametrize("is_cautious", [False, True])  # the steps of a batch at once, or one by one
@pytest.mark.parametrize("key_count", [9, 25])
async def test_a_full_batch_wakes_another_worker_while_it_is_recalculated(
    db: asyncpg.Connection, connect: Connect, settings: Settings, is_cautious: bool, key_count: int
) -> None:
    await make_topic(db, "t", f"perform pg_advisory_xact_lock({GATE});", batch_keys=10)
    await enqueue(db, "t", *numbered(key_count))
    gate = await connect("gatekeeper")
    await gate.execute(f"select pg_advisory_lock({GATE})")
    alarm = Alarm()
    await alarm.wait()  # it starts rung
    forgetful = settings.model_copy(update={"history_days": 0})  # no housekeeper makes partitions here
    shared = Shared(forgetful, uuid4(), alarm, Activity(0), Hints(1), asyncio.Event(), is_cautious=is_cautious)
    worker = Worker(shared)
    turn = asyncio.create_task(worker._turn())
    if key_count > 10:
        async with asyncio.timeout(TIMEOUT_S):
            await alarm.wait()  # nobody has opened the gate
    await gate.execute(f"select pg_advisory_unlock({GATE})")
    assert await turn
    assert alarm._rings.empty()
    await worker._disconnect()
