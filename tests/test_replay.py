"""Replay: exactly the keys that were asked for, behind live traffic; and what its command refuses."""

import asyncio
import json
from datetime import UTC, datetime

import asyncpg
import pytest
from bulk import BULK, make_bulk, numbers, pretend_daemon, times_done
from engine import drain, enqueue, failures, impatient, on_duty, pending, until_empty
from servers import Connect
from typed import Recalcd, at_terminal, recalcd_on
from waiting import eventually

from daemon import jobs
from daemon.batch import Recalculation, prepare_history
from daemon.job_runner import Chunk, Counts
from daemon.keys import find_topic
from daemon.replay import Replayer
from daemon.scope import Scope
from daemon.settings import Settings

KEPT = Recalculation(None, "live", keep_history=True)


@pytest.fixture
def recalcd(dsn: str) -> Recalcd:
    return recalcd_on(dsn)


@pytest.fixture
async def bulk(db: asyncpg.Connection) -> None:
    await make_bulk(db, 500, "if p_keys && '{000013}' then raise exception 'bad key' using errcode = '22012'; end if;")
    await prepare_history(db, days_ahead=1)


async def live(db: asyncpg.Connection, *keys: str, reason: str | None = None) -> datetime:
    """Let keys change and be recalculated; return the time after that."""
    await db.execute("select outbox.enqueue($1, $2::text[], $3)", BULK, list(keys), reason)
    await drain(db, KEPT)
    now: datetime = await db.fetchval("select clock_timestamp()")
    return now


async def fail(db: asyncpg.Connection, key: str, sqlstate: str, state: str, ago: str = "0") -> None:
    """Enter a failure."""
    await db.execute(
        "insert into outbox.failure (topic, key, state, attempts, last_failed_at, next_attempt_at, sqlstate)"
        " values ($1, $2, $3, 8, now() - $4::text::interval, now() + interval '1 hour', $5)",
        BULK, key, state, ago, sqlstate,
    )  # fmt: skip


async def chosen(recalcd: Recalcd, *options: str) -> list[str]:
    told = await recalcd("replay", BULK, *options, "--dry-run", "--json")
    assert told.exit_code in (0, 1), told.output
    found: list[str] = json.loads(told.stdout)["keys"]
    return sorted(found)


@pytest.mark.usefixtures("bulk")
async def test_a_window_brings_exactly_the_keys_recalculated_in_it(db: asyncpg.Connection, recalcd: Recalcd) -> None:
    since = await live(db, *numbers(1, 3))
    await live(db, "000003", "000004")
    until = await live(db, *numbers(20, 320))
    await live(db, "000005", "000020")
    window = ["--since", since.isoformat(), "--until", until.isoformat()]
    assert await chosen(recalcd, *window) == ["000003", "000004", *numbers(20, 320)]
    assert await chosen(recalcd, "--since", until.isoformat()) == ["000005", "000020"]
    assert await chosen(recalcd, "--until", since.isoformat()) == numbers(1, 3)

    told = await recalcd("replay", BULK, *window, "--yes", "--json")
    job = json.loads(told.stdout)
    assert (told.exit_code, job["state"], job["done_count"]) == (0, "finished", 303)
    assert sorted(await pending(db)) == ["000003", "000004", *numbers(20, 320)]
    before = await times_done(db)
    await drain(db, KEPT)
    after = await times_done(db)
    assert sorted(key for key in after if after[key] != before[key]) == ["000003", "000004", *numbers(20, 320)]


@pytest.mark.usefixtures("bulk")
async def test_a_reason_brings_the_keys_of_batches_that_had_it(db: asyncpg.Connection, recalcd: Recalcd) -> None:
    await live(db, "000001", "000002", reason="import.ran")
    await live(db, "000003", reason="feedback.recorded")
    assert await chosen(recalcd, "--since", "1h", "--where", "reason=import.ran") == ["000001", "000002"]
    assert await chosen(recalcd, "--since", "1h", "--where", "reason=nonsense") == []


@pytest.mark.usefixtures("bulk")
async def test_failures_are_chosen_by_state_sqlstate_and_time(db: asyncpg.Connection, recalcd: Recalcd) -> None:
    await fail(db, "000001", "22012", "dead")
    await fail(db, "000002", "22012", "dead", ago="3 hours")
    await fail(db, "000003", "23505", "dead")
    await fail(db, "000004", "22012", "retrying")
    assert await chosen(recalcd, "--dead") == ["000001", "000002", "000003"]
    assert await chosen(recalcd, "--dead", "--since", "2h") == ["000001", "000003"]
    assert await chosen(recalcd, "--dead", "--where", "sqlstate=22012") == ["000001", "000002"]
    assert await chosen(recalcd, "--where", "sqlstate=22012") == ["000001", "000002", "000004"]


