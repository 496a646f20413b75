"""Pupils' data and passwords stay in the database: a world where everything fails, and what is read outside of it."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import asyncpg
import pytest
from engine import failures, impatient, make_ledger, make_topic, on_duty, until_empty
from planted import COMMENT, PASSWORD, PUPIL, found_in, found_in_files
from process import Daemon, daemon
from school import found as found_school
from typed import recalcd_on
from waiting import eventually

from daemon.redaction import WITHHELD, error_facts
from daemon.settings import Settings

TROUBLES = {
    "raises": f"raise exception 'no grade for {PUPIL}' using detail = '{PUPIL}', hint = '{COMMENT}';",
    "pretends": f"raise exception '{PUPIL}' using errcode = 'unique_violation', constraint = '{PUPIL}';",
    "pretends_to_be_ours": f"raise exception '{PUPIL}' using errcode = 'RC005', table = '{PUPIL}';",
    "contends": f"raise exception '{PUPIL}' using errcode = 'serialization_failure';",
    "repeats": "insert into ledger.pupil (name) select p.name from ledger.pupil as p;",
    "breaks_a_rule": f"insert into ledger.pupil (name, score) values ('{PUPIL} II', 2);",
    "breaks_a_rule_late": f"insert into ledger.seat (name) values ('{PUPIL}'), ('{PUPIL}');",
    "misreads_an_id": f"perform '{PUPIL}'::uuid;",
    "misreads_a_day": f"perform '{PUPIL}'::date;",
    "misreads_a_number": "perform (select p.name::integer from ledger.pupil as p);",
    "misreads_json": f"perform '{{\"name\": {PUPIL}}}'::jsonb;",
    "writes_nonsense": f"execute 'select 1 from where {PUPIL} {COMMENT}';",
    "asserts": f"assert false, '{PUPIL}';",
    "takes_too_long": f"perform pg_sleep(60), '{PUPIL}';",
    "returns_a_stranger": f"p_changed_keys := array['{PUPIL}'];",
    "divides": "perform 1 / (select 0 from ledger.pupil as p);",
}
"""How a procedure may fail with a pupil's name in its mouth, by topic."""

CHATTY = f"raise warning '{PUPIL}'; raise notice '{COMMENT}';"

PUPILS_SQL = f"""
create table ledger.pupil (name text primary key, score integer check (score < 2));
create table ledger.seat (name text, constraint seat_name_key unique (name) deferrable initially deferred);
insert into ledger.pupil (name) values ('{PUPIL}');
"""


def with_password(dsn: str) -> str:
    """Return the URI with a password, which the server does not ask for."""
    parts = urlsplit(dsn)
    user, at, hosts = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user.partition(':')[0]}:{PASSWORD}{at}{hosts}").geturl()


@pytest.fixture
async def pupil(db: asyncpg.Connection) -> UUID:
    """Make every topic, and a pupil with feedback whose report drifts; return the pupil."""
    await make_ledger(db)
    await db.execute(PUPILS_SQL)
    for topic, trouble in TROUBLES.items():
        await make_topic(db, topic, trouble, max_attempts=1, statement_timeout_s=1)
    await make_topic(db, "chats", CHATTY)
    await make_topic(db, "dies", f"perform pg_terminate_backend(pg_backend_pid()), '{PUPIL}';")
    school = await found_school(db)
    student = await school.add_student(school.cohorts[0], PUPIL)
    await school.join_group(student, school.groups[0])
    await school.record_feedback(await school.assign(), student, 0.5, COMMENT)
    return UUID(str(student))


@asynccontextmanager
async def talkative_daemon(dsn: str, folder: Path) -> AsyncIterator[Daemon]:
    """Run a daemon that writes down all it ever does, and has its DSN from a credential, with a password in it."""
    if urlsplit(dsn).password:
        pytest.skip("needs a server that takes any password, such as a planted one: run with --pg 18")
    folder.mkdir()  # noqa: ASYNC240  # small, and nobody waits
    (folder / "database_url").write_text(with_password(dsn))
    environment = {
        "RECALCD_DATABASE_URL": "",
        "CREDENTIALS_DIRECTORY": str(folder),
        "RECALCD_LOG_LEVEL": "debug",
        "RECALCD_VERIFY_KEYS_PER_MINUTE": "30000",
        "TELEM_ENABLED": "true",
        "RECALCD_TELEM_DIR": str(folder / "telemetry"),
    }
    async with daemon("", folder / "daemon.log", environment) as started:
        yield started


async def until_everything_failed(db: asyncpg.Connection, started: Daemon) -> None:
    async def has_failed() -> bool:
        rows = await db.fetch("select distinct topic from outbox.failure")
        return {row["topic"] for row in rows} >= set(TROUBLES)

    await eventually(has_failed, timeout_s=60)
    await started.until_told("batch.vanished", topic="dies")


