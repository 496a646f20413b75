"""recalcd migrate, as typed: what is printed where, and the exit codes."""

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from urllib.parse import urlsplit

import asyncpg
import pytest
from click.testing import CliRunner, Result
from schema import schema_of
from servers import Psql
from typed import is_asleep, read_until
from waiting import eventually, wait_until_blocked

from cli import main
from daemon import migrations

Recalcd = Callable[..., Result]


@pytest.fixture
def dsn(empty_dsn: str) -> str:
    """Give these tests a database that nobody has migrated."""
    return empty_dsn


@pytest.fixture
def recalcd(dsn: str) -> Recalcd:
    """Run a command in this process."""

    def run(*arguments: str, dsn: str = dsn) -> Result:
        return CliRunner().invoke(main, arguments, env={"RECALCD_DATABASE_URL": dsn})

    return run


@contextmanager
def started(dsn: str, *arguments: str, stdin: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen[str]]:
    """Run a command in a process of its own, which does not outlive the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", *arguments],
        env=os.environ | {"RECALCD_DATABASE_URL": dsn},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_up_status_down(recalcd: Recalcd) -> None:
    status = recalcd("migrate", "status")
    assert status.exit_code == 1
    assert "outbox   0001     event     pending" in status.stdout

    up = recalcd("migrate", "up")
    assert up.exit_code == 0
    assert up.stdout.startswith("applied outbox 0001_event\n")
    assert up.stderr == ""

    status = recalcd("migrate", "status")
    assert status.exit_code == 0
    assert "outbox   0001     event     applied 20" in status.stdout

    down = recalcd("migrate", "down", "--yes")
    assert down.exit_code == 0
    assert down.stdout.endswith("took back outbox 0001_event\n")


def test_status_as_json(recalcd: Recalcd) -> None:
    recalcd("migrate", "up", "--set", "outbox", "--to", "1")
    status = recalcd("migrate", "status", "--json")
    assert status.exit_code == 1
    outbox = json.loads(status.stdout)["outbox"]
    assert outbox["version"] == 1
    assert outbox["is_current"] is False
    assert outbox["migrations"][0]["state"] == "applied"
    assert outbox["migrations"][0]["applied_at"].startswith("20")
    assert outbox["migrations"][1]["applied_at"] is None


def test_status_names_the_routines_of_which_something_is_to_be_said(recalcd: Recalcd, psql: Psql) -> None:
    recalcd("migrate", "up")
    psql("insert into outbox.routine values ('outbox', 'outbox.old.sql', 'x', '{}')")
    assert "1 gone (outbox.old.sql)" in recalcd("migrate", "status").stdout


def test_dump_needs_no_database(recalcd: Recalcd) -> None:
    dump = recalcd("migrate", "dump", dsn="")
    assert dump.exit_code == 0
    assert dump.stdout.startswith("-- migrate:up\n")


def test_dry_run_asks_nobody_and_changes_nothing(recalcd: Recalcd, dsn: str) -> None:
    recalcd("migrate", "up")
    before = schema_of(dsn)
    down = recalcd("migrate", "down", "--dry-run")
    assert down.exit_code == 0
    assert "would take back outbox 0001_event" in down.stdout
    assert schema_of(dsn) == before


def test_down_with_nobody_to_ask_is_a_usage_error(recalcd: Recalcd) -> None:
    down = recalcd("migrate", "down")
    assert down.exit_code == 2
    assert down.stderr == (
        "recalcd: This can't be undone, and there is nobody to ask: say --yes, or look first with --dry-run.\n"
    )


@pytest.mark.parametrize(
    ("answer", "exit_code", "is_left"), [("n\n", 1, True), ("y\n", 0, False), ("Ctrl-C", 130, True)]
)
async def test_down_asks_on_a_terminal(
    dsn: str, db: asyncpg.Connection, answer: str, exit_code: int, is_left: bool
) -> None:
    await migrations.up(db)
    ours, theirs = pty.openpty()
    with started(dsn, "migrate", "down", stdin=theirs) as down:
        assert down.stdout is not None
        for asked in ("would take back outbox 0001_event\n", "Go on? [y/N]: "):
            await asyncio.to_thread(read_until, down.stdout, asked)
        await eventually(partial(is_asleep, down.pid))  # a signal before it reads would not wake it
        if answer == "Ctrl-C":  # not its controlling terminal, so the key itself would not be heard
            down.send_signal(signal.SIGINT)
        else:
            os.write(ours, answer.encode())
        _, stderr = await asyncio.to_thread(down.communicate, timeout=30)
    os.close(ours)
    os.close(theirs)
    assert (down.returncode, ("outbox" in schema_of(dsn))) == (exit_code, is_left), stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("url", "exit_code", "sentence"),
    [
        ("postgresql://nobody:x@127.0.0.1:1/nowhere", 3, "No connection to the database at 127.0.0.1:1: "),
        ("postgresql://nobody@/x?host=h&port=abc", 78, "has an option, behind its question mark, that can't be read"),
        ("postgresql://nobody@/nowhere?host=/nowhere", 3, "No connection to the database at /nowhere: "),
        ("mysql://nobody@127.0.0.1/nowhere", 78, "begins with postgresql://"),
        ("", 78, "No database is named"),
    ],
)
def test_without_a_database_it_says_so(recalcd: Recalcd, url: str, exit_code: int, sentence: str) -> None:
    up = recalcd("migrate", "up", dsn=url)
    assert up.exit_code == exit_code
    assert up.stderr.startswith("recalcd: ")
    assert sentence in up.stderr
    assert up.stdout == ""


def test_the_option_outranks_the_environment(recalcd: Recalcd, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = urlsplit(dsn)
    monkeypatch.setenv("PGPASSWORD", parts.password or "")  # where there is one, the option would not have it
    without = parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", "@")).geturl()
    assert recalcd("--database-url", without, "migrate", "up", dsn="postgresql://127.0.0.1:1/x").exit_code == 0


def test_another_version_is_exit_code_4(recalcd: Recalcd, psql: Psql) -> None:
    recalcd("migrate", "up")
    psql("insert into outbox.migration values ('outbox', 99, 'future', 'x')")
    up = recalcd("migrate", "up")
    assert up.exit_code == 4
    assert "newer than this release of recalcd: set outbox holds 0099_future" in up.stderr
    assert "outbox   0099     future    unknown" in recalcd("migrate", "status").stdout


def test_a_read_only_database_is_refused(recalcd: Recalcd, dsn: str, psql: Psql) -> None:
    psql(f"alter database {urlsplit(dsn).path[1:]} set default_transaction_read_only = on")
    up = recalcd("migrate", "up")
    assert up.exit_code == 3
    assert "read-only" in up.stderr


def as_role(dsn: str, role: str) -> str:
    place = urlsplit(dsn)
    return place._replace(netloc=f"{role}:secret@{place.netloc.rpartition('@')[2]}").geturl()


def test_a_role_that_may_not_is_told_what_it_lacks(recalcd: Recalcd, dsn: str, psql: Psql) -> None:
    recalcd("migrate", "up")
    role = f"limited_{urlsplit(dsn).path[1:]}"
    psql(f"create role {role} login password 'secret'; grant usage on schema outbox to {role}")
    try:
        status = recalcd("migrate", "status", dsn=as_role(dsn, role))
    finally:
        psql(f"drop owned by {role}; drop role {role}")
    assert status.exit_code == 1
    assert status.stderr == "recalcd: The database answered: permission denied for table migration (42501).\n"


async def test_ctrl_c_while_waiting_is_130_without_a_traceback(dsn: str, db: asyncpg.Connection) -> None:
    await db.execute("select pg_advisory_lock(29283, 2)")
    with started(dsn, "migrate", "up") as up:
        await wait_until_blocked(db, "recalcd migrate")
        up.send_signal(signal.SIGINT)
        stdout, stderr = await asyncio.to_thread(up.communicate, timeout=30)
    assert up.returncode == 130
    assert stdout == ""
    assert stderr == "Another `recalcd migrate` is at work on this database: waiting for it.\n\n"


async def test_a_connection_that_is_cut_is_exit_code_3(dsn: str, db: asyncpg.Connection) -> None:
    await db.execute("select pg_advisory_lock(29283, 2)")
    with started(dsn, "migrate", "up") as up:
        await wait_until_blocked(db, "recalcd migrate")
        await db.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where application_name = 'recalcd migrate' and datname = current_database()"
        )
        _, stderr = await asyncio.to_thread(up.communicate, timeout=30)
    assert up.returncode == 3
    assert "terminating connection due to administrator command" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
