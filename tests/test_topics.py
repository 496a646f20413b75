"""The registry: recalcd topic, as typed, and what it does to daemons that run."""

import json

import asyncpg
import pytest
from engine import (
    asleep,
    done,
    enqueue,
    failures,
    impatient,
    make_ledger,
    make_topic,
    next_batch,
    numbered,
    on_duty,
    pending,
    refused,
    until_empty,
)
from servers import Connect
from typed import Recalcd, at_terminal, recalcd_on
from waiting import eventually

from daemon.settings import Settings

REPORTS = "reports.student"


@pytest.fixture
def recalcd(dsn: str) -> Recalcd:
    return recalcd_on(dsn)


@pytest.fixture
async def works(db: asyncpg.Connection) -> str:
    """Register a topic that works."""
    await make_ledger(db)
    await make_topic(db, "works")
    return "works"


async def test_list_shows_settings_and_json_has_the_columns_as_keys(recalcd: Recalcd, works: str) -> None:
    listed = await recalcd("topic", "list")
    assert listed.exit_code == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["TOPIC", "ledger.account", REPORTS, works]
    entry = json.loads((await recalcd("topic", "list", "--json")).stdout)[-1]
    assert entry == {
        "topic": works,
        "recalculate": "ledger.works",
        "list_keys": None,
        "max_attempts": 8,
        "retry_base_s": 5,
        "retry_max_s": 3600,
        "batch_keys": 500,
        "statement_timeout_s": 30,
        "describe": None,
        "paused_at": None,
        "paused_reason": None,
    }


async def test_an_empty_registry_says_what_to_do(recalcd: Recalcd, db: asyncpg.Connection) -> None:
    await db.execute("delete from outbox.topic")
    assert "recalcd topic add" in (await recalcd("topic", "list")).stdout


async def test_add_and_set(recalcd: Recalcd, db: asyncpg.Connection, works: str) -> None:
    added = await recalcd("topic", "add", "new", "--recalculate", f"ledger.{works}", "--batch-keys", "7")
    assert (added.exit_code, added.stdout) == (0, "registered new\n")
    changed = await recalcd("topic", "set", "new", "--max-attempts", "2", "--list-keys", "reports.list_students")
    assert (changed.exit_code, changed.stdout) == (0, "changed new\n")
    row = await db.fetchrow("select batch_keys, max_attempts, list_keys from outbox.topic where topic = 'new'")
    assert row is not None
    assert tuple(row) == (7, 2, "reports.list_students")


@pytest.mark.parametrize(
    "arguments",
    [
        ("add", "new", "--recalculate", "ledger.works"),
        ("set", "works", "--batch-keys", "7"),
        ("pause", "works"),
        ("resume", "works"),
        ("remove", "works"),
    ],
)
async def test_a_dry_run_changes_nothing(
    recalcd: Recalcd, db: asyncpg.Connection, works: str, arguments: tuple[str, ...]
) -> None:
    before = await db.fetch("select * from outbox.topic order by topic")
    result = await recalcd("topic", *arguments, "--dry-run")
    assert (result.exit_code, result.stdout.split()[0]) == (0, "would"), works
    assert await db.fetch("select * from outbox.topic order by topic") == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("add", "works", "--recalculate", "ledger.works"), "registered already"),
        (
            ("add", "new", "--recalculate", "nowhere.nothing"),
            "no routine 'nowhere.nothing' can recalculate keys. Name it",
        ),
        (("add", "new", "--recalculate", "nothing"), "Name it schema.name"),
        (("add", "new", "--recalculate", "ledger.works", "--list-keys", "ledger.works"), "can list keys. Name it"),
        (("add", "x" * 101, "--recalculate", "ledger.works"), "1 to 100 characters"),
        (("add", "new"), "Missing option '--recalculate'"),
        (("add", "new", "--recalculate", "ledger.works", "--batch-keys", "1001"), "1<=x<=1000"),
        (("set", "works"), "Say what to change"),
        (("set", "nobody", "--batch-keys", "5"), "no topic 'nobody'; registered are: ledger.account, reports.student"),
        (("set", "works", "--retry-max-s", "1"), "--retry-max-s must not be less than --retry-base-s"),
        (("pause", "nobody"), "no topic 'nobody'"),
        (("resume", "nobody"), "no topic 'nobody'"),
        (("remove", "nobody", "--yes"), "no topic 'nobody'"),
        (("remove", "works"), "there is nobody to ask: say --yes"),
    ],
)
async def test_what_cannot_be_meant_is_a_usage_error(
    recalcd: Recalcd, db: asyncpg.Connection, works: str, arguments: tuple[str, ...], says: str
) -> None:
    before = await db.fetch("select * from outbox.topic order by topic")
    result = await recalcd("topic", *arguments)
    assert (result.exit_code, result.stdout) == (2, ""), works
    assert says in " ".join(result.stderr.split())
    assert await db.fetch("select * from outbox.topic order by topic") == before


async def test_pausing_stops_running_daemons_at_once_and_resuming_wakes_them(
    recalcd: Recalcd, db: asyncpg.Connection, settings: Settings, works: str
) -> None:
    await make_topic(db, "other")
    async with on_duty(impatient(settings, heartbeat_s=600.0)):  # it looks again with every heartbeat
        await asleep(db)
        assert "its events wait" in (await recalcd("topic", "pause", works, "--reason", "exams")).stdout
        await enqueue(db, works, "a")
        await enqueue(db, "other", "b")
        await until_empty(db, "other")  # the daemon was awake, and had turns enough
        await asleep(db)
        assert await pending(db) == ["a"]

        assert (await recalcd("topic", "resume", works)).stdout == f"resumed {works}\n"
        await until_empty(db)  # the poll is a minute away: resuming rang
    assert await done(db, works) == ["a"]


