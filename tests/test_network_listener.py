"""The LISTEN session's link breaks, hangs or slows down: how soon that is noticed, and what it costs the events."""

import asyncio
from itertools import product
from typing import Any

import asyncpg
import pytest
from engine import (
    GATE,
    asleep,
    done,
    enqueue,
    events_of,
    make_ledger,
    make_topic,
    on_duty,
    until_empty,
)
from links import BEAT_S, LISTENER, LOAD_S, REPLY, REQUEST, WORKER, Through, replaced, told, trap
from proxy import Proxy, Trap
from servers import Connect
from waiting import eventually, wait_until_blocked

from daemon import telemetry

LISTENER_STEPS = [
    ('LISTEN "outbox"', REQUEST),
    ('LISTEN "outbox"', REPLY),
    ("outbox.arm", REQUEST),
    ("outbox.arm", REPLY),
    ("outbox.look", REQUEST),
    ("outbox.look", REPLY),
    ("select pg_notify", REQUEST),
    ("select pg_notify", REPLY),
]


@pytest.fixture(autouse=True)
async def ledger(db: asyncpg.Connection) -> None:
    await make_ledger(db)
    await make_topic(db, "t")


async def is_noticed_and_costs_nothing(db: asyncpg.Connection, proxy: Proxy, sprung: Trap, logged: list[Any]) -> None:
    """Write before and after the listener runs into the trap; assert that its loss is noticed, and both are done."""
    await enqueue(db, "t", "before")
    await until_empty(db)
    lost = await sprung.sprung()
    await told(logged, telemetry.LISTENER_LOST, within_s=2 * BEAT_S)
    await replaced(proxy, lost)
    await enqueue(db, "t", "after")
    await until_empty(db)
    assert await done(db, "t") == ["after", "before"]


@pytest.mark.parametrize("step", LISTENER_STEPS)
async def test_a_half_open_listener_is_noticed_within_two_heartbeats_whatever_it_does(
    db: asyncpg.Connection, proxy: Proxy, through: Through, logged: list[Any], step: tuple[str, str]
) -> None:
    sprung = trap(proxy, LISTENER, *step)
    async with on_duty(through()):
        await is_noticed_and_costs_nothing(db, proxy, sprung, logged)


@pytest.mark.usefixtures("any_ring_is_a_crowd")
@pytest.mark.parametrize("step", list(product(["is_queued", "outbox.disarm"], [REQUEST, REPLY])))
async def test_a_listener_that_is_half_open_as_it_mutes_the_bell_is_noticed_within_two_heartbeats(
    db: asyncpg.Connection, proxy: Proxy, through: Through, logged: list[Any], step: tuple[str, str]
) -> None:
    sprung = trap(proxy, LISTENER, *step)
    async with on_duty(through()):
        await asleep(db)
        await is_noticed_and_costs_nothing(db, proxy, sprung, logged)


async def test_an_idle_listener_that_is_half_open_is_noticed_within_two_heartbeats(
    db: asyncpg.Connection, proxy: Proxy, through: Through, logged: list[Any]
) -> None:
    async with on_duty(through()):
        await asleep(db)
        proxy.of(LISTENER)[0].vanish()
        await enqueue(db, "t", "k")
        await told(logged, telemetry.LISTENER_LOST, within_s=2 * BEAT_S)
        await until_empty(db)


async def test_until_it_is_noticed_the_poll_is_all_that_an_event_waits_for(
    db: asyncpg.Connection, proxy: Proxy, through: Through, logged: list[Any]
) -> None:
    async with on_duty(through(heartbeat_s=3600, heartbeat_timeout_s=3600, poll_interval_s=1)):
        await asleep(db)
        proxy.of(LISTENER)[0].vanish()
        await enqueue(db, "t", "k")
        async with asyncio.timeout(1 + LOAD_S):
            await until_empty(db)
    assert not events_of(logged, telemetry.LISTENER_LOST)


@pytest.mark.parametrize("how", ["rst", "fin"])
async def test_a_listener_that_is_cut_is_back_at_once(
    db: asyncpg.Connection, proxy: Proxy, through: Through, logged: list[Any], how: Any
) -> None:
    async with on_duty(through(heartbeat_s=3600, heartbeat_timeout_s=LOAD_S)):
        await asleep(db)
        proxy.of(LISTENER)[0].cut(how)
        await told(logged, telemetry.LISTENER_STARTED, 2, within_s=0)
        await asleep(db)
        await enqueue(db, "t", "k")
        await until_empty(db)
    assert len(events_of(logged, telemetry.LISTENER_LOST)) == 1


@pytest.mark.parametrize("slowness", [{"delay_s": 0.1}, {"bytes_per_s": 5000}])
async def test_a_slow_listener_is_not_mistaken_for_a_lost_one(
    db: asyncpg.Connection, proxy: Proxy, through: Through, logged: list[Any], slowness: dict[str, float]
) -> None:
    async with on_duty(through(heartbeat_timeout_s=LOAD_S)):
        await asleep(db)
        link = proxy.of(LISTENER)[0]
        link.slow_down(**slowness)
        echo = proxy.at_reply(LISTENER, "select pg_notify", lambda _: None)
        await echo.sprung()
        await enqueue(db, "t", "k")
        await until_empty(db)
        assert proxy.of(LISTENER) == [link]
    assert not events_of(logged, telemetry.LISTENER_LOST)


