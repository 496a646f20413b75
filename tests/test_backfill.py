"""Backfill: every key once, through kills, beside live traffic; and what its command refuses."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from bulk import BULK, await_event_age, make_bulk, numbers, pretend_daemon, times_done
from engine import drain, enqueue, failures, pending
from school import found
from servers import Connect
from typed import Recalcd, recalcd_on
from waiting import eventually

from daemon import jobs
from daemon.backfill import Backfiller
from daemon.job_runner import THROTTLED, YIELDING, Chunk, Counts, JobRunner, pace_of
from daemon.jobs import Job
from daemon.keys import Topic, find_topic
from daemon.scope import Scope

MANY = 20_000
KILLS = 10


@pytest.fixture
def recalcd(dsn: str) -> Recalcd:
    return recalcd_on(dsn)


async def job_on(db: asyncpg.Connection, topic: Topic, key_count: int, **options: Any) -> Job:
    return await jobs.create(db, "backfill", topic, Scope(), key_count=key_count, **({"chunk_keys": 10} | options))


def runner_of(db: asyncpg.Connection, topic: Topic, job: Job, doing: Callable[[str], None]) -> JobRunner:
    return JobRunner(db, job, Backfiller(db, topic), pace_of(job, topic, 0.25), 0.25, doing=doing)


async def test_every_key_is_done_once_in_chunks(db: asyncpg.Connection) -> None:
    await make_bulk(db, 250, batch_keys=100)
    advances: list[int] = []
    job = await Backfiller(db, await find_topic(db, BULK), advanced=advances.append).run()
    assert (job.state, job.key_count, job.done_count, job.changed_count) == ("finished", 250, 250, 250)
    assert (job.skipped_count, job.failed_count, job.left_s) == (0, 0, None)
    assert (len(advances) >= 3, sum(advances)) == (True, 250)
    assert await times_done(db) == dict.fromkeys(numbers(1, 250), 1)
    kinds = await db.fetch("select distinct kind from outbox.batch")
    assert [row["kind"] for row in kinds] == ["backfill"]


async def test_ten_kills_and_no_key_of_a_finished_chunk_is_repeated(dsn: str, db: asyncpg.Connection) -> None:
    await make_bulk(db, MANY)
    moments = sorted(random.Random(4).sample(range(MANY * 9 // 10), KILLS))
    command = ["backfill", "--topic", BULK]
    for moment in moments:
        with started(dsn, *command) as process:
            await eventually(partial(progressed, db, moment), timeout_s=60)
            process.send_signal(signal.SIGKILL)
        command = ["job", "resume", "1"]
    done = await asyncio.to_thread(subprocess.run, arguments(*command), env=environment(dsn), check=True, timeout=60)
    assert done.returncode == 0
    job = await jobs.find(db, 1)
    assert (job.state, job.done_count, job.changed_count, job.error) == ("finished", MANY, MANY, None)
    assert await db.fetchval("select count(*) from bulk.done") == MANY
    assert await db.fetchval("select count(distinct key) from bulk.done") == MANY


def arguments(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cli", *arguments]


def environment(dsn: str) -> dict[str, str]:
    # Short chunks: a kill then finds many of them done, and one in hand.
    return os.environ | {"RECALCD_DATABASE_URL": dsn, "RECALCD_BATCH_TARGET_S": "0.05"}


def started(dsn: str, *command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        arguments(*command), env=environment(dsn), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )


async def progressed(db: asyncpg.Connection, past: int) -> bool:
    return bool(await db.fetchval("select done_count > $1 from outbox.job", past))


async def test_a_chunk_and_its_cursor_commit_together_or_not_at_all(db: asyncpg.Connection) -> None:
    await make_bulk(db, 5)

    async def vanish(_: Counts) -> None:
        raise ConnectionAbortedError

    backfiller = Backfiller(db, await find_topic(db, BULK))
    with pytest.raises(ConnectionAbortedError):
        await backfiller.do(Chunk(numbers(1, 3), frozenset()), vanish)
    assert await times_done(db) == {}


async def test_a_key_with_a_pending_event_is_left_to_the_daemon(db: asyncpg.Connection) -> None:
    await make_bulk(db, 20)
    await enqueue(db, BULK, "000007", "000007", "000009")
    job = await Backfiller(db, await find_topic(db, BULK)).run()
    assert (job.done_count, job.skipped_count, job.changed_count) == (20, 2, 18)
    assert await pending(db) == ["000007", "000007", "000009"]
    await drain(db)
    assert await times_done(db) == dict.fromkeys(numbers(1, 20), 1)


async def test_a_key_that_was_named_is_done_now_and_its_event_with_it(db: asyncpg.Connection) -> None:
    await make_bulk(db, 20)
    await enqueue(db, BULK, "000007")
    job = await Backfiller(db, await find_topic(db, BULK)).run(["000007", "000003", "000007"])
    assert (job.key_count, job.done_count, job.skipped_count) == (2, 2, 0)
    assert await times_done(db) == {"000003": 1, "000007": 1}
    assert await pending(db) == []


async def test_a_key_that_others_hold_gets_an_event_instead_of_being_forgotten(
    db: asyncpg.Connection, connect: Connect
) -> None:
    await make_bulk(db, 5)
    other = await connect()
    async with other.transaction():  # a verification, say, that will roll back
        await other.execute("select outbox.lock_keys($1, '{000002,000004}')", BULK)
        job = await Backfiller(db, await find_topic(db, BULK)).run()
    assert (job.done_count, job.skipped_count) == (5, 2)
    assert await pending(db) == ["000002", "000004"]
    await drain(db)
    assert await times_done(db) == dict.fromkeys(numbers(1, 5), 1)


async def test_keys_that_fail_are_noted_and_hold_up_nobody(db: asyncpg.Connection, recalcd: Recalcd) -> None:
    await make_bulk(db, 50, "if p_keys && '{000005,000033}' then raise exception 'bad key'; end if;")
    told = await recalcd("backfill", "--topic", BULK, "--json")
    assert told.exit_code == 1
    job = json.loads(told.stdout)
    assert (job["state"], job["done_count"], job["changed_count"], job["failed_count"]) == ("finished", 50, 48, 2)
    assert {key: row["attempts"] for key, row in (await failures(db)).items()} == {"000005": 1, "000033": 1}
    assert await times_done(db) == dict.fromkeys(sorted({*numbers(1, 50)} - {"000005", "000033"}), 1)


async def test_a_key_in_backoff_is_left_to_its_retry(db: asyncpg.Connection) -> None:
    await make_bulk(db, 3, "if p_keys && '{000002}' then raise exception 'bad key'; end if;")
    topic = await find_topic(db, BULK)
    assert (await Backfiller(db, topic).run()).failed_count == 1
    job = await Backfiller(db, topic).run()
    assert (job.failed_count, job.skipped_count) == (0, 1)
    assert (await failures(db))["000002"]["attempts"] == 1
    assert await pending(db) == []


async def test_it_yields_while_live_events_wait(db: asyncpg.Connection, connect: Connect) -> None:
    await make_bulk(db, 20)
    await pretend_daemon(db)
    await enqueue(db, BULK, "000020")
    await await_event_age(db, 1)
    topic, yielding = await find_topic(db, BULK), asyncio.Event()
    job = await job_on(db, topic, 20)
    runner = runner_of(await connect(), topic, job, lambda what: yielding.set() if what == YIELDING else None)
    running = asyncio.create_task(runner.run())
    async with asyncio.timeout(10):
        await yielding.wait()
    assert await times_done(db) == {}
    await drain(db)  # the daemon caught up
    assert (await running).state == "finished"
    assert set(await times_done(db)) == set(numbers(1, 20))


@pytest.mark.parametrize(
    "nobody_serves",
    ["delete from outbox.daemon", "update outbox.topic set paused_at = now() where topic = 'bulk.number'"],
)
async def test_it_yields_to_nobody_when_nobody_would_take_the_events(
    db: asyncpg.Connection, nobody_serves: str
) -> None:
    await make_bulk(db, 20)
    await pretend_daemon(db)
    await enqueue(db, BULK, "000020")
    await await_event_age(db, 60)
    await db.execute(nobody_serves)
    job = await Backfiller(db, await find_topic(db, BULK)).run()
    assert (job.state, job.skipped_count) == ("finished", 1)


async def test_the_rate_is_kept(db: asyncpg.Connection) -> None:
    await make_bulk(db, 30)
    topic = await find_topic(db, BULK)
    job = await job_on(db, topic, 30, rate_limit=30.0)
    did: set[str] = set()
    ended = await runner_of(db, topic, job, did.add).run()
    assert THROTTLED in did
    assert ended.ended_at is not None
    assert (ended.ended_at - ended.created_at).total_seconds() > 0.99


async def test_what_ends_it_early_is_noted_and_the_chunk_is_tried_by_halves(db: asyncpg.Connection) -> None:
    await make_bulk(db, 40)
    topic = await find_topic(db, BULK)
    job = await job_on(db, topic, 40, chunk_keys=40)
    await db.execute("alter procedure bulk.recalculate rename to elsewhere")
    with pytest.raises(asyncpg.PostgresError, match="missing"):
        await runner_of(db, topic, job, lambda _: None).run()
    stuck = await jobs.find(db, job.job_id)
    assert (stuck.status, stuck.done_count, "is missing" in (stuck.error or "")) == ("interrupted", 0, True)
    await db.execute("alter procedure bulk.elsewhere rename to recalculate")
    ended = await runner_of(db, topic, stuck, lambda _: None).run()
    assert (ended.state, ended.error, ended.done_count) == ("finished", None, 40)


async def test_a_function_that_does_not_heed_where_a_page_begins_ends_it(
    db: asyncpg.Connection, recalcd: Recalcd
) -> None:
    await make_bulk(db, 30, batch_keys=10)
    await db.execute("""
        create or replace function bulk.list_keys(p_after text, p_limit integer) returns setof text language sql stable
        as $$ select lpad(i::text, 6, '0') from generate_series(1, 30) as i $$
    """)
    for command in ("backfill", "verify"):
        told = await recalcd(command, "--topic", BULK)
        assert told.exit_code == 1
        assert "function bulk.list_keys of topic bulk.number lists key '000030' among those behind it" in told.stderr


async def test_a_cohort_and_missing_rows_choose_the_pupils(db: asyncpg.Connection, recalcd: Recalcd) -> None:
    school = await found(db, pupils=4)
    for pupil in school.pupils[2:]:
        await school.move_cohort(pupil, school.cohorts[1])
    await school.settle()
    await db.execute("delete from reports.report_student_rollups where student_id = any ($1)", school.pupils[1:3])

    async def chosen(*options: str) -> int:
        told = await recalcd("backfill", *options, "--dry-run", "--json")
        assert told.exit_code == 0, told.output
        return int(json.loads(told.stdout)["key_count"])

    assert await chosen() == 4
    assert await chosen("--missing") == 2
    assert await chosen("--cohort", "Cohort 1") == 2
    assert await chosen("--cohort", str(school.cohorts[1]).upper(), "--missing") == 1

    told = await recalcd("backfill", "--missing")
    assert (told.exit_code, "recalculated 2 keys of reports.student: 2 changed" in told.stdout) == (0, True)
    assert await chosen("--missing") == 0


async def test_a_dry_run_says_how_many_and_how_long_and_does_nothing(db: asyncpg.Connection, recalcd: Recalcd) -> None:
    await make_bulk(db, 30)
    told = await recalcd("backfill", "--topic", BULK, "--dry-run")
    assert told.stdout == ("would recalculate 30 keys of bulk.number; the history does not tell how long that takes\n")
    await Backfiller(db, await find_topic(db, BULK)).run(["000001"])
    told = await recalcd("backfill", "--topic", BULK, "--dry-run", "--rate", "3")
    assert told.stdout == "would recalculate 30 keys of bulk.number; recalculating them takes about 10.0 s\n"
    assert len(await times_done(db)) == 1


async def test_keys_come_from_a_file_or_from_stdin(db: asyncpg.Connection, recalcd: Recalcd, tmp_path: Path) -> None:
    await make_bulk(db, 30)
    path = tmp_path / "keys"
    path.write_text("000003\n\n  000001 \n000003\n")
    told = await recalcd("backfill", "--topic", BULK, "--keys-from", str(path), "--key", "000030")
    assert (told.exit_code, "recalculated 3 keys" in told.stdout) == (0, True)
    told = await recalcd("backfill", "--topic", BULK, "--keys-from", "-", stdin="000009\n")
    assert told.exit_code == 0
    assert await times_done(db) == dict.fromkeys(["000001", "000003", "000009", "000030"], 1)
    assert await db.fetchval("select count(*) from outbox.job_key") == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--topic", "nonsense"], "There is no topic 'nonsense'; registered are: bulk.number"),
        (["--key", "000099"], "Topic 'bulk.number' has no key '000099'. Nothing was changed."),
        (["--key", "x", "--key", "y"], "has no key 'x', nor 1 more."),
        (["--key", ""], "'' can't be a key"),
        (["--key", "000001", "--missing"], "not both"),
        (["--keys-from", "-", "--cohort", "7A"], "not both"),
        (["--keys-from", "-"], "No key was named"),
        (["--keys-from", "/nonsense"], "No such file"),
        (["--missing"], "Topic bulk.number can't list a part of its keys"),
        (["--rate", "0"], "not in the range"),
        (["--topic", "reports.student", "--cohort", "Year 99"], "There is no cohort 'Year 99'."),
    ],
)
async def test_what_can_not_be_meant_is_refused(
    db: asyncpg.Connection, recalcd: Recalcd, options: list[str], message: str
) -> None:
    await make_bulk(db, 20)
    told = await recalcd("backfill", "--topic", BULK, *options)
    assert (told.exit_code, told.stdout) == (2, "")
    assert message in told.stderr
    assert await db.fetchval("select count(*) from outbox.job") == 0


async def test_a_file_that_is_no_text_is_refused(db: asyncpg.Connection, recalcd: Recalcd, tmp_path: Path) -> None:
    await make_bulk(db, 20)
    path = tmp_path / "keys"
    path.write_bytes(b"\xff\xfe0\x001\n")
    told = await recalcd("backfill", "--topic", BULK, "--keys-from", str(path))
    assert (told.exit_code, "not text in UTF-8" in told.stderr) == (2, True)


async def test_a_topic_that_lists_no_keys_needs_them_named(db: asyncpg.Connection, recalcd: Recalcd) -> None:
    await make_bulk(db, 20, lists_keys=False)
    told = await recalcd("backfill", "--topic", BULK)
    assert (told.exit_code, "can't list its keys" in told.stderr) == (2, True)
    told = await recalcd("backfill", "--topic", BULK, "--key", "anything")
    assert told.exit_code == 0
    assert await times_done(db) == {"anything": 1}