@pytest.mark.usefixtures("bulk")
async def test_a_dead_key_that_is_put_back_starts_again(db: asyncpg.Connection, recalcd: Recalcd) -> None:
    await fail(db, "000001", "22012", "dead")
    told = await recalcd("replay", BULK, "--dead", "--yes")
    assert (told.exit_code, told.stdout) == (0, f"job 1 finished: put back 1 of 1 keys of {BULK}\n")
    assert "the history does not tell" in told.stderr
    row = (await failures(db))["000001"]
    assert (row["state"], row["attempts"]) == ("retrying", 0)
    await drain(db, KEPT)
    assert (await failures(db), await times_done(db)) == ({}, {"000001": 1})


@pytest.mark.usefixtures("bulk")
async def test_a_live_event_never_finds_more_than_a_chunk_before_it(
    db: asyncpg.Connection, connect: Connect, recalcd: Recalcd
) -> None:
    """Be the daemon ourselves: while we take nothing, one chunk is all that the replay puts in."""
    await pretend_daemon(db)
    running = asyncio.ensure_future(recalcd("replay", BULK, *_named(numbers(20, 319)), "--yes"))
    put: list[str] = await eventually(lambda: pending(db))
    assert len(put) == 100
    await enqueue(db, BULK, "000400")
    await drain(await connect())
    assert (await times_done(db))["000400"] == 1
    while not running.done():
        assert len(await pending(db)) <= 200
        await drain(db)
    told = await running
    assert (told.exit_code, "put back 300 of 300" in told.stdout) == (0, True)
    await drain(db)
    assert await times_done(db) == dict.fromkeys([*numbers(20, 319), "000400"], 1)


@pytest.mark.usefixtures("bulk")
async def test_a_chunk_is_done_when_its_events_are_taken_if_somebody_takes_them(
    db: asyncpg.Connection, connect: Connect
) -> None:
    async def note(_: Counts) -> None:
        return

    replayer = Replayer(await connect(), await find_topic(db, BULK))
    await replayer.do(Chunk(["000001"], frozenset()), note)  # no daemon: nothing to wait for
    await pretend_daemon(db)
    doing = asyncio.create_task(replayer.do(Chunk(["000002"], frozenset()), note))
    await asyncio.wait({doing}, timeout=0.2)
    assert not doing.done()
    await drain(db)
    await doing
    assert await times_done(db) == {"000001": 1, "000002": 1}


def _named(keys: list[str]) -> list[str]:
    return [word for key in keys for word in ("--key", key)]


@pytest.mark.usefixtures("bulk")
async def test_a_daemon_takes_it_all(db: asyncpg.Connection, settings: Settings, recalcd: Recalcd) -> None:
    async with on_duty(impatient(settings)):
        told = await recalcd("replay", BULK, *_named(numbers(20, 400)), "--yes")
        assert told.exit_code == 0, told.output
        await until_empty(db)
    assert await times_done(db) == dict.fromkeys(numbers(20, 400), 1)


@pytest.mark.usefixtures("bulk")
async def test_a_replay_that_was_interrupted_goes_on_behind_its_last_chunk(
    db: asyncpg.Connection, recalcd: Recalcd
) -> None:
    topic, keys = await find_topic(db, BULK), numbers(1, 50)
    job = await jobs.create(db, "replay", topic, Scope(keys), key_count=50, chunk_keys=10)
    await db.execute("update outbox.job set cursor = '000030', done_count = 30 where job_id = $1", job.job_id)
    told = await recalcd("job", "resume", str(job.job_id))
    assert (told.exit_code, told.stdout) == (0, f"job 1 finished: put back 50 of 50 keys of {BULK}\n")
    assert await pending(db) == numbers(31, 50)


