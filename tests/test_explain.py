"""recalcd explain: the story of a key, in each state it can be in."""

import json
from uuid import UUID, uuid4

import asyncpg
import pytest
from engine import drain, enqueue, impatient, make_ledger, make_topic, on_duty, until_empty
from typed import Recalcd, recalcd_on

from daemon.batch import Recalculation, prepare_history
from daemon.explain import explain
from daemon.sample_school import load
from daemon.settings import Settings

REPORTS = "reports.student"
KEPT = Recalculation(None, "live", keep_history=True)


@pytest.fixture
def recalcd(dsn: str) -> Recalcd:
    return recalcd_on(dsn)


@pytest.fixture
async def works(db: asyncpg.Connection) -> str:
    await make_ledger(db)
    await make_topic(db, "works", "if p_keys && '{bad}' then raise exception 'bad' using detail = 'Row 7'; end if;")
    await prepare_history(db, days_ahead=1)
    return "works"


async def test_fresh(recalcd: Recalcd, db: asyncpg.Connection, settings: Settings, works: str) -> None:
    await db.execute("select outbox.enqueue($1, 'a', 'essay.graded'), outbox.enqueue($1, 'a', 'essay.moved')", works)
    await enqueue(db, works, "b")
    async with on_duty(impatient(settings, workers=1)):
        await until_empty(db)
    told = await recalcd("explain", works, "a")
    assert told.exit_code == 0
    lines = told.stdout.splitlines()
    assert lines[0] == "works a: fresh, nothing is pending"
    assert "last found changed" in lines[1]
    assert "essay.graded, essay.moved" in lines[-1] or "essay.moved, essay.graded" in lines[-1]

    story = json.loads((await recalcd("explain", works, "a", "--json")).stdout)
    (batch,) = story["batches"]
    assert (batch["kind"], batch["event_count"], batch["key_count"], batch["changed"]) == ("live", 3, 2, True)
    UUID(batch["daemon_id"])
    assert isinstance(batch["pid"], int)
    assert batch["waited_s"] >= 0


async def test_json_has_the_documented_keys(db: asyncpg.Connection, works: str) -> None:
    assert set((await explain(db, works, "a", limit=5)).as_json()) == {
        "topic",
        "key",
        "state",
        "is_registered",
        "paused_at",
        "paused_reason",
        "is_fresh",
        "event_count",
        "crash_count",
        "busy_with",
        "events",
        "failure",
        "batches",
        "cached",
    }


async def test_pending(db: asyncpg.Connection, works: str) -> None:
    await db.execute("select outbox.enqueue($1, 'a', 'essay.graded')", works)
    await enqueue(db, works, "a", "a", "a")
    story = await explain(db, works, "a", limit=2)
    assert (story.state, story.is_good, story.now.is_fresh, story.now.event_count) == ("pending", True, False, 4)
    assert [each.reason for each in story.events] == ["essay.graded", None]
    assert story.events[0].age_s >= story.events[1].age_s > 0


async def test_running_names_the_backend(recalcd: Recalcd, db: asyncpg.Connection, works: str) -> None:
    await enqueue(db, works, "a")
    async with db.transaction():
        await db.execute("select outbox.claim_keys($1, '{a}')", works)
        told = await recalcd("explain", works, "a")
    assert told.exit_code == 0
    assert f"being recalculated now, by backend {db.get_server_pid()}" in told.stdout


async def test_paused(recalcd: Recalcd, db: asyncpg.Connection, works: str) -> None:
    await enqueue(db, works, "a")
    await db.execute("select outbox.pause_topic($1, 'exams')", works)
    told = await recalcd("explain", works, "a")
    assert told.exit_code == 1
    assert "STALE, 1 event waits because the topic is paused" in told.stdout
    assert "UTC: exams" in told.stdout


@pytest.mark.parametrize(("attempts", "says"), [(1, "STALE, dead after 1 attempt"), (5, "fails and is retried")])
async def test_failing(
    recalcd: Recalcd, db: asyncpg.Connection, settings: Settings, works: str, *, attempts: int, says: str
) -> None:
    await db.execute("select outbox.set_topic($1, p_max_attempts => $2)", works, attempts)
    await enqueue(db, works, "bad")
    async with on_duty(impatient(settings, workers=1)):
        await until_empty(db)
    told = await recalcd("explain", works, "bad")
    assert told.exit_code == 1
    assert says in told.stdout.splitlines()[0]
    assert "bad (P0001)" in told.stdout
    assert "Row 7" in told.stdout


async def test_of_a_suspect_it_says_so(db: asyncpg.Connection, recalcd: Recalcd, works: str) -> None:
    await db.execute("select outbox.suspect_keys($1, '{a}')", works)
    assert "1 batch vanished with this key" in (await recalcd("explain", works, "a")).stdout


async def test_an_unknown_key(recalcd: Recalcd, works: str) -> None:
    told = await recalcd("explain", works, "nobody")
    assert (told.exit_code, "Is it spelt right?" in told.stdout) == (1, True)


async def test_a_key_that_is_no_uuid_is_unknown_too(recalcd: Recalcd, works: str) -> None:
    told = await recalcd("explain", REPORTS, "nobody")
    assert (told.exit_code, "Is it spelt right?" in told.stdout) == (1, True), works


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(("nowhere", "a"), "no topic 'nowhere'"), (("works", "a", "--limit", "0"), "1<=x<=1000"), (("works",), "'KEY'")],
)
async def test_what_cannot_be_meant_is_a_usage_error(
    recalcd: Recalcd, works: str, arguments: tuple[str, ...], says: str
) -> None:
    told = await recalcd("explain", *arguments)
    assert (told.exit_code, told.stdout) == (2, ""), works
    assert says in told.stderr


async def test_a_topic_that_nobody_registered_but_has_events(recalcd: Recalcd, db: asyncpg.Connection) -> None:
    await db.execute("insert into outbox.event (topic, key) values ('lost', 'a')")
    told = await recalcd("explain", "lost", "a")
    assert (told.exit_code, "nobody registered this topic" in told.stdout) == (1, True)


async def test_of_a_pupil_it_tells_when_the_rows_were_written(db: asyncpg.Connection) -> None:
    await load(db, students=3, groups=1, timeframes=2, units=2, feedback=20)
    student_id = await db.fetchval("select student_id::text from school.student limit 1")
    await prepare_history(db, days_ahead=1)
    await enqueue(db, REPORTS, student_id)
    await drain(db, KEPT)
    story = await explain(db, REPORTS, student_id, limit=3)
    assert story.state == "fresh"
    assert story.cached is not None
    assert story.cached.row_count > 0
    assert story.cached.calculated_at is not None
    assert (await explain(db, REPORTS, str(uuid4()), limit=3)).state == "unknown"
