"""Claim connections, and all at once, whose links break, hang or slow down: nothing is lost, and nobody is charged."""

import asyncio
import time
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
    make_ledger,
    make_topic,
    on_duty,
    pending,
    record,
    sessions,
    until_empty,
    vanish,
)
from links import BEAT_S, LOAD_S, REPLY, REQUEST, WATCH, WORKER, Through, replaced, told, trap
from proxy import Link, Proxy
from servers import Connect
from waiting import eventually, wait_until_blocked

from daemon import telemetry
from daemon.database import connect as connect_to
from daemon.errors import DatabaseUnavailable

AT_ONCE = [
    ("outbox.run_batch(", REQUEST),
    ("outbox.run_batch(", REPLY),
    ("reset session authorization", REQUEST),
    ("reset session authorization", REPLY),
]
STEP_BY_STEP = [
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


STEPS = [(False, *step) for step in AT_ONCE] + [(True, *step) for step in STEP_BY_STEP]
"""Whether the daemon is cautious, since another one vanished, and therefore goes step by step; and the step."""


@pytest.fixture(autouse=True)
async def ledger(db: asyncpg.Connection) -> None:
    await make_ledger(db)
    await make_topic(db, "t")


async def is_untouched(db: asyncpg.Connection) -> bool:
    """Whether nothing is pending, nothing drifted, and nobody was charged or is suspected."""
    suspected = await db.fetchval("select count(*) from outbox.suspect")
    return not (await pending(db) or await drifted(db) or await failures(db) or suspected)


async def only_unanswered(proxy: Proxy) -> Link:
    """Wait until just one worker waits for the server, and return its link."""

    async def unanswered() -> Link | None:
        links = [link for link in proxy.of(WORKER) if not link.is_answered]
        return links[0] if len(links) == 1 else None

    link = await eventually(unanswered)
    assert link is not None
    return link


async def asked_about(proxy: Proxy, count: int) -> None:
    """Wait until the server was asked so many times more whether a session is still at work."""

    def asked() -> int:
        return sum(link.application_name == WATCH for link in proxy.links)

    enough = asked() + count

    async def is_enough() -> bool:
        return asked() >= enough

    await eventually(is_enough)


@pytest.mark.parametrize("step", STEPS)
async def test_a_half_open_claim_connection_is_replaced_within_two_heartbeats_in_every_phase(
    db: asyncpg.Connection, proxy: Proxy, through: Through, logged: list[Any], step: tuple[bool, str, str]
) -> None:
    is_cautious, sql, when = step
    if is_cautious:
        await vanish(db)
    async with on_duty(through(workers=1)):
        await asleep(db)
        sprung = trap(proxy, WORKER, sql, when)
        await record(db, "a")
        lost = await sprung.sprung()
        await told(logged, telemetry.SESSION_LOST, within_s=2 * BEAT_S)
        await until_empty(db)
        await record(db, "a")
        await until_empty(db)
        assert proxy.of(WORKER) != [lost]
    assert await is_untouched(db)
    assert await sessions(db, WORKER) == 0


@pytest.mark.parametrize("steps", [AT_ONCE, STEP_BY_STEP])
@pytest.mark.parametrize("how", ["rst", "fin"])
async def test_a_claim_connection_that_is_cut_loses_nothing_and_charges_nobody_in_every_phase(
    db: asyncpg.Connection, proxy: Proxy, through: Through, how: Any, steps: list[tuple[str, str]]
) -> None:
    if steps == STEP_BY_STEP:
        await vanish(db)
    async with on_duty(through(workers=1, heartbeat_s=3600)):
        for sql, when in steps:
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
    await vanish(db)
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


async def test_a_call_whose_link_is_cut_meanwhile_is_made_again_and_charged_to_nobody(
    db: asyncpg.Connection, proxy: Proxy, through: Through, connect: Connect, logged: list[Any]
) -> None:
    """The server has told us whose call it was, before it was cut off."""
    await make_topic(db, "slow", f"perform pg_advisory_xact_lock_shared({GATE});")
    gate = await connect("gatekeeper")
    await gate.execute(f"select pg_advisory_lock({GATE})")
    async with on_duty(through(workers=1)):
        await asleep(db)
        await enqueue(db, "slow", "k")
        await wait_until_blocked(db, WORKER)
        proxy.of(WORKER)[0].cut()
        await told(logged, telemetry.BATCH_VANISHED)
        await gate.execute(f"select pg_advisory_unlock({GATE})")
        await until_empty(db)
    (vanished,) = events_of(logged, telemetry.BATCH_VANISHED)
    assert (vanished["topic"], vanished["key"]) == ("slow", "k")
    assert await is_untouched(db)


@pytest.mark.parametrize("is_cautious", [False, True])
async def test_a_call_that_goes_on_behind_a_dead_link_is_noticed_when_it_is_done(
    db: asyncpg.Connection, proxy: Proxy, through: Through, connect: Connect, is_cautious: bool
) -> None:
    """While it is at work the server holds its keys: other workers leave them alone, and go on with the rest."""
    await make_topic(db, "slow", f"perform pg_advisory_xact_lock_shared({GATE});")
    gate = await connect("gatekeeper")
    await gate.execute(f"select pg_advisory_lock({GATE})")
    if is_cautious:
        await vanish(db)
    async with on_duty(through(workers=2)):
        await asleep(db)
        await enqueue(db, "slow", "k")
        await wait_until_blocked(db, WORKER)
        lost = await only_unanswered(proxy)
        lost.vanish("down")
        await enqueue(db, "t", "other")
        await until_empty(db, "t")
        await asked_about(proxy, 2)
        assert await pending(db, "slow") == ["k"]
        await gate.execute(f"select pg_advisory_unlock({GATE})")
        started = time.monotonic()
        await until_empty(db, "slow")
        await replaced(proxy, lost)
        assert time.monotonic() - started <= 2 * BEAT_S + LOAD_S
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
            await wait_until_blocked(db, WORKER)
            await asked_about(proxy, 2)
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
