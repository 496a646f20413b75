"""What a daemon does with batches that fail. The procedures misbehave as procedures do."""

from typing import Any

import asyncpg
import pytest
from engine import (
    call_count,
    done,
    enqueue,
    events_of,
    failures,
    impatient,
    make_due,
    make_ledger,
    make_topic,
    mutate,
    numbered,
    on_duty,
    pending,
    until_empty,
)
from waiting import eventually

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


MISSING = "perform no_such_column from ledger.entry;"


async def test_a_key_that_alone_misses_a_column_dies_and_stops_nobody(db: asyncpg.Connection, prompt: Settings) -> None:
    await if_bad(db, MISSING, max_attempts=3, retry_base_s=1)

    async def is_dead() -> bool:
        await make_due(db)
        await enqueue(db, "t", "k000")  # others go on getting through
        return [row["state"] for row in (await failures(db)).values()] == ["dead"]

    async with on_duty(impatient(prompt, poll_interval_s=0.05)):
        await enqueue(db, "t", *CROWD)
        await eventually(is_dead, timeout_s=30)
        await until_empty(db)
    assert set(await done(db, "t")) == set(REST)
    row = (await failures(db))[BAD]
    assert (row["attempts"], row["sqlstate"]) == (3, "42703")


@pytest.mark.parametrize("keys", [CROWD[:3], [BAD]], ids=["several keys", "one key"])
async def test_a_column_that_all_keys_miss_is_charged_to_none_and_its_return_is_noticed(
    db: asyncpg.Connection, prompt: Settings, logged: list[Any], keys: list[str]
) -> None:
    await make_topic(db, "t", MISSING, max_attempts=1, retry_base_s=1)
    await make_topic(db, "u")
    async with on_duty(impatient(prompt, poll_interval_s=0.05)):
        await enqueue(db, "t", *keys)

        async def is_told(count: int = 3) -> bool:
            await make_due(db)
            await enqueue(db, "u", "k")  # that another topic is well proves nothing
            return len(events_of(logged, telemetry.TOPIC_BROKEN, telemetry.KEY_FAILED)) >= count

        await eventually(is_told, timeout_s=30)
        assert {row["attempts"] for row in (await failures(db)).values()} <= {0}
        await db.execute("alter table ledger.entry add no_such_column text")
        await until_empty(db)

        async def is_clear() -> bool:
            return not await failures(db)

        await eventually(is_clear, timeout_s=30)
    assert set(await done(db, "t")) == set(keys)
    assert not events_of(logged, telemetry.KEY_DIED)


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
    await make_topic(db, "t", "if v_call < 40 then raise 'full' using errcode = '53100'; end if;")
    await enqueue(db, "t", *CROWD)
    async with on_duty(prompt):
        await until_empty(db)
    assert await done(db, "t") == CROWD
    assert await failures(db) == {}
    assert {each["sqlstate"] for each in events_of(logged, telemetry.BATCH_RETRIED)} == {"53100"}


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


async def test_a_lock_table_that_is_full_makes_all_batches_smaller(db: asyncpg.Connection, prompt: Settings) -> None:
    """The locks are taken by the claim, before anybody knows the topic whose batch was too large."""
    await make_topic(db, "t")
    full = "if cardinality(p_keys) > 100 then raise 'out of shared memory' using errcode = '53200'; end if;"
    await mutate(db, "claim_keys", "    v_locked := array(", f"    {full} v_locked := array(")
    await enqueue(db, "t", *CROWD)
    async with on_duty(prompt):
        await until_empty(db)
    assert await done(db, "t") == CROWD
