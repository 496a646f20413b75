"""outbox.fail_key and outbox.fold: what is owed when a recalculation fails, and when it is tried again."""

import asyncpg
import pytest
from engine import enqueue, failures, make_due, make_ledger, make_topic, next_batch, pending

FAIL = "select outbox.fail_key('t', $1, $2, $3, 'P0001', 'no', 'detail', 'hint', 'context')"
WAIT_S = "select extract(epoch from next_attempt_at - last_failed_at)::float8 from outbox.failure where key = $1"


@pytest.fixture(autouse=True)
async def topic(db: asyncpg.Connection) -> None:
    await make_ledger(db)
    await make_topic(db, "t", max_attempts=4, retry_base_s=10, retry_max_s=60)


async def fail(db: asyncpg.Connection, key: str = "k", *, charge: bool = True, event_count: int = 1) -> None:
    await db.execute(FAIL, key, charge, event_count)


async def test_the_row_tells_what_happened(db: asyncpg.Connection) -> None:
    await fail(db, event_count=3)
    row = (await failures(db))["k"]
    told = {name: row[name] for name in ("state", "attempts", "event_count", "sqlstate", "message", "detail", "hint")}
    assert told == {
        "state": "retrying",
        "attempts": 1,
        "event_count": 3,
        "sqlstate": "P0001",
        "message": "no",
        "detail": "detail",
        "hint": "hint",
    }
    assert row["context"] == "context"


async def test_a_further_failure_adds_up_and_keeps_the_first_time(db: asyncpg.Connection) -> None:
    await fail(db, event_count=3)
    first = (await failures(db))["k"]
    await fail(db, event_count=4)
    second = (await failures(db))["k"]
    assert (second["attempts"], second["event_count"]) == (2, 7)
    assert second["first_failed_at"] == first["first_failed_at"]
    assert second["last_failed_at"] > first["last_failed_at"]


async def test_an_endless_message_is_cut(db: asyncpg.Connection) -> None:
    endless = "é" * 9999
    query = "select outbox.fail_key('t', 'k', true, 1, 'P0001', $1, $1, $1, $1)"
    await db.execute(query, endless)
    row = (await failures(db))["k"]
    assert [len(row[name]) for name in ("message", "detail", "hint", "context")] == [1000, 1000, 1000, 4000]


@pytest.mark.parametrize(("times", "wait_s"), [(1, 10), (2, 20), (3, 40), (7, 60), (40, 60), (99, 60)])
async def test_the_wait_doubles_up_to_its_longest_and_is_jittered_by_up_to_a_half(
    db: asyncpg.Connection, times: int, wait_s: float
) -> None:
    await db.execute("select outbox.set_topic('t', p_max_attempts => 100)")
    waits = []
    for sample in range(30):
        await db.execute("select outbox.fail_key('t', $1, true, 1, null, null, null, null, null)", str(sample))
        await db.execute("update outbox.failure set attempts = $1 where key = $2", times - 1, str(sample))
        await fail(db, str(sample))
        waits.append(await db.fetchval(WAIT_S, str(sample)))
    assert wait_s / 2 - 0.1 <= min(waits)
    assert max(waits) <= wait_s + 0.1
    assert max(waits) - min(waits) > wait_s / 10  # thirty samples of a range of half of it


async def test_a_key_is_dead_after_its_last_attempt(db: asyncpg.Connection) -> None:
    for attempt in range(1, 5):
        await fail(db)
        row = (await failures(db))["k"]
        assert (row["attempts"], row["state"]) == (attempt, "dead" if attempt == 4 else "retrying")
    assert 59 <= await db.fetchval(WAIT_S, "k") <= 61  # the earliest try that an event can earn


async def test_what_is_not_charged_never_kills(db: asyncpg.Connection) -> None:
    for _ in range(9):
        await fail(db, charge=False)
    row = (await failures(db))["k"]
    assert (row["attempts"], row["state"]) == (0, "retrying")
    assert 4.9 <= await db.fetchval(WAIT_S, "k") <= 10.1


async def test_a_failure_of_a_topic_that_was_removed_leaves_nothing(db: asyncpg.Connection) -> None:
    await db.execute("delete from outbox.topic where topic = 't'")
    await fail(db)
    assert await failures(db) == {}


async def test_folding_counts_the_events_and_goes_on_owing(db: asyncpg.Connection) -> None:
    await fail(db, "a")
    await fail(db, "b", event_count=5)
    await enqueue(db, "t", "a", "a", "c", "b")
    assert await db.fetchval("select outbox.fold('t', array['a', 'b'])") == 3
    assert await pending(db) == ["c"]
    assert {key: row["event_count"] for key, row in (await failures(db)).items()} == {"a": 3, "b": 6}


async def test_folding_nothing_changes_nothing(db: asyncpg.Connection) -> None:
    await fail(db, "a")
    await db.execute("update outbox.failure set state = 'dead'")
    assert await db.fetchval("select outbox.fold('t', array['a'])") == 0
    assert await db.fetchval("select outbox.fold('t', '{}')") == 0
    assert (await failures(db))["a"]["state"] == "dead"


async def test_an_event_earns_a_dead_key_one_try_and_not_before_its_time(db: asyncpg.Connection) -> None:
    for _ in range(4):
        await fail(db)
    due_at = (await failures(db))["k"]["next_attempt_at"]

    await enqueue(db, "t", "k")
    folding = await next_batch(db)
    assert folding is not None
    assert folding.claim.keys == []
    row = (await failures(db))["k"]
    assert (row["state"], row["next_attempt_at"], row["attempts"]) == ("retrying", due_at, 4)

    await fail(db)  # the try it earned
    row = (await failures(db))["k"]
    assert row["state"] == "dead"
    assert row["next_attempt_at"] > due_at


async def test_an_event_for_a_key_that_has_been_dead_for_long_is_tried_at_once(db: asyncpg.Connection) -> None:
    for _ in range(4):
        await fail(db)
    await make_due(db)
    assert await next_batch(db) is None
    await enqueue(db, "t", "k")
    batch = await next_batch(db)
    assert batch is not None
    assert batch.claim.keys == ["k"]
    assert await failures(db) == {}
