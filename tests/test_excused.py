"""A cautious daemon notes whom it calls, before it calls; what is noted charges nobody for what others did."""

from typing import Any

import asyncpg
import pytest
from engine import GATE, asleep, enqueue, failures, impatient, make_ledger, make_topic, on_duty, until_empty, vanish
from links import REPLY, REQUEST, WORKER, Through, told, trap
from proxy import Proxy
from servers import Connect
from waiting import wait_until_blocked

import daemon.worker
from daemon import telemetry
from daemon.settings import Settings


@pytest.fixture(autouse=True)
async def ledger(db: asyncpg.Connection) -> None:
    await make_ledger(db)
    await vanish(db)


@pytest.mark.parametrize(
    ("sql", "when"), [("outbox.settle(", REQUEST), ("outbox.settle(", REPLY), ("commit; reset", REQUEST)]
)
async def test_a_link_that_is_cut_twice_behind_the_call(
    db: asyncpg.Connection, proxy: Proxy, through: Through, sql: str, when: str
) -> None:
    await make_topic(db, "t")
    async with on_duty(through(workers=1)):
        await asleep(db)
        await enqueue(db, "t", "k")
        for _ in range(2):
            await trap(proxy, WORKER, sql, when, lambda link: link.cut()).sprung()
        await until_empty(db)
    assert await failures(db) == {}
    assert await db.fetchval("select count(*) from outbox.suspect") == 0


async def test_a_lone_suspect_whose_call_outlasts_the_grace_period(
    db: asyncpg.Connection, settings: Settings, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon.worker, "EXCUSE_S", 30.0)  # a busy machine may take longer than a stop may
    await make_topic(db, "t", f"perform pg_advisory_xact_lock_shared({GATE});")
    gatekeeper = await connect()
    await gatekeeper.execute(f"select pg_advisory_lock({GATE})")
    await enqueue(db, "t", "k")
    await db.execute("select outbox.suspect_keys('t', '{k}')")
    async with on_duty(impatient(settings, workers=1, stop_grace_s=0.3)):
        await wait_until_blocked(db, WORKER)
    assert await db.fetchval("select (crash_count, was_alone) = (1, false) from outbox.suspect")
    await gatekeeper.execute(f"select pg_advisory_unlock({GATE})")
    async with on_duty(impatient(settings, workers=1)):
        await until_empty(db)
    assert await failures(db) == {}


async def test_a_key_that_was_set_aside_in_what_then_was_nobodys_fault(
    db: asyncpg.Connection, settings: Settings, logged: list[Any]
) -> None:
    await make_topic(db, "t", "perform 1 from no_such_table;")
    await enqueue(db, "t", "a", "b")
    async with on_duty(impatient(settings, workers=1)):
        await told(logged, telemetry.TOPIC_BROKEN)
    assert await db.fetchval("select count(*) from outbox.suspect") == 0