async def test_a_listener_slower_than_the_heartbeat_is_lost_and_polling_serves(
    db: asyncpg.Connection, proxy: Proxy, through: Through, logged: list[Any]
) -> None:
    async with on_duty(through()) as crew:
        await asleep(db)
        proxy.of(LISTENER)[0].slow_down(delay_s=2 * BEAT_S)
        proxy.at_request(LISTENER, "LISTEN", lambda link: link.slow_down(delay_s=60))
        await told(logged, telemetry.LISTENER_LOST, within_s=2 * BEAT_S)
        assert crew._doorbell.is_degraded
        await enqueue(db, "t", "k")
        await until_empty(db)


async def test_a_lost_listener_that_was_armed_is_ended_by_its_successor(
    db: asyncpg.Connection, proxy: Proxy, through: Through, logged: list[Any]
) -> None:
    """Or writers would go on ringing for nobody until the server notices."""
    async with on_duty(through()):
        await asleep(db)
        before = await armed_pid(db)
        proxy.of(LISTENER)[0].vanish()
        await told(logged, telemetry.LISTENER_STARTED, 2, within_s=2 * BEAT_S)
        await asleep(db)
        assert await armed_pid(db) != before
        assert not await db.fetchval("select count(*) from pg_stat_activity where pid = $1", before)


async def test_under_the_lock_of_a_ghost_writers_ring_and_whoever_listens_wakes(
    db: asyncpg.Connection, proxy: Proxy, through: Through
) -> None:
    """A daemon that is gone for good, and whose server has not noticed, still holds the bell's lock."""
    ghost = await asyncpg.connect(proxy.dsn, server_settings={"application_name": "ghost"})
    assert await ghost.fetchval("select outbox.arm()") == "armed"
    proxy.of("ghost")[0].vanish()
    ghost.terminate()
    async with on_duty(through(poll_interval_s=60)) as crew:

        async def is_asleep() -> bool:
            return crew._doorbell.is_asleep

        await eventually(is_asleep)
        await enqueue(db, "t", "k")
        await until_empty(db)
        await eventually(is_asleep)
        assert crew._doorbell._bell == "guarded"
        await db.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'ghost'")
    async with on_duty(through(poll_interval_s=60)):
        await asleep(db)


async def armed_pid(db: asyncpg.Connection) -> int:
    query = """
        select l.pid from pg_locks as l join pg_database as d on d.oid = l.database
        where d.datname = current_database() and l.locktype = 'advisory' and (l.classid, l.objid) = (29283, 1)
    """
    return int(await db.fetchval(query))


async def test_the_listener_is_read_however_much_it_is_sent(
    db: asyncpg.Connection, through: Through, connect: Connect
) -> None:
    """A session stuck in ClientWrite keeps its snapshot, and nothing in the database can be vacuumed."""
    await make_topic(db, "slow", f"perform pg_advisory_xact_lock_shared({GATE});")
    gate = await connect("gatekeeper")
    await gate.execute(f"select pg_advisory_lock({GATE})")
    async with on_duty(through(heartbeat_s=3600, heartbeat_timeout_s=LOAD_S)):
        await enqueue(db, "slow", "k")
        await wait_until_blocked(db, WORKER)
        for _ in range(20):
            await db.execute("select pg_notify('outbox', repeat('x', 7000) || g) from generate_series(1, 200) as g")

        async def is_read() -> bool:
            listener = await listener_waits_for(db)
            return listener is not None and (listener["wait_event"], listener["backend_xmin"]) == ("ClientRead", None)

        await eventually(is_read)
        await gate.execute(f"select pg_advisory_unlock({GATE})")


async def listener_waits_for(db: asyncpg.Connection) -> asyncpg.Record | None:
    query = """
        select a.pid, a.wait_event, a.backend_xmin from pg_stat_activity as a
        where a.datname = current_database() and a.application_name = 'recalcd listener'
    """
    return await db.fetchrow(query)


async def test_a_listener_that_can_not_be_read_is_ended_and_with_it_its_hold_on_the_horizon(
    db: asyncpg.Connection, proxy: Proxy, through: Through, logged: list[Any]
) -> None:
    async with on_duty(through(heartbeat_s=3 * BEAT_S)):
        await asleep(db)
        stalled = await listener_waits_for(db)
        assert stalled is not None
        pid = stalled["pid"]
        proxy.of(LISTENER)[0].stall("down")

        async def is_stuck() -> bool:
            await db.execute("select pg_notify('outbox', repeat('x', 7000) || g) from generate_series(1, 2000) as g")
            listener = await listener_waits_for(db)
            return listener is not None and (listener["pid"], listener["wait_event"]) == (pid, "ClientWrite")

        await eventually(is_stuck)
        await told(logged, telemetry.LISTENER_STARTED, 2, within_s=4 * BEAT_S)

        async def is_gone() -> bool:
            return not await db.fetchval("select count(*) from pg_stat_activity where pid = $1", pid)

        await eventually(is_gone)