async def test_a_busy_daemon_takes_nothing_more_once_the_pause_is_committed(
    recalcd: Recalcd, db: asyncpg.Connection, settings: Settings, works: str
) -> None:
    await db.execute("select outbox.set_topic($1, p_batch_keys => 1)", works)
    await make_topic(db, "other")
    await enqueue(db, works, *numbered(900))
    async with on_duty(impatient(settings, workers=2)):
        await until_done(db, works)
        await recalcd("topic", "pause", works)
        await until_no_batch_is_in_hand(db)
        left = await pending(db, works)
        assert 0 < len(left) < 900
        await enqueue(db, "other", "a")
        await until_empty(db, "other")
        assert await pending(db, works) == left
    async with on_duty(impatient(settings)):  # a pause survives a restart
        await asleep(db)
    assert await pending(db, works) == left
    assert sorted([*left, *set(await done(db, works))]) == numbered(900)  # a set: outbox.claim may have one done twice


async def until_done(db: asyncpg.Connection, topic: str) -> None:
    """Wait until something was done."""

    async def is_done() -> bool:
        return bool(await done(db, topic))

    await eventually(is_done)


async def until_no_batch_is_in_hand(db: asyncpg.Connection) -> None:
    """Wait until what began before now has ended."""

    async def is_over() -> bool:
        return bool(
            await db.fetchval(
                "select count(*) = 0 from pg_stat_activity where datname = current_database() "
                "and application_name = 'recalcd worker' and xact_start < $1",
                now,
            )
        )

    now = await db.fetchval("select clock_timestamp()")
    await eventually(is_over)


async def test_pausing_twice_keeps_the_time_and_the_reason(
    recalcd: Recalcd, db: asyncpg.Connection, works: str
) -> None:
    await recalcd("topic", "pause", works, "--reason", "exams")
    since = await db.fetchval("select paused_at from outbox.topic where topic = $1", works)
    again = await recalcd("topic", "pause", works)
    assert (again.exit_code, again.stdout) == (0, f"{works} was paused already\n")
    row = await db.fetchrow("select paused_at, paused_reason from outbox.topic where topic = $1", works)
    assert row is not None
    assert tuple(row) == (since, "exams")
    assert "UTC: exams" in (await recalcd("topic", "list")).stdout
    assert (await recalcd("topic", "resume", REPORTS)).stdout == f"{REPORTS} was not paused\n"


async def test_remove_refuses_to_lose_events_or_failures(recalcd: Recalcd, db: asyncpg.Connection) -> None:
    await make_ledger(db)
    await make_topic(db, "fails", "raise exception 'never';")
    await enqueue(db, "fails", "a", "b", "b")
    with pytest.raises(Exception, match="withheld"):
        await next_batch(db)
    await db.execute("select outbox.fail_key('fails', 'c', true, 1, 'P0001', 'never', null, null, null)")

    refusal = await recalcd("topic", "remove", "fails", "--yes")
    assert (refusal.exit_code, refusal.stdout) == (1, "")
    assert "Nothing was removed: topic fails has 3 events and 1 failed keys." in refusal.stderr
    with refused("RC010", "Let a daemon finish them"):
        await db.execute("select outbox.remove_topic('fails')")
    assert (await recalcd("topic", "remove", "fails", "--lose-events")).exit_code == 2  # nobody to ask

    removed = await recalcd("topic", "remove", "fails", "--lose-events", "--yes")
    assert (removed.exit_code, removed.stdout) == (0, "removed fails; lost 3 events and 1 failed keys\n")
    assert (await pending(db, "fails"), await failures(db)) == ([], {})
    with refused("RC002", "not registered"):
        await enqueue(db, "fails", "a")


async def test_ctrl_c_is_an_answer(dsn: str, db: asyncpg.Connection, works: str) -> None:
    async with at_terminal(dsn, "topic", "remove", works) as remove:
        assert await remove.interrupt() == 130
    assert await db.fetchval("select count(*) from outbox.topic where topic = $1", works) == 1


@pytest.mark.parametrize(("answer", "exit_code"), [("n", 1), ("y", 0)])
async def test_remove_asks_on_a_terminal(
    dsn: str, db: asyncpg.Connection, works: str, answer: str, exit_code: int
) -> None:
    async with at_terminal(dsn, "topic", "remove", works) as remove:
        _, stderr = await remove.answer(answer)
        assert remove.process.returncode == exit_code
    assert "Writers that enqueue for it will fail." in stderr
    assert await db.fetchval("select count(*) from outbox.topic where topic = $1", works) == exit_code


async def test_remove_waits_for_a_writer_in_flight_only_so_long_and_then_sees_its_event(
    recalcd: Recalcd, connect: Connect, works: str
) -> None:
    writer = await connect()
    async with writer.transaction():
        await enqueue(writer, works, "a")
        blocked = await recalcd("topic", "remove", works, "--yes")
        assert (blocked.exit_code, "Try again" in blocked.stderr) == (1, True)
    refusal = await recalcd("topic", "remove", works, "--yes")
    assert "has 1 events and 0 failed keys" in refusal.stderr


@pytest.mark.parametrize("call", ["pause_topic", "resume_topic", "remove_topic"])
async def test_the_routines_refuse_unknown_topics(db: asyncpg.Connection, call: str) -> None:
    with refused("RC002", "is not registered"):
        await db.execute(f"select outbox.{call}('nobody')")
