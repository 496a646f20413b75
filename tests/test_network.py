"""Links that break, hang, or slow down: what the daemon notices, how soon, and what that costs the events."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import pytest
from engine import (
    GATE,
    asleep,
    done,
    drifted,
    enqueue,
    events_of,
    failures,
    impatient,
    make_ledger,
    make_topic,
    on_duty,
    pending,
    record,
    sessions,
    until_empty,
)
from proxy import Link, Proxy, Trap, proxy_to
from pydantic import SecretStr
from servers import Connect
from waiting import eventually, wait_until_blocked

from daemon import telemetry
from daemon.database import connect as connect_to
from daemon.errors import DatabaseUnavailable
from daemon.settings import Settings

WORKER, LISTENER, WATCH = "recalcd worker", "recalcd listener", "recalcd watch"
BEAT_S = 0.4
"""heartbeat_s and heartbeat_timeout_s of these tests."""

LOAD_S = 3.0
"""How late a busy machine may be at anything."""

REQUEST, REPLY = "request", "reply"
LISTENER_STEPS = [
    ('LISTEN "outbox"', REQUEST),
    ('LISTEN "outbox"', REPLY),
    ("outbox.arm", REQUEST),
    ("outbox.arm", REPLY),
    ("outbox.look", REQUEST),
    ("outbox.look", REPLY),
    ("outbox.disarm", REQUEST),
    ("outbox.disarm", REPLY),
    ("select pg_notify", REQUEST),
    ("select pg_notify", REPLY),
]
BATCH_STEPS = [
    ("begin", REQUEST),
    ("begin", REPLY),
    ("outbox.claim(", REQUEST),
    ("outbox.claim(", REPLY),
    ("outbox.recalculate(", REQUEST),
    ("outbox.recalculate(", REPLY),
    ("outbox.settle(", REQUEST),
    ("outbox.settle(", REPLY),
    ("commit", REQUEST),
    ("commit", REPLY),
]


@pytest.fixture(autouse=True)
async def ledger(db: asyncpg.Connection) -> None:
    await make_ledger(db)
    await make_topic(db, "t")


@pytest.fixture
async def proxy(dsn: str) -> AsyncIterator[Proxy]:
    async with proxy_to(dsn) as proxy:
        yield proxy


@pytest.fixture
def through(settings: Settings, proxy: Proxy) -> Callable[..., Settings]:
    """Return settings of a daemon behind the proxy."""

    def through(**update: Any) -> Settings:
        beat = {"heartbeat_s": BEAT_S, "heartbeat_timeout_s": BEAT_S, "connect_timeout_s": 2 * BEAT_S}
        return impatient(settings, database_url=SecretStr(proxy.dsn), **(beat | update))

    return through


Through = Callable[..., Settings]


def trap(proxy: Proxy, name: str, sql: str, when: str, act: Callable[[Link], None] = Link.vanish) -> Trap:
    return (proxy.at_request if when == REQUEST else proxy.at_reply)(name, sql, act)


async def told(logged: list[Any], event: str, count: int = 1, *, within_s: float = 10.0) -> None:
    """Wait until an event was logged so many times."""

    async def is_told() -> bool:
        return len(events_of(logged, event)) >= count

    await eventually(is_told, within_s + LOAD_S)


async def replaced(proxy: Proxy, lost: Link) -> None:
    """Wait until a younger link does the work of one that was lost."""

    async def is_replaced() -> bool:
        return bool(proxy.of(lost.application_name)) and proxy.of(lost.application_name)[-1] is not lost

    await eventually(is_replaced)


async def is_untouched(db: asyncpg.Connection) -> bool:
    """Whether nothing is pending, nothing drifted, and nobody was charged or is suspected."""
    suspected = await db.fetchval("select count(*) from outbox.suspect")
    return not (await pending(db) or await drifted(db) or await failures(db) or suspected)


# The listener


@pytest.mark.parametrize("step", LISTENER_STEPS)
async def test_a_half_open_listener_is_noticed_within_two_heartbeats_whatever_it_does(
    db: asyncpg.Connection, proxy: Proxy, through: Through, logged: list[Any], step: tuple[str, str]
) -> None:
    sprung = trap(proxy, LISTENER, *step)
    async with on_duty(through()):
        await enqueue(db, "t", "before")
        await until_empty(db)  # so that it wakes, and disarms, once
        lost = await sprung.sprung()
        await told(logged, telemetry.LISTENER_LOST, within_s=2 * BEAT_S)
        await replaced(proxy, lost)
        await enqueue(db, "t", "after")
        await until_empty(db)
    assert await done(db, "t") == ["after", "before"]


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
    async with on_duty(through(heartbeat_s=3600)):
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
        assert not crew._doorbell._is_armed
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
    async with on_duty(through()):
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
        proxy.of(LISTENER)[0].stall("down")

        async def is_stuck() -> Any:
            await db.execute("select pg_notify('outbox', repeat('x', 7000) || g) from generate_series(1, 500) as g")
            listener = await listener_waits_for(db)
            return listener and listener["wait_event"] == "ClientWrite" and listener["pid"]

        pid = await eventually(is_stuck)
        await told(logged, telemetry.LISTENER_STARTED, 2, within_s=4 * BEAT_S)

        async def is_gone() -> bool:
            return not await db.fetchval("select count(*) from pg_stat_activity where pid = $1", pid)

        await eventually(is_gone)


# The claim connection


@pytest.mark.parametrize("step", BATCH_STEPS)
async def test_a_half_open_claim_connection_is_replaced_within_two_heartbeats_in_every_phase(
    db: asyncpg.Connection, proxy: Proxy, through: Through, logged: list[Any], step: tuple[str, str]
) -> None:
    async with on_duty(through(workers=1)):
        await asleep(db)
        sprung = trap(proxy, WORKER, *step)
        await record(db, "a")
        lost = await sprung.sprung()
        await told(logged, telemetry.SESSION_LOST, within_s=2 * BEAT_S)
        await until_empty(db)
        await record(db, "a")
        await until_empty(db)
        assert proxy.of(WORKER) != [lost]
    assert await is_untouched(db)
    assert await sessions(db, WORKER) == 0


@pytest.mark.parametrize("how", ["rst", "fin"])
async def test_a_claim_connection_that_is_cut_loses_nothing_and_charges_nobody_in_every_phase(
    db: asyncpg.Connection, proxy: Proxy, through: Through, how: Any
) -> None:
    async with on_duty(through(workers=1, heartbeat_s=3600)):
        for sql, when in BATCH_STEPS:
            await asleep(db)
            sprung = trap(proxy, WORKER, sql, when, lambda link: link.cut(how))
            await record(db, "a")
            await sprung.sprung()
            await until_empty(db)
            await record(db, "a")
            await until_empty(db)
            assert await is_untouched(db), (sql, when)


async def test_a_key_whose_call_is_cut_again_and_again_is_not_charged_with_it(
    db: asyncpg.Connection, proxy: Proxy, through: Through, logged: list[Any]
) -> None:
    """Four crashes in a row would be its own; but no backend crashed, the server runs on."""
    async with on_duty(through(workers=1)):
        await asleep(db)
        sprung = trap(proxy, WORKER, "outbox.recalculate(", REQUEST, Link.cut)
        await record(db, "a")
        for when in (REPLY, REQUEST, REPLY):
            await sprung.sprung()
            sprung = trap(proxy, WORKER, "outbox.recalculate(", when, Link.cut)
        await until_empty(db)
    assert len(events_of(logged, telemetry.BATCH_VANISHED)) == 4
    assert not events_of(logged, telemetry.KEY_FAILED)
    assert await is_untouched(db)


async def test_a_call_that_goes_on_behind_a_dead_link_is_noticed_when_it_is_done(
    db: asyncpg.Connection, proxy: Proxy, through: Through
) -> None:
    """While it is at work the server holds its keys: other workers leave them alone, and go on with the rest."""
    await make_topic(db, "slow", "if v_call = 1 then perform pg_sleep(2); end if;")
    async with on_duty(through(workers=2)):
        await asleep(db)
        sprung = trap(proxy, WORKER, "outbox.recalculate(", REQUEST, lambda link: link.vanish("down"))
        await enqueue(db, "slow", "k")
        await sprung.sprung()
        started = time.monotonic()
        await enqueue(db, "t", "other")
        await until_empty(db, "t")
        assert time.monotonic() - started < 2
        await until_empty(db, "slow")
        assert 2 <= time.monotonic() - started <= 2 + 2 * BEAT_S + LOAD_S
    assert await done(db, "slow") == ["k"]
    assert await is_untouched(db)


async def test_a_slow_recalculation_is_not_mistaken_for_a_dead_link(
    db: asyncpg.Connection, proxy: Proxy, through: Through, logged: list[Any]
) -> None:
    await make_topic(db, "slow", f"perform pg_sleep({4 * BEAT_S});")
    async with on_duty(through(workers=1)):
        await enqueue(db, "slow", "k")
        await until_empty(db)
    assert sum(link.application_name == WATCH for link in proxy.links) >= 2
    assert len([link for link in proxy.links if link.application_name == WORKER]) == 1
    assert not events_of(logged, telemetry.SESSION_LOST, telemetry.BATCH_RETRIED)


async def test_a_claim_that_has_to_wait_is_not_mistaken_for_a_dead_link(
    db: asyncpg.Connection, proxy: Proxy, through: Through, connect: Connect, logged: list[Any]
) -> None:
    async with on_duty(through(workers=1)):
        await asleep(db)
        async with (blocker := await connect("blocker")).transaction():
            await blocker.execute("select outbox.enqueue('t', 'k'); lock table outbox.topic in access exclusive mode")
            asked = [link for link in proxy.links if link.application_name == WATCH]
            await wait_until_blocked(db, WORKER)

            async def is_asked_about() -> bool:
                return len([link for link in proxy.links if link.application_name == WATCH]) >= len(asked) + 2

            await eventually(is_asked_about)
        await until_empty(db)
    assert not events_of(logged, telemetry.SESSION_LOST)


async def test_while_nobody_can_be_asked_a_batch_in_hand_is_left_in_peace(
    db: asyncpg.Connection, proxy: Proxy, through: Through, connect: Connect, logged: list[Any]
) -> None:
    await make_topic(db, "slow", f"perform pg_advisory_xact_lock_shared({GATE});")
    gate = await connect("gatekeeper")
    await gate.execute(f"select pg_advisory_lock({GATE})")
    async with on_duty(through(workers=1)):
        await asleep(db)
        await enqueue(db, "slow", "k")
        await wait_until_blocked(db, WORKER)
        proxy.is_silent = True
        await asyncio.sleep(4 * BEAT_S)  # two attempts to ask
        proxy.is_silent = False
        await gate.execute(f"select pg_advisory_unlock({GATE})")
        await until_empty(db)
    assert not events_of(logged, telemetry.SESSION_LOST, telemetry.BATCH_RETRIED)


@pytest.mark.parametrize("slowness", [{"delay_s": 0.1}, {"bytes_per_s": 5000}])
async def test_a_slow_claim_connection_is_only_slow(
    db: asyncpg.Connection, proxy: Proxy, through: Through, logged: list[Any], slowness: dict[str, float]
) -> None:
    async with on_duty(through(workers=1)):
        await asleep(db)
        (link,) = proxy.of(WORKER)
        link.slow_down(**slowness)
        await record(db, "a")
        await until_empty(db)
        assert proxy.of(WORKER) == [link]
    assert not events_of(logged, telemetry.SESSION_LOST, telemetry.BATCH_RETRIED)
    assert await is_untouched(db)


# Everything at once


async def test_a_connect_that_hangs_ends_in_time(proxy: Proxy, through: Through) -> None:
    proxy.is_silent = True
    started = time.monotonic()
    with pytest.raises(DatabaseUnavailable):
        await connect_to(through(connect_timeout_s=BEAT_S), application_name="test")
    assert BEAT_S <= time.monotonic() - started < BEAT_S + LOAD_S


@pytest.mark.parametrize("how", ["vanish", "refuse"])
async def test_every_link_is_lost_and_when_the_network_is_back_nothing_else_is(
    db: asyncpg.Connection, proxy: Proxy, through: Through, logged: list[Any], how: str
) -> None:
    async with on_duty(through()):
        await asleep(db)
        proxy.is_silent, proxy.is_refusing = how == "vanish", how == "refuse"
        for link in proxy.links:
            link.vanish() if how == "vanish" else link.cut()
        await record(db, "a")
        await told(logged, telemetry.LISTENER_LOST, within_s=2 * BEAT_S)
        proxy.is_silent = proxy.is_refusing = False
        await until_empty(db)
        await asleep(db)
    assert await is_untouched(db)
