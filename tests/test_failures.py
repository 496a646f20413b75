"""recalcd failures, as typed: what is shown, and what dropping one means."""

import json

import asyncpg
import pytest
from engine import enqueue, failures, impatient, make_ledger, make_topic, next_batch, on_duty, pending, until_empty
from servers import Connect
from typed import Recalcd, at_terminal, recalcd_on
from waiting import wait_until_blocked

from daemon.settings import Settings

KEYS = {
    "topic",
    "key",
    "state",
    "attempts",
    "event_count",
    "first_failed_at",
    "last_failed_at",
    "next_attempt_at",
    "sqlstate",
    "message",
    "detail",
    "hint",
    "context",
    "failing_s",
    "next_attempt_s",
}


@pytest.fixture
def recalcd(dsn: str) -> Recalcd:
    return recalcd_on(dsn)


@pytest.fixture
async def fails(db: asyncpg.Connection, settings: Settings) -> str:
    """Register a topic whose keys d1 and d2 are dead, and whose key r is retrying."""
    await make_ledger(db)
    trouble = """
        if p_keys && '{d1,d2,r}' then
            raise exception 'no such thing as %', p_keys[1]
                using errcode = 'P0042', detail = 'Row of ' || p_keys[1], hint = 'Look again.';
        end if;
    """
    await make_topic(db, "fails", trouble, max_attempts=1)
    await enqueue(db, "fails", "d1", "d1", "d2", "fine")
    async with on_duty(impatient(settings, workers=1)):
        await until_empty(db)
    await db.execute("select outbox.set_topic('fails', p_max_attempts => 5)")
    await enqueue(db, "fails", "r")
    async with on_duty(impatient(settings, workers=1)):
        await until_empty(db)
    return "fails"


async def test_list(recalcd: Recalcd, fails: str) -> None:
    listed = await recalcd("failures", "list")
    assert listed.exit_code == 1
    lines = listed.stdout.splitlines()
    assert lines[0] == "2 dead, 1 retrying"
    assert sorted(line.split()[:3] for line in lines[2:]) == [
        [fails, "d1", "dead"],
        [fails, "d2", "dead"],
        [fails, "r", "retrying"],
    ]
    assert "P0042 no such thing as d1" in listed.stdout


async def test_list_of_one_state_and_topic(recalcd: Recalcd, fails: str) -> None:
    retrying = await recalcd("failures", "list", fails, "--state", "retrying")
    assert (retrying.exit_code, retrying.stdout.splitlines()[0]) == (0, "0 dead, 1 retrying")
    assert (await recalcd("failures", "list", "reports.student")).stdout == "no key fails\n"
    assert "… and 2 more (--limit)" in (await recalcd("failures", "list", "--limit", "1")).stdout


async def test_the_json_of_list_and_show(recalcd: Recalcd, fails: str) -> None:
    listed = json.loads((await recalcd("failures", "list", "--json")).stdout)
    assert set(listed) == {"dead_count", "retrying_count", "failures"}
    assert [set(each) for each in listed["failures"]] == [KEYS] * 3
    shown = json.loads((await recalcd("failures", "show", fails, "d1", "--json")).stdout)
    assert set(shown) == KEYS
    assert (shown["attempts"], shown["event_count"], shown["sqlstate"]) == (1, 2, "P0042")


async def test_show_holds_the_error_in_full(recalcd: Recalcd, fails: str) -> None:
    shown = await recalcd("failures", "show", fails, "r")
    assert shown.exit_code == 0
    for part in ("retrying: next try in", "no such thing as r (P0042)", "Row of r", "Look again.", "at RAISE"):
        assert part in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("list", "nobody"), "no topic 'nobody'"),
        (("list", "--state", "sad"), "'sad' is not one of 'retrying', 'dead'"),
        (("list", "--limit", "0"), "x>=1"),
        (("show", "nobody", "d1"), "no topic 'nobody'"),
        (("show", "fails", "fine"), "Key 'fine' of topic 'fails' does not fail"),
        (("drop", "nobody", "d1", "--yes"), "no topic 'nobody'"),
        (("drop", "fails", "--yes"), "KEYs, or --dead"),
        (("drop", "fails", "d1", "--dead", "--yes"), "not both"),
        (("drop", "fails", "d1", "fine", "--yes"), "Nothing was dropped: key 'fine' of topic 'fails' does not fail."),
        (("drop", "fails", "d1"), "there is nobody to ask: say --yes"),
    ],
)
async def test_what_cannot_be_meant_is_a_usage_error(
    recalcd: Recalcd, db: asyncpg.Connection, fails: str, arguments: tuple[str, ...], says: str
) -> None:
    result = await recalcd("failures", *arguments)
    assert (result.exit_code, result.stdout) == (2, ""), fails
    assert says in " ".join(result.stderr.split())
    assert len(await failures(db)) == 3


async def test_drop_of_named_keys_and_of_all_dead_ones(recalcd: Recalcd, db: asyncpg.Connection, fails: str) -> None:
    rehearsed = await recalcd("failures", "drop", fails, "--dead", "--dry-run", "--json")
    told = json.loads(rehearsed.stdout)
    assert (sorted(told["keys"]), told["dry_run"]) == (["d1", "d2"], True)
    assert len(await failures(db)) == 3

    dropped = await recalcd("failures", "drop", fails, "r", "--yes")
    assert (dropped.exit_code, dropped.stdout) == (0, "dropped 1 failures of fails\n")
    dropped = await recalcd("failures", "drop", fails, "--dead", "--yes")
    assert (dropped.exit_code, dropped.stdout) == (0, "dropped 2 failures of fails\n")
    assert await failures(db) == {}
    assert (await recalcd("failures", "drop", fails, "--dead", "--yes")).exit_code == 1


@pytest.mark.parametrize(("answer", "left"), [("n", 3), ("y", 2)])
async def test_drop_asks_and_says_what_it_means(
    dsn: str, db: asyncpg.Connection, fails: str, answer: str, left: int
) -> None:
    async with at_terminal(dsn, "failures", "drop", fails, "d1") as drop:
        _, stderr = await drop.answer(answer)
        assert drop.process.returncode == (0 if answer == "y" else 1)
    assert "stays stale until its next event" in stderr
    assert len(await failures(db)) == left


async def test_a_dropped_key_is_done_with_its_next_event(
    recalcd: Recalcd, db: asyncpg.Connection, settings: Settings, fails: str
) -> None:
    await recalcd("failures", "drop", fails, "d1", "--yes")
    await make_topic(db, fails)  # mended
    await enqueue(db, fails, "d1")
    async with on_duty(impatient(settings, workers=1)):
        await until_empty(db)
    assert await db.fetchval("select outbox.is_fresh('fails', 'd1')")


async def test_dropping_waits_for_a_daemon_that_is_about_to_fold_an_event_into_it(
    recalcd: Recalcd, db: asyncpg.Connection, connect: Connect, fails: str
) -> None:
    """Else the event would be taken for a row that is gone, and nobody would owe it any more."""
    daemon = await connect()
    await enqueue(db, fails, "r")
    async with daemon.transaction():
        await daemon.execute("select outbox.lock_keys('fails', '{r}')")  # the first thing a claim does
        dropping = recalcd("failures", "drop", fails, "r", "--yes")
        await wait_until_blocked(db, "recalcd failures")
        assert await daemon.fetchval("select outbox.fold('fails', '{r}')") == 1
    assert (await dropping).exit_code == 0
    assert (await pending(db), "r" in await failures(db)) == ([], False)
    assert await next_batch(db) is None
