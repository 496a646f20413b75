"""The audit in the background: round after round, and nothing it meets can stop it or the daemon."""

from collections.abc import AsyncIterator

import asyncpg
import pytest
from engine import LEDGER, events_of, make_ledger, make_topic, on_duty, terminate
from pydantic import SecretStr
from servers import Connect, as_daemon
from structlog.testing import capture_logs
from waiting import eventually

from daemon.auditor import Auditor, pace
from daemon.drift import known_drift
from daemon.settings import Settings

LIST = """
    create function ledger.list(p_after text, p_limit integer) returns setof text language sql stable as $$
        select distinct account from ledger.entry where account > coalesce(p_after, '') order by 1 limit p_limit
    $$;
    insert into ledger.entry (account, amount) select 'account ' || n, 1 from generate_series(1, 9) as n;
    insert into ledger.balance select account, 1, 1 from ledger.entry;
    select outbox.set_topic('ledger.account', p_list_keys => 'ledger.list');
    delete from outbox.topic where topic = 'reports.student';
"""


@pytest.fixture
async def auditor(settings: Settings, dsn: str) -> AsyncIterator[Auditor]:
    login = SecretStr(as_daemon(dsn))
    auditor = Auditor(settings.model_copy(update={"database_url": login, "verify_keys_per_minute": 60}))
    yield auditor
    await auditor.close()


@pytest.fixture
async def ledger(db: asyncpg.Connection) -> asyncpg.Connection:
    await make_ledger(db)
    await db.execute(LIST)
    return db


async def test_drift_is_found_in_the_background_and_known_to_status(
    ledger: asyncpg.Connection, settings: Settings
) -> None:
    await ledger.execute("update ledger.balance set amount = 99 where account = 'account 7'")

    async def is_known() -> bool:
        return [(each.topic, each.drifted_keys) for each in await known_drift(ledger)] == [(LEDGER, 1)]

    with capture_logs() as captured:
        async with on_duty(settings.model_copy(update={"verify_keys_per_minute": 30_000})):
            await eventually(is_known)
    (event,) = events_of(map(dict, captured), "verify.drifted")
    assert (event["topic"], event["keys"]) == (LEDGER, ["account 7"])
    (status,) = await known_drift(ledger)
    assert "1 key" in status.problems()[0]


async def test_a_round_visits_every_key_once_and_begins_again(ledger: asyncpg.Connection, auditor: Auditor) -> None:
    for _ in range(3):
        assert await ledger.fetchval("select last_round_started_at is null from outbox.audit") in (None, True)
        await auditor.take_turn(4)
    assert await ledger.fetchval("select after_key from outbox.audit") == "account 9"
    await auditor.take_turn(4)  # nothing is left
    (status,) = await known_drift(ledger)
    assert status.audited_since is not None
    await auditor.take_turn(4)
    assert await ledger.fetchval("select after_key from outbox.audit") == "account 4"


async def test_two_daemons_share_a_round(ledger: asyncpg.Connection, connect: Connect) -> None:
    other = await connect()
    await ledger.execute("insert into outbox.audit (topic) values ($1)", LEDGER)
    async with ledger.transaction():
        first = await ledger.fetchval("select outbox.next_audit($1, 4)", LEDGER)
        async with other.transaction():
            await other.execute("set local lock_timeout = '5s'")
            assert await other.fetchval("select outbox.next_audit($1, 4)", LEDGER) == []
    second = await other.fetchval("select outbox.next_audit($1, 4)", LEDGER)
    assert (first[-1], second[0]) == ("account 4", "account 5")


async def test_topics_take_turns_and_those_that_cannot_be_verified_are_left_alone(
    ledger: asyncpg.Connection, auditor: Auditor
) -> None:
    await make_topic(ledger, "another", "p_changed_keys := '{}';")
    await make_topic(ledger, "paused")
    await make_topic(ledger, "poison", "raise 'no';")
    await ledger.execute("""
        create procedure ledger.silent(in p_keys text[]) language plpgsql as $$ begin end $$;
        select outbox.set_topic('silent', 'ledger.silent');
        update outbox.topic set list_keys = 'ledger.list';
        update outbox.topic set paused_at = clock_timestamp() where topic = 'paused';
    """)
    with capture_logs() as captured:
        for _ in range(7):
            await auditor.take_turn(1)
    rows = await ledger.fetch("select topic, after_key from outbox.audit order by topic")
    assert {row["topic"]: row["after_key"] for row in rows} == {
        "another": "account 2", LEDGER: "account 2", "poison": "account 2", "silent": "account 1",
    }  # fmt: skip
    assert [each["topic"] for each in events_of(map(dict, captured), "audit.failed")] == ["silent"]
    assert [each["key"] for each in events_of(map(dict, captured), "verify.failed")] == ["account 1", "account 2"]


async def test_a_lost_connection_and_a_broken_topic_stop_neither_audit_nor_daemon(
    ledger: asyncpg.Connection, auditor: Auditor
) -> None:
    await auditor.take_turn(1)
    await terminate(ledger, "recalcd auditor")
    with capture_logs() as captured:
        await auditor._turn_or_pause()  # it may have noticed already
        await ledger.execute("drop function ledger.list")
        assert await auditor._turn_or_pause() > 1
    sqlstates = [each["sqlstate"] for each in events_of(map(dict, captured), "audit.failed")]
    assert sqlstates in (["RC004"], ["08003", "RC004"], [None, "RC004"])


def test_the_pace_is_the_one_that_was_set() -> None:
    for rate in (1, 7, 60, 100, 30_000):
        pause_s, key_count = pace(rate)
        assert key_count * 60 / pause_s == pytest.approx(rate, rel=0.5)
        assert pause_s >= 1
    assert pace(1) == (60, 1)
    assert pace(600) == (1, 10)
