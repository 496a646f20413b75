"""outbox.suspect_keys, outbox.single_out and outbox.convict: who made a batch vanish."""

import asyncpg
import pytest
from engine import enqueue, failures, make_due, make_ledger, make_topic, next_batch, numbered
from servers import Connect

CROWD = numbered(500)


@pytest.fixture(autouse=True)
async def topic(db: asyncpg.Connection) -> None:
    await make_ledger(db)
    await make_topic(db, "t", retry_max_s=3600)


async def single_out(db: asyncpg.Connection, keys: list[str]) -> tuple[list[str], bool]:
    row = await db.fetchrow("select keys, suspects from outbox.single_out('t', $1, 500)", keys)
    assert row is not None
    return row["keys"], row["suspects"]


async def crash(db: asyncpg.Connection, keys: list[str]) -> None:
    await db.execute("select outbox.suspect_keys('t', $1)", keys)


async def test_without_suspects_the_batch_is_as_it_was(db: asyncpg.Connection) -> None:
    await db.execute("select outbox.suspect_keys('another topic', array['k000'])")
    assert await single_out(db, CROWD) == (CROWD, False)


async def test_suspects_are_tried_in_ever_smaller_company(db: asyncpg.Connection) -> None:
    company, sizes = CROWD, []
    for _ in range(4):
        await crash(db, company)
        company, suspects = await single_out(db, CROWD)
        assert suspects
        sizes.append(len(company))
    assert sizes == [62, 7, 1, 1]


async def test_the_most_suspect_come_first_and_the_innocent_wait(db: asyncpg.Connection) -> None:
    await crash(db, CROWD)
    await crash(db, CROWD[62:124])
    assert (await single_out(db, CROWD))[0] == CROWD[62:69]


async def test_a_key_that_vanished_a_batch_alone_is_charged_and_waits(db: asyncpg.Connection) -> None:
    for company in (CROWD, CROWD[:62], CROWD[:7], CROWD[:1]):
        await crash(db, company)
    await enqueue(db, "t", *CROWD[:2])
    first = await next_batch(db)
    assert first is not None
    assert (first.claim.keys, first.claim.folded_count) == ([], 1)
    row = (await failures(db))["k000"]
    assert (row["state"], row["attempts"], row["sqlstate"]) == ("retrying", 1, "RC006")
    assert "4 times" in row["message"]


async def test_a_crash_in_company_charges_nobody(db: asyncpg.Connection) -> None:
    for _ in range(9):
        await crash(db, CROWD[:2])
    await single_out(db, CROWD)
    assert await failures(db) == {}


async def test_the_first_crash_of_a_key_that_was_alone_by_chance_charges_nobody(db: asyncpg.Connection) -> None:
    await crash(db, CROWD[:1])
    await single_out(db, CROWD)
    assert await failures(db) == {}


async def test_each_crash_is_charged_once(db: asyncpg.Connection) -> None:
    await crash(db, CROWD[:1])
    await crash(db, CROWD[:1])
    for _ in range(3):
        await single_out(db, CROWD)
    assert (await failures(db))["k000"]["attempts"] == 1


async def test_three_crashes_alone_are_death_until_the_longest_wait_is_over(db: asyncpg.Connection) -> None:
    await crash(db, CROWD[:2])
    for _ in range(3):
        await crash(db, CROWD[:1])
        await single_out(db, CROWD)
    row = (await failures(db))["k000"]
    assert (row["state"], row["attempts"]) == ("dead", 3)
    wait_s = (row["next_attempt_at"] - row["last_failed_at"]).total_seconds()
    assert 3599 <= wait_s <= 3601  # each try may cost every session of the server its connection


async def test_a_key_that_somebody_works_on_is_not_convicted_meanwhile(
    db: asyncpg.Connection, connect: Connect
) -> None:
    await crash(db, CROWD[:1])
    await crash(db, CROWD[:1])
    other = await connect()
    async with other.transaction():
        await other.execute("select outbox.lock_keys('t', array['k000'])")
        await single_out(db, CROWD)
        assert await failures(db) == {}


async def test_a_batch_that_settles_clears_its_keys(db: asyncpg.Connection) -> None:
    await crash(db, CROWD[:100])
    await enqueue(db, "t", *CROWD[:100])
    batches = [await next_batch(db), await next_batch(db)]
    assert [len(batch.claim.keys) for batch in batches if batch] == [62, 38]
    assert await db.fetchval("select count(*) from outbox.suspect") == 0


async def test_a_due_retry_of_a_killer_runs_alone(db: asyncpg.Connection) -> None:
    for company in (CROWD, CROWD[:62], CROWD[:7], CROWD[:1]):
        await crash(db, company)
    await enqueue(db, "t", "k000")
    await next_batch(db)
    await enqueue(db, "t", "other")
    await make_due(db)
    async with db.transaction():
        row = await db.fetchrow("select * from outbox.claim('{}', '', true)")
        assert row is not None
        assert (row["keys"], row["suspects"]) == (["k000"], True)
