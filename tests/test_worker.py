"""A daemon at work, and what it does with batches that fail. The procedures misbehave as procedures do."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
import structlog
from engine import (
    GATE,
    asleep,
    call_count,
    done,
    enqueue,
    events_of,
    failures,
    impatient,
    make_due,
    make_ledger,
    make_topic,
    numbered,
    on_duty,
    pending,
    sessions,
    terminate,
    until_empty,
)
from pydantic import SecretStr
from servers import Connect
from waiting import eventually, wait_until_blocked

import daemon.worker
from daemon import telemetry
from daemon.settings import Settings

CROWD = numbered(500)
BAD = "k250"
VANISHED = """
    insert into outbox.daemon (daemon_id, host, pid, version, state, backend_pid, backend_started_at, ended_at)
    values (gen_random_uuid(), 'host', 1, '0', 'vanished', 1, now(), clock_timestamp())
"""
"""A daemon that vanished just now: whoever finds it writes down what it is about to call."""

REST = [key for key in CROWD if key != BAD]


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as logged:
        yield logged


@pytest.fixture
def prompt(settings: Settings) -> Settings:
    return impatient(settings, workers=1)


@pytest.fixture(autouse=True)
async def ledger(db: asyncpg.Connection) -> None:
    await make_ledger(db)


async def if_bad(db: asyncpg.Connection, trouble: str, **options: int) -> None:
    await make_topic(db, "t", f"if '{BAD}' = any (p_keys) then {trouble} end if;", **options)


async def test_a_poison_key_delays_500_others_by_a_few_halves(
    db: asyncpg.Connection, prompt: Settings, logged: list[Any]
) -> None:
    await if_bad(db, "raise 'poison' using detail = 'why', hint = 'what to do';")
    await enqueue(db, "t", *CROWD, BAD)
    async with on_duty(prompt):
        await until_empty(db)
    assert await done(db, "t") == REST
    assert await call_count(db) <= 1 + 2 * 9  # the batch, then two halves each time: 2^9 > 500
    row = (await failures(db))[BAD]
    assert (row["attempts"], row["event_count"], row["state"]) == (1, 2, "retrying")
    assert (row["sqlstate"], row["message"], row["detail"], row["hint"]) == ("P0001", "poison", "why", "what to do")
    assert "RAISE" in row["context"]
    (told,) = events_of(logged, telemetry.KEY_FAILED)
    assert (told["key"], told["sqlstate"], told["will_retry"]) == (BAD, "P0001", True)


async def test_a_mended_key_recovers_when_it_falls_due(db: asyncpg.Connection, prompt: Settings) -> None:
    await if_bad(db, "raise 'poison';", retry_base_s=1)
    await enqueue(db, "t", BAD)
    async with on_duty(prompt):
        await until_empty(db)
        await make_topic(db, "t", retry_base_s=1)

        async def is_mended() -> bool:
            return not await failures(db)

        await eventually(is_mended)  # by its own backoff: nobody rings
    assert await done(db, "t") == [BAD]


async def test_a_key_dies_when_its_attempts_are_used_up(
    db: asyncpg.Connection, prompt: Settings, logged: list[Any]
) -> None:
    await if_bad(db, "raise 'poison';", max_attempts=3, retry_base_s=1)

    async def is_dead() -> bool:
        await make_due(db)
        return [row["state"] for row in (await failures(db)).values()] == ["dead"]

    async with on_duty(impatient(prompt, poll_interval_s=0.05)):
        await enqueue(db, "t", BAD)
        await eventually(is_dead)
        await enqueue(db, "t", BAD)
        await until_empty(db)
        await eventually(is_dead)
    assert (await failures(db))[BAD]["attempts"] == 4
    assert [each["key"] for each in events_of(logged, telemetry.KEY_DIED)] == [BAD, BAD]


async def test_a_key_that_hangs_is_stopped_by_the_statement_timeout(db: asyncpg.Connection, prompt: Settings) -> None:
    await if_bad(db, "perform pg_sleep(60);", statement_timeout_s=1)
    await enqueue(db, "t", *CROWD[245:255])
    async with on_duty(prompt):
        await until_empty(db)
    assert await done(db, "t") == [key for key in CROWD[245:255] if key != BAD]
    assert await call_count(db) == 11  # one by one after a timeout: each half would cost another
    assert (await failures(db))[BAD]["sqlstate"] == "57014"


async def test_a_key_for_which_strange_keys_are_returned_is_the_guilty_one(
    db: asyncpg.Connection, prompt: Settings
) -> None:
    await if_bad(db, "p_changed_keys := array['stranger'];")
    await enqueue(db, "t", *CROWD)
    async with on_duty(prompt):
        await until_empty(db)
    assert await done(db, "t") == REST
    assert (await failures(db))[BAD]["sqlstate"] == "RC005"


async def test_a_procedure_that_commits_is_refused_by_postgres(db: asyncpg.Connection, prompt: Settings) -> None:
    await make_topic(db, "t", "commit;")
    await enqueue(db, "t", "k")
    async with on_duty(prompt):
        await until_empty(db)
    assert (await failures(db))["k"]["sqlstate"] == "2D000"


async def test_a_key_that_kills_its_backend_is_dead_in_the_end_and_alone(
    db: asyncpg.Connection, prompt: Settings
) -> None:
    await if_bad(db, "perform pg_terminate_backend(pg_backend_pid());", retry_base_s=1)
    await enqueue(db, "t", *CROWD)

    async def is_dead() -> bool:
        await make_due(db)
        return {row["state"] for row in (await failures(db)).values()} == {"dead"}

    async with on_duty(impatient(prompt, poll_interval_s=0.05)):
        await eventually(is_dead, timeout_s=30)
        await until_empty(db)
    row = (await failures(db))[BAD]
    assert (len(await failures(db)), row["sqlstate"], row["attempts"]) == (1, "RC006", 3)
    assert await done(db, "t") == REST
    assert await db.fetchval("select array_agg(key) from outbox.suspect") == [BAD]


async def test_a_key_that_exceeds_the_databases_transaction_timeout_does_not_stop_the_others(
    db: asyncpg.Connection, prompt: Settings
) -> None:
    """Postgres ends the whole session then, so this is found as a killer is: by ever smaller company."""
    if db.get_server_version().major < 17:
        pytest.skip("transaction_timeout came with PostgreSQL 17")
    await if_bad(db, "perform pg_sleep(60);", retry_base_s=1)
    await db.execute(
        "do $$ begin execute format('alter database %I set transaction_timeout = 300', current_database()); end $$"
    )
    await enqueue(db, "t", *CROWD)

    async def others_are_done() -> bool:
        return await pending(db) in ([], [BAD])

    async with on_duty(impatient(prompt, poll_interval_s=0.05)):
        await eventually(others_are_done, timeout_s=30)
    assert await done(db, "t") == REST


@pytest.mark.parametrize("sqlstate", ["40001", "40P01", "55P03"])
async def test_contention_for_one_key_lets_the_others_pass_and_charges_nobody(
    db: asyncpg.Connection, prompt: Settings, sqlstate: str
) -> None:
    await if_bad(db, f"raise 'in use' using errcode = '{sqlstate}';")
    await enqueue(db, "t", *CROWD)
    async with on_duty(prompt):
        await until_empty(db)
    assert await done(db, "t") == REST
    row = (await failures(db))[BAD]
    assert (row["attempts"], row["state"], row["sqlstate"]) == (0, "retrying", sqlstate)


async def test_contention_that_passes_leaves_no_trace(db: asyncpg.Connection, prompt: Settings) -> None:
    await if_bad(db, "if v_call < 3 then raise 'in use' using errcode = '40P01'; end if;")
    await enqueue(db, "t", *CROWD)
    async with on_duty(prompt):
        await until_empty(db)
    assert await done(db, "t") == CROWD
    assert await call_count(db) == 3  # all together each time
    assert await failures(db) == {}


async def test_the_servers_trouble_is_waited_out_and_charges_nobody(
    db: asyncpg.Connection, prompt: Settings, logged: list[Any]
) -> None:
    await make_topic(db, "t", "if v_call < 6 then raise 'full' using errcode = '53100'; end if;")
    await enqueue(db, "t", *CROWD)
    async with on_duty(prompt):
        await until_empty(db)
    assert await done(db, "t") == CROWD
    assert await failures(db) == {}
    assert [each["sqlstate"] for each in events_of(logged, telemetry.BATCH_RETRIED)] == ["53100"] * 5


async def test_the_servers_trouble_convicts_nobody_even_when_a_daemon_vanished_lately(
    db: asyncpg.Connection, prompt: Settings
) -> None:
    await make_topic(db, "t", "if v_call < 9 then raise 'full' using errcode = '53100'; end if;")
    await enqueue(db, "t", "a", "b")
    await db.execute(VANISHED)
    async with on_duty(prompt):
        await until_empty(db)
    assert await done(db, "t") == ["a", "b"]
    assert await failures(db) == {}


async def test_a_batch_too_large_for_the_server_is_halved_and_charges_nobody(
    db: asyncpg.Connection, prompt: Settings
) -> None:
    await make_topic(
        db, "t", "if cardinality(p_keys) > 100 then raise 'out of shared memory' using errcode = '53200'; end if;"
    )
    await enqueue(db, "t", *CROWD, *CROWD)
    async with on_duty(prompt):
        await until_empty(db)
    assert set(await done(db, "t")) == set(CROWD)
    assert await failures(db) == {}


@pytest.fixture
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon.worker, "BROKEN_TOPIC_PAUSE_S", 0.5)


@pytest.mark.usefixtures("short_pause")
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
    db: asyncpg.Connection, prompt: Settings, dsn: str, logged: list[Any]
) -> None:
    await make_topic(db, "t")
    await make_topic(db, "u")
    role = await db.fetchval("select current_database() || '_daemon'")
    await db.execute(f"""
        create role {role} login password 'daemon'; grant usage on schema outbox, ledger, school, reports to {role};
        grant select, insert, update, delete on all tables in schema outbox, ledger to {role};
        grant usage on all sequences in schema ledger to {role};
        revoke execute on procedure ledger.t from public;
    """)
    parts = urlsplit(dsn)
    netloc = f"{role}:daemon@{parts.netloc.rpartition('@')[2]}"
    as_role = prompt.model_copy(update={"database_url": SecretStr(parts._replace(netloc=netloc).geturl())})
    try:
        async with on_duty(as_role):
            await enqueue(db, "t", "k")
            await enqueue(db, "u", "k")
            await until_empty(db, "u")

            async def is_told() -> bool:
                return bool(events_of(logged, telemetry.TOPIC_BROKEN))

            await eventually(is_told)
        assert (await pending(db), await failures(db)) == (["k"], {})
    finally:
        await db.execute(f"drop owned by {role}; drop role {role}")


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
    last = {topic: call for topic, call in rows}
    assert last["u"] <= 3
    assert last["v"] <= 6
    assert last["t"] == 53


async def test_workers_share_a_backlog_and_do_no_key_twice(db: asyncpg.Connection, settings: Settings) -> None:
    await db.execute(
        "do $$ begin execute format('alter database %I set ledger.gate = dawdle', current_database()); end $$"
    )
    await make_topic(db, "t", "perform ledger.stop_at_gate(); perform pg_sleep(0.002);", batch_keys=20)
    await enqueue(db, "t", *CROWD)
    async with on_duty(impatient(settings, workers=4)):
        await until_empty(db)
    assert await done(db, "t") == CROWD


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
    await make_topic(db, "t", "if v_call = 1 then perform pg_sleep(0.5); end if;", batch_keys=100)
    await enqueue(db, "t", *[key for key in CROWD for _ in range(2)])  # a head of n events holds n/2 keys
    async with on_duty(impatient(prompt, batch_target_s=0.05)):
        await until_empty(db)
    largest = await db.fetchval("select max(n) from (select count(*) as n from ledger.done group by call) as c")
    assert largest == 50


async def test_chained_topics_are_done_in_turn(db: asyncpg.Connection, prompt: Settings) -> None:
    await make_topic(db, "u")
    await make_topic(db, "t", "perform outbox.enqueue('u', p_keys, 'chained');")
    async with on_duty(prompt):
        await asleep(db)
        await enqueue(db, "t", *CROWD)
        await until_empty(db)
    assert await done(db, "u") == CROWD