async def test_nothing_that_a_daemon_leaves_behind_holds_a_name_or_a_password(
    db: asyncpg.Connection, dsn: str, pupil: UUID, tmp_path: Path
) -> None:
    keys = {topic: str(uuid4()) for topic in (*TROUBLES, "chats", "dies")}
    for topic, key in keys.items():
        await db.execute("select outbox.enqueue($1, $2)", topic, key)
    async with talkative_daemon(dsn, tmp_path / "daemon") as started:
        await until_everything_failed(db, started)
        await db.execute("update reports.report_student_rollups set average = 0.1 where student_id = $1", pupil)
        await started.until_told("verify.drifted")
        proc = Path("/proc", str(started.process.pid))
        process = (proc / "cmdline").read_text() + (proc / "environ").read_text() + (proc / "comm").read_text()
        rows = await db.fetch("select application_name from pg_stat_activity where application_name like 'recalcd%'")
        assert await started.stop() == 0
    left = [*(tmp_path / "daemon" / "telemetry").iterdir(), tmp_path / "daemon" / "daemon.log"]
    assert found_in_files(left) == {}
    assert found_in(process) == []
    assert {row["application_name"] for row in rows} >= {"recalcd worker", "recalcd listener"}
    assert found_in("\n".join(row["application_name"] for row in rows)) == []
    told = {line["topic"]: line for line in started.told("key.failed", "key.died")}
    assert set(told) == set(TROUBLES)
    assert all(told[topic]["key"] == keys[topic] for topic in TROUBLES), "an operator must know whom it concerns"
    assert told["raises"]["error"].startswith(f"{WITHHELD}, raised in ledger.raises, line ")
    assert told["repeats"]["error"] == 'duplicate key value violates unique constraint "pupil_pkey"'
    assert told["misreads_an_id"]["error"] == "invalid input syntax for type uuid: ***"
    assert not server_log_holds(dsn, keys["divides"]), "the server logs parameters"


def server_log_holds(dsn: str, key: str) -> bool:
    """Tell whether the embedded server logged a key, which it only ever sees as a parameter."""
    (home,) = parse_qs(urlsplit(dsn).query).get("host", [""])
    log = Path(home, "server.log")
    return log.is_file() and key in log.read_text("utf-8", errors="replace")


async def test_the_full_text_of_an_error_is_kept_for_operators(
    db: asyncpg.Connection, dsn: str, pupil: UUID, tmp_path: Path
) -> None:
    await db.execute("select outbox.enqueue('raises', $1)", str(pupil))
    async with talkative_daemon(dsn, tmp_path / "daemon") as started:
        await started.until_told("key.died", topic="raises")
    failure = (await failures(db))[str(pupil)]
    assert (failure["message"], failure["detail"]) == (f"no grade for {PUPIL}", PUPIL)
    assert failure["hint"] == COMMENT
    shown = await recalcd_on(dsn)("failures", "show", "raises", str(pupil))
    assert PUPIL in shown.stdout
    assert found_in(shown.stderr) == []


SHOWS_ROWS = {"failures", "report", "verify"}
"""Commands whose answer, on stdout, is rows: for whoever may read the tables themselves."""


async def test_no_command_complains_in_names_or_passwords(
    db: asyncpg.Connection, dsn: str, pupil: UUID, settings: Settings
) -> None:
    key = str(pupil)
    async with on_duty(impatient(settings)):
        await db.execute("select outbox.enqueue('divides', $1), outbox.enqueue('raises', $1)", key)
        await until_empty(db)
    recalcd = recalcd_on(with_password(dsn))
    for line in (
        "status",
        "doctor",
        "topic list",
        "failures list",
        "config",
        f"replay raises --key {key} --yes",
        f"backfill --topic divides --key {key} --yes",
        f"backfill --topic raises --key {key} --yes",
        f"verify --topic raises --key {key}",
        f"verify --key {key}",
        "job list",
        f"explain divides {key}",
        f"report student {key}",
        "migrate status",
    ):
        told = await recalcd(*line.split())
        assert told.exception is None or isinstance(told.exception, SystemExit), line
        assert found_in(told.stderr) == [], line
        assert line.split()[0] in SHOWS_ROWS or found_in(told.stdout) == [], line


@pytest.mark.parametrize("refused", ["postgresql://recalcd:{}@127.0.0.1:1/x", "postgres:/recalcd:{}@127.0.0.1/x"])
async def test_a_database_that_cannot_be_reached_is_named_without_its_password(refused: str) -> None:
    told = await recalcd_on(refused.format(PASSWORD))("status")
    assert told.exit_code in (3, 78)
    assert found_in(told.output) == []


async def test_a_password_on_the_command_line_is_refused(dsn: str) -> None:
    """Any user of the host can read it there; refused, it does not become a habit."""
    told = await recalcd_on(dsn)("--database-url", with_password(dsn), "status")
    assert told.exit_code == 2
    assert "RECALCD_DATABASE_URL" in told.stderr
    assert found_in(told.output) == []


async def test_a_value_that_could_not_be_read_is_hidden_in_any_language(db: asyncpg.Connection) -> None:
    for said in (f'invalid input syntax for type uuid: "{PUPIL}"', f"ungültige Eingabesyntax für Typ uuid: »{PUPIL}«"):
        error = asyncpg.InvalidTextRepresentationError(said)
        assert found_in(error_facts(error).message) == []
    with pytest.raises(asyncpg.PostgresError) as caught:
        await db.fetch(f"select xmlparse(document '<{PUPIL}'), pg_catalog.to_date('{PUPIL}', 'YYYY')")
    assert found_in(error_facts(caught.value).message) == []


async def test_a_library_that_logs_an_error_logs_no_row() -> None:
    script = f"""
import asyncio, asyncpg
from daemon import telemetry
from daemon.settings import load
telemetry.configure(load(log_format="json"))
async def forgotten():
    raise asyncpg.RaiseError("{PUPIL}")
async def main():
    task = asyncio.create_task(forgotten())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    del task
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stderr=asyncio.subprocess.PIPE, env=os.environ
    )
    _, said = await process.communicate()
    assert b"library.logged" in said
    assert found_in(said.decode()) == []