@pytest.mark.usefixtures("bulk")
async def test_it_says_how_many_and_how_long_and_asks(dsn: str, db: asyncpg.Connection) -> None:
    await live(db, *numbers(20, 40))
    await db.execute("update outbox.batch set recalculate_ms = 21 * 100")
    command = ["replay", BULK, "--since", "1h"]
    async with at_terminal(dsn, *command) as terminal:
        printed, said = await terminal.answer("n")
    assert (terminal.process.returncode, printed) == (1, "")
    assert f"putting back 21 keys of {BULK}; recalculating them takes about 2.1 s" in said
    assert await pending(db) == []
    async with at_terminal(dsn, *command) as terminal:
        printed, _ = await terminal.answer("y")
    assert (terminal.process.returncode, "put back 21 of 21" in printed) == (0, True)
    assert await pending(db) == numbers(20, 40)


@pytest.mark.usefixtures("bulk")
async def test_with_nobody_to_ask_it_needs_yes(db: asyncpg.Connection, recalcd: Recalcd) -> None:
    told = await recalcd("replay", BULK, "--key", "000001")
    assert (told.exit_code, told.stdout) == (2, "")
    assert "there is nobody to ask: say --yes" in told.stderr
    assert await pending(db) == []


@pytest.mark.usefixtures("bulk")
async def test_a_dry_run_changes_nothing(db: asyncpg.Connection, recalcd: Recalcd) -> None:
    told = await recalcd("replay", BULK, "--key", "000001", "--dry-run")
    assert told.exit_code == 0
    assert told.stdout == f"would put back 1 keys of {BULK}; the history does not tell how long that takes\n"
    assert await pending(db) == []
    assert await jobs.list_jobs(db) == []


@pytest.mark.usefixtures("bulk")
async def test_nothing_to_put_back_is_bad_news(recalcd: Recalcd) -> None:
    told = await recalcd("replay", BULK, "--dead", "--yes")
    assert (told.exit_code, told.stdout) == (1, "nothing to put back\n")


@pytest.mark.usefixtures("bulk")
async def test_a_window_older_than_the_history_says_so(db: asyncpg.Connection, recalcd: Recalcd) -> None:
    begins = datetime.now(UTC)
    await live(db, "000001")
    told = await recalcd("replay", BULK, "--since", "3d", "--dry-run")
    assert f"The history begins at {begins:%Y-%m-%d}" in told.stderr
    assert "what was recalculated before is not known" in told.stderr


@pytest.mark.usefixtures("bulk")
async def test_keys_come_from_stdin(db: asyncpg.Connection, recalcd: Recalcd) -> None:
    told = await recalcd("replay", BULK, "--keys-from", "-", "--yes", stdin="000002\n000001\n")
    assert told.exit_code == 0
    assert await pending(db) == ["000001", "000002"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Say what to put back: --dead, --key KEY, --keys-from FILE, or --since 2h."),
        (["--key", "999999"], "Topic 'bulk.number' has no key '999999'."),
        (["--keys-from", "-"], "No key was named"),
        (["--key", "000001", "--dead"], "not both"),
        (["--key", "000001", "--since", "2h"], "not both"),
        (["--since", "yesterday"], "'yesterday' is no time; write 2h"),
        (["--until", "2026-13-01"], "'2026-13-01' is no time"),
        (["--since", "1h", "--until", "2h"], "Nothing lies between"),
        (["--since", "1h", "--until", "1h"], "Nothing lies between"),
        (["--since", "2999-01-01"], "Nothing lies between"),
        (["--since", "999999d"], "before the beginning of our calendar"),
        (["--dead", "--where", "reason=x"], "A failure does not keep reasons"),
        (["--where", "reason=x"], "Say since when"),
        (["--since", "2h", "--where", "reason=x", "--where", "reason=y"], "given twice"),
        (["--since", "2h", "--where", "colour=red"], "--where colour=red means nothing here"),
        (["--since", "2h", "--where", "reason"], "--where reason means nothing here"),
        (["--dead", "--where", "sqlstate=2201"], "'2201' is no SQLSTATE"),
    ],
)
@pytest.mark.usefixtures("bulk")
async def test_what_can_not_be_meant_is_refused(
    db: asyncpg.Connection, recalcd: Recalcd, options: list[str], message: str
) -> None:
    told = await recalcd("replay", BULK, *options, "--yes")
    assert (told.exit_code, told.stdout) == (2, "")
    assert message in told.stderr
    assert await pending(db) == []


async def test_an_unknown_topic_is_refused(recalcd: Recalcd) -> None:
    told = await recalcd("replay", "nonsense", "--dead")
    assert (told.exit_code, "There is no topic 'nonsense'" in told.stderr) == (2, True)
