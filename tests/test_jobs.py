"""Jobs from another terminal: list, show, pause, resume, cancel."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from bulk import BULK, make_bulk, numbers, times_done
from servers import Connect
from typed import Recalcd, at_terminal, recalcd_on
from waiting import eventually

from daemon import jobs
from daemon.backfill import Backfiller
from daemon.job_runner import JobRunner, pace_of
from daemon.jobs import Job
from daemon.keys import find_topic
from daemon.scope import Scope

KEYS = 300


@pytest.fixture
def recalcd(dsn: str) -> Recalcd:
    return recalcd_on(dsn)


@pytest.fixture
async def job(db: asyncpg.Connection) -> Job:
    """Create a backfill that nobody runs yet."""
    await make_bulk(db, KEYS)
    return await jobs.create(db, "backfill", await find_topic(db, BULK), Scope(), key_count=KEYS, chunk_keys=100)


@asynccontextmanager
async def slow_backfill(dsn: str, db: asyncpg.Connection) -> AsyncIterator[subprocess.Popen[str]]:
    """Run a backfill in another process, so slow that it is still under way whatever happens here."""
    process = subprocess.Popen(  # noqa: ASYNC220  # starts at once
        [sys.executable, "-m", "cli", "backfill", "--topic", BULK, "--rate", "20"],
        env=os.environ | {"RECALCD_DATABASE_URL": dsn},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    async def has_begun() -> bool:
        return bool(await db.fetchval("select exists (select from outbox.job where done_count > 0)"))

    with process:
        try:
            await eventually(has_begun)
            yield process
        finally:
            process.kill()


async def test_it_is_paused_resumed_and_cancelled_while_it_runs(
    dsn: str, db: asyncpg.Connection, recalcd: Recalcd
) -> None:
    await make_bulk(db, 1000)
    async with slow_backfill(dsn, db) as process:
        (running,) = await jobs.list_jobs(db)
        assert (running.status, running.is_held, running.rate_limit) == ("running", True, 20)
        assert running.left_s is None or running.left_s > 0

        told = await recalcd("job", "resume", "1")
        assert (told.exit_code, "is being run by another process already" in told.stderr) == (2, True)

        assert (await recalcd("job", "pause", "1")).stdout == "paused job 1\n"
        assert (await recalcd("job", "pause", "1")).stdout == "job 1 was paused already\n"
        paused = await jobs.find(db, 1)
        assert (paused.status, paused.is_held) == ("paused", True)

        assert (await recalcd("job", "resume", "1")).stdout == "resumed job 1, where it waits\n"

        async def went_on() -> bool:
            return (await jobs.find(db, 1)).done_count > paused.done_count + 20

        await eventually(went_on)
        assert (await recalcd("job", "cancel", "1")).exit_code == 2
        told = await recalcd("job", "cancel", "1", "--yes")
        assert (told.exit_code, told.stdout.startswith("cancelled job 1 with ")) == (0, True)
        printed, _ = await asyncio.to_thread(process.communicate, timeout=30)
        assert process.returncode == 1
        assert printed.startswith("job 1 cancelled: recalculated ")
    ended = await jobs.find(db, 1)
    assert (ended.status, ended.is_held, ended.left_s) == ("cancelled", False, None)
    assert await times_done(db) == dict.fromkeys(numbers(1, ended.done_count), 1)


async def test_a_paused_job_does_nothing_until_it_is_resumed(
    db: asyncpg.Connection, connect: Connect, recalcd: Recalcd, job: Job
) -> None:
    await jobs.change(db, job.job_id, "paused")
    running = asyncio.create_task(_resume_by_hand(await connect(), job))

    async def is_held() -> bool:
        return (await jobs.find(db, job.job_id)).is_held

    await eventually(is_held)
    assert (await jobs.find(db, job.job_id)).done_count == 0
    await recalcd("job", "resume", str(job.job_id))
    assert (await running).state == "finished"


async def _resume_by_hand(connection: asyncpg.Connection, job: Job) -> Job:
    topic = await find_topic(connection, BULK)
    async with jobs.holding(connection, job.job_id):
        return await JobRunner(connection, job, Backfiller(connection, topic), pace_of(job, topic, 1), 1).run()


async def test_a_job_that_nobody_runs_is_interrupted_and_goes_on_here(
    db: asyncpg.Connection, recalcd: Recalcd, job: Job
) -> None:
    told = await recalcd("job", "show", str(job.job_id))
    assert told.exit_code == 1
    assert told.stdout.startswith(f"Job {job.job_id}, a backfill, is interrupted.")
    assert told.stdout.endswith(f"Go on with: recalcd job resume {job.job_id}\n")

    assert "would resume" in (await recalcd("job", "resume", str(job.job_id), "--dry-run")).stdout
    told = await recalcd("job", "resume", str(job.job_id), "--json")
    assert (told.exit_code, json.loads(told.stdout)["status"]) == (0, "finished")
    assert await times_done(db) == dict.fromkeys(numbers(1, KEYS), 1)
    assert (await recalcd("job", "show", str(job.job_id))).exit_code == 0


async def test_one_holds_a_job_and_the_next_waits_for_the_killed_one_to_be_gone(
    db: asyncpg.Connection, connect: Connect, job: Job
) -> None:
    dying = await connect()
    await dying.execute(jobs.HOLD_JOB, job.job_id)
    async with jobs.holding(db, job.job_id, patience_s=0) as is_held:
        assert not is_held
    waiting = asyncio.create_task(_hold(db, job))
    dying.terminate()
    assert await waiting
    assert not (await jobs.find(db, job.job_id)).is_held


async def _hold(connection: asyncpg.Connection, job: Job) -> bool:
    async with jobs.holding(connection, job.job_id) as is_held:
        return is_held


async def test_the_list_shows_what_has_not_ended_and_the_latest_of_the_rest(
    db: asyncpg.Connection, recalcd: Recalcd, job: Job
) -> None:
    assert (await recalcd("job", "list")).stdout.splitlines()[1].split()[:7] == [
        "1", "backfill", BULK, "interrupted", "0", "300", "0",
    ]  # fmt: skip
    topic = await find_topic(db, BULK)
    for _ in range(jobs.MOST_ENDED + 1):
        await Backfiller(db, topic).run(["000001"])
    listed = json.loads((await recalcd("job", "list", "--json")).stdout)
    assert [each["job_id"] for each in listed] == [job.job_id, *range(3, 3 + jobs.MOST_ENDED)]


async def test_the_json_of_a_job_has_the_documented_keys(recalcd: Recalcd, job: Job) -> None:
    shown = json.loads((await recalcd("job", "show", str(job.job_id), "--json")).stdout)
    assert set(shown) == {
        "job_id", "kind", "topic", "part", "is_named", "state", "status", "cursor", "key_count", "done_count",
        "changed_count", "skipped_count", "failed_count", "chunk_keys", "rate_limit", "keys_per_s", "left_s", "error",
        "created_at", "advanced_at", "ended_at", "is_held",
    }  # fmt: skip


async def test_without_jobs_the_list_says_so(recalcd: Recalcd) -> None:
    assert (await recalcd("job", "list")).stdout == "no jobs\n"


@pytest.mark.parametrize("verb", ["show", "pause", "resume", "cancel"])
@pytest.mark.parametrize(
    ("number", "message"),
    [("7", "There is no job 7; see `recalcd job list`."), (str(2**40), "no job"), ("0", "range"), ("x", "integer")],
)
async def test_an_unknown_job_is_refused(recalcd: Recalcd, verb: str, number: str, message: str) -> None:
    told = await recalcd("job", verb, number)
    assert (told.exit_code, told.stdout) == (2, "")
    assert message in told.stderr


@pytest.mark.parametrize("verb", ["pause", "resume", "cancel"])
async def test_a_job_that_has_ended_stays_as_it_is(
    db: asyncpg.Connection, recalcd: Recalcd, job: Job, verb: str
) -> None:
    await jobs.change(db, job.job_id, "cancelled")
    for option in ([], ["--dry-run"]):
        told = await recalcd("job", verb, str(job.job_id), *option)
        assert (told.exit_code, told.stdout) == (2, "")
        assert f"Job {job.job_id} is cancelled" in told.stderr


async def test_a_job_is_cancelled_with_its_keys_or_not_at_all(
    db: asyncpg.Connection, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or its keys would stay for ever: a job that has ended can't be cancelled again."""
    monkeypatch.setattr(jobs, "END_JOB", "select 1 / ($1::integer - $1::integer)")
    with pytest.raises(asyncpg.DivisionByZeroError):
        await jobs.change(db, job.job_id, "cancelled")
    assert (await jobs.find(db, job.job_id)).state == "running"


async def test_cancelling_asks_first(dsn: str, db: asyncpg.Connection, recalcd: Recalcd, job: Job) -> None:
    assert "would cancel job 1 with 300 of 300 keys to do" in (await recalcd("job", "cancel", "1", "--dry-run")).stdout
    async with at_terminal(dsn, "job", "cancel", "1") as terminal:
        await terminal.answer("n")
        assert terminal.process.returncode == 1
    assert (await jobs.find(db, job.job_id)).state == "running"
    async with at_terminal(dsn, "job", "cancel", "1") as terminal:
        printed, _ = await terminal.answer("y")
        assert (terminal.process.returncode, "cancelled job 1" in printed) == (0, True)


async def test_a_dry_run_of_pause_changes_nothing(db: asyncpg.Connection, recalcd: Recalcd, job: Job) -> None:
    assert (await recalcd("job", "pause", "1", "--dry-run")).stdout == "would pause job 1\n"
    assert (await jobs.find(db, job.job_id)).state == "running"
