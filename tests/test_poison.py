"""One key in 500 that does its worst, and the real daemon in a process of its own.

The others are fresh within two batches, the bad one ends dead with a record that says why, and the daemon lives.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from bulk import BULK, make_bulk, numbers, times_done
from engine import (
    GATE,
    call_count,
    done,
    enqueue,
    events_of,
    failures,
    impatient,
    make_due,
    make_ledger,
    make_topic,
    numbered,
    on_duty,
    pending,
    until_empty,
)
from servers import add_daemon_login, as_daemon
from typed import recalcd_on
from waiting import eventually, wait_until_blocked

from daemon import jobs, migrations, telemetry
from daemon.database import DATABASE_ERRORS, close
from daemon.embedded import EmbeddedPostgres, embedded_postgres
from daemon.settings import Settings

CROWD = numbered(500)
BAD = "k250"
REST = [key for key in CROWD if key != BAD]
FEW = CROWD[220:280]
"""For kinds that differ from others in what is raised, not in how it is found."""
HALVES, FEW_HALVES = 2 * 9, 2 * 6
"""Calls that find one key in 500, or in 60: two halves each time, 2^9 > 500, 2^6 > 60."""
EIGHTHS = 9 + 9 + 7
"""Calls that find one key in 500 when each loses the session: by 62 keys, by 7, one by one."""
MEMORY_BYTES = 500_000_000
WAITS = 3
"""Batches that may fail, with the same keys in them, for what looks like somebody else's trouble."""


@dataclass(frozen=True)
class Poison:
    """What a topic's procedure does when BAD is among its keys, and what outbox.failure is to say of it."""

    trouble: str
    sqlstate: str
    parts: tuple[str, ...] = ()
    """Found in the record."""
    calls: int = 1 + FEW_HALVES
    keys: tuple[str, ...] = tuple(FEW)
    timeout_s: int = 30


def raised(sqlstate: str, calls: int = 1 + FEW_HALVES) -> Poison:
    return Poison(f"raise 'bad day' using errcode = '{sqlstate}';", sqlstate, ("bad day", "RAISE"), calls)


def pretended(sqlstate: str) -> Poison:
    """Raise what a server in trouble would, for this key alone."""
    return raised(sqlstate, 1 + WAITS + FEW_HALVES)


NOISE = "for i in 1..10000 loop raise notice '%', repeat('x', 1000); end loop;"
LOUD = r"E'a.\x1b[2J\x01\r' || repeat('a.', 500000)"
KINDS = {
    "raises": Poison(
        "raise 'poison' using detail = 'why', hint = 'what to do';", "P0001", ("poison", "why", "what to do", "RAISE")
    ),
    "divides": Poison("perform 1 / (v_call - v_call);", "22012", ("division by zero", "PL/pgSQL function")),
    "asserts": Poison("assert false, 'sums differ';", "P0004", ("sums differ",)),
    "internal": raised("XX000"),
    "aborts": raised("25000"),
    "disk_full": pretended("53100"),
    "no_connections": pretended("53300"),
    "shut_down": pretended("57P01"),
    "link_lost": pretended("08006"),
    "io_error": pretended("58030"),
    "read_only": pretended("25006"),
    "recurses": Poison("perform ledger.deeper();", "54001", ("stack depth limit", "max_stack_depth")),
    "hangs": Poison("perform pg_sleep(60);", "57014", ("statement timeout",), 21, tuple(FEW[20:40]), timeout_s=1),
    "stranger": Poison("p_changed_keys := array['stranger'];", "RC005", ("stranger",)),
    "null_key": Poison("p_changed_keys := p_keys || null::text;", "RC005", ("NULL",)),
    "flat": Poison("p_changed_keys := array[array['x', 'y']];", "RC005"),
    "commits": Poison("commit;", "2D000", ("invalid transaction termination",)),
    "rolls_back": Poison("rollback;", "2D000", ("invalid transaction termination",)),
    "discards": Poison("execute 'discard all';", "25001", ("DISCARD ALL",)),
    "isolates": Poison("set transaction isolation level serializable;", "25001"),
    "becomes": Poison("set role pg_monitor;", "RC013", ("changed the role",)),
    "reads_only": Poison("set transaction_read_only = on; return;", "RC013", ("read-only",)),
    "breaks": Poison(  # what settling needs
        "alter sequence outbox.batch_batch_id_seq maxvalue 9 restart 9; perform nextval('outbox.batch_batch_id_seq');",
        "2200H",
        ("reached maximum value",),
    ),
    "hurries": Poison("perform set_config('statement_timeout', '30s', false); perform 1 / 0;", "22012"),
    "loud": Poison(
        f"{NOISE} raise exception using message = {LOUD}, detail = {LOUD}, hint = {LOUD};", "P0001", ("a.\x1b[2J",)
    ),
    "kills": Poison(
        "perform pg_terminate_backend(pg_backend_pid());",
        "RC006",
        ("this key alone",),
        1 + EIGHTHS - HALVES + FEW_HALVES,
    ),
}

CROWDED = ("raises", "disk_full", "stranger", "kills")
"""Kinds that are one key in 500."""
POISONS = {
    name: replace(poison, keys=tuple(CROWD), calls=poison.calls + HALVES - FEW_HALVES) if name in CROWDED else poison
    for name, poison in KINDS.items()
}


@dataclass
class Daemon:
    """`recalcd run` in a process of its own."""

    process: subprocess.Popen[bytes]
    log: Path

    def lives(self) -> None:
        assert self.process.poll() is None, self.log.read_text("utf-8")[-4000:]

    def told(self, *events: str) -> list[dict[str, Any]]:
        return events_of((json.loads(line) for line in self.log.read_text("utf-8").splitlines()), *events)


@contextmanager
def daemon_on(dsn: str, tmp_path: Path, *, as_given: bool = False, **settings: str) -> Iterator[Daemon]:
    """Run the daemon while the block runs. It has to be alive at the end, and to stop when told."""
    impatience = {"WORKERS": "1", "RETRY_MAX_S": "0.2", "POLL_INTERVAL_S": "0.1", "LINGER_S": "0", "LOG_FORMAT": "json"}
    wanted = {"DATABASE_URL": dsn if as_given else as_daemon(dsn), "TELEM_DIR": str(tmp_path)} | impatience | settings
    environment = os.environ | {f"RECALCD_{name}": value for name, value in wanted.items()}
    log = tmp_path / "daemon.log"
    with log.open("wb") as stderr:
        command = [sys.executable, "-m", "cli", "run"]
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=stderr)
    try:
        daemon = Daemon(process, log)
        yield daemon
        daemon.lives()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


async def make_poison(db: asyncpg.Connection, name: str, poison: Poison) -> None:
    """Register a topic for it; each counts its calls."""
    await db.execute(f"create sequence ledger.{name}_calls")
    trouble = f"perform nextval('ledger.{name}_calls'); if '{BAD}' = any (p_keys) then {poison.trouble} end if;"
    options = {"max_attempts": 2, "retry_base_s": 600, "statement_timeout_s": poison.timeout_s}
    await make_topic(db, name, trouble, **options)


async def calls(db: asyncpg.Connection, name: str) -> int:
    return int(await db.fetchval(f"select last_value from ledger.{name}_calls"))


async def failures_by_topic(db: asyncpg.Connection) -> dict[str, asyncpg.Record]:
    rows = await db.fetch("select * from outbox.failure")
    assert {row["key"] for row in rows} <= {BAD}
    return {row["topic"]: row for row in rows}


async def test_every_kind_of_poison_key_is_alone_in_the_end_and_dead(
    db: asyncpg.Connection, dsn: str, tmp_path: Path
) -> None:
    await make_ledger(db)
    await db.execute(
        "create function ledger.deeper() returns text language plpgsql as 'begin return ledger.deeper(); end'"
    )
    await db.execute("grant usage on schema ledger to public; grant insert on ledger.done to public")
    for name, poison in POISONS.items():
        await make_poison(db, name, poison)
        await enqueue(db, name, *poison.keys)

    async def nothing_is_pending() -> bool:
        daemon.lives()
        return not await pending(db)

    async def all_are_dead() -> bool:
        daemon.lives()
        await enqueue(db, "raises", REST[0])  # others go on: what fails beside them is not the server
        await make_due(db)
        return {row["state"] for row in (await failures_by_topic(db)).values()} == {"dead"}

    with daemon_on(dsn, tmp_path, as_given=True) as daemon:  # a superuser: one of the procedures becomes somebody else
        await eventually(nothing_is_pending, timeout_s=120)
        first = {name: await calls(db, name) for name in POISONS}
        fresh = {name: await done(db, name) for name in POISONS}
        await eventually(all_are_dead, timeout_s=120)
        await until_empty(db)

    failed = await failures_by_topic(db)
    for name, poison in POISONS.items():
        assert fresh[name] == [key for key in poison.keys if key != BAD], name  # each once: none was kept waiting
        assert first[name] <= poison.calls, (name, first[name])
        row = failed[name]
        assert row["sqlstate"] == poison.sqlstate, (name, row)
        record = "\n".join(filter(None, (row["message"], row["detail"], row["hint"], row["context"])))
        assert [part for part in poison.parts if part not in record] == [], (name, record)
        assert len(record) < 8000, name
    assert len(daemon.told(telemetry.KEY_DIED)) == len(POISONS) - 1  # a killer is convicted by the next claim
    assert {each.get("key") for each in daemon.told(telemetry.BATCH_VANISHED)} == {None, BAD}
    assert max(map(len, daemon.log.read_text("utf-8").splitlines())) < 20_000


ROUTINE_SQL = """
    create table ledger.seen (session jsonb);
    create function ledger.session() returns jsonb language sql as $$
        select jsonb_build_object(
            'settings', (select jsonb_object_agg(s.name, s.setting) from pg_settings as s),
            'roles', array[session_user, current_user],
            'channels', array(select pg_listening_channels()),
            'tables', array(select c.relname from pg_class as c where c.relpersistence = 't'),
            'locks', (select count(*) from pg_locks as l where l.pid = pg_backend_pid() and l.locktype = 'advisory')
        )
    $$;
"""
LEAKS = """
    perform set_config('search_path', 'pg_catalog', false), set_config('jit', 'on', false),
            set_config('statement_timeout', '1s', false), set_config('lock_timeout', '1ms', false),
            set_config('session_replication_role', 'replica', false), set_config('application_name', 'me', false),
            set_config('default_transaction_isolation', 'serializable', false), set_config('work_mem', '64kB', false);
    execute 'listen outbox';
    create temporary table leak ();
    perform pg_advisory_lock(outbox.key_lock_id('clean', 'k000')), pg_advisory_lock(1);
"""


async def test_what_a_procedure_does_to_its_session_is_gone_before_the_next_batch(
    db: asyncpg.Connection, settings: Settings
) -> None:
    await make_ledger(db)
    await db.execute(ROUTINE_SQL)
    await make_topic(db, "clean", "insert into ledger.seen select ledger.session();")
    await make_topic(db, "leaks", LEAKS)
    await make_topic(db, "raises", f"{LEAKS} raise 'poison';")
    async with on_duty(impatient(settings, workers=1), as_given=True):  # a superuser leaks most of all
        for topic in ("clean", "leaks", "clean", "raises", "clean"):
            await enqueue(db, topic, "k000")
            await until_empty(db)
        assert (
            await db.fetchval("select count(*) from pg_locks where locktype = 'advisory' and objid = 1 and classid = 0")
            == 0
        )
    assert list(await failures(db)) == ["k000"]  # of raises
    assert await db.fetchval("select count(*) from ledger.seen") == 3
    assert await db.fetchval("select count(distinct session) from ledger.seen") == 1


async def test_a_procedure_that_forgets_the_drivers_statements_costs_a_connection(
    db: asyncpg.Connection, settings: Settings
) -> None:
    await make_ledger(db)
    await make_topic(db, "forgets", f"if '{BAD}' = any (p_keys) then execute 'deallocate all'; end if;")
    await make_topic(db, "t")
    async with on_duty(impatient(settings, workers=1)):
        for keys in (REST, [BAD], REST, [BAD]):
            await enqueue(db, "forgets", *keys)
            await enqueue(db, "t", *keys)
            await until_empty(db)
    assert await failures(db) == {}
    assert await done(db, "forgets") == await done(db, "t") == sorted(2 * CROWD)


async def test_a_key_that_pretends_the_servers_trouble_beside_nobody_is_not_charged(
    db: asyncpg.Connection, settings: Settings
) -> None:
    """Nothing tells it from a server in trouble, then; but it waits aside, where it delays nobody."""
    await make_ledger(db)
    await make_topic(db, "t", "raise 'full' using errcode = '53100';")
    await enqueue(db, "t", BAD)
    async with on_duty(impatient(settings, workers=1)):
        await until_empty(db)
    row = (await failures(db))[BAD]
    assert (row["state"], row["attempts"], row["sqlstate"]) == ("retrying", 0, "53100")
    assert await call_count(db) == 1 + WAITS


async def test_several_keys_that_pretend_the_servers_trouble_are_all_found(
    db: asyncpg.Connection, settings: Settings
) -> None:
    bad = CROWD[::100]
    await make_ledger(db)
    await make_topic(db, "t", f"if p_keys && '{{{','.join(bad)}}}' then raise 'full' using errcode = '53100'; end if;")
    await enqueue(db, "t", *CROWD)
    async with on_duty(impatient(settings, workers=1)):
        await until_empty(db)
    assert sorted(await failures(db)) == bad
    assert await done(db, "t") == [key for key in CROWD if key not in bad]


async def test_a_key_in_trouble_for_ever_keeps_no_other_topic_waiting(
    db: asyncpg.Connection, settings: Settings
) -> None:
    await make_ledger(db)
    await make_topic(db, "a", "raise 'full' using errcode = '53100';")
    await make_topic(db, "b")
    await enqueue(db, "a", *CROWD[:2])
    await enqueue(db, "b", *CROWD)

    async def others_are_done() -> bool:
        return not await pending(db, "b")

    async with on_duty(impatient(settings, workers=1)):
        await eventually(others_are_done)
        assert await call_count(db) <= 4  # the turn goes round after a failure, too


async def test_changed_keys_are_reported_once_each_in_one_dimension(db: asyncpg.Connection, settings: Settings) -> None:
    await make_ledger(db)
    await make_topic(
        db,
        "t",
        "p_changed_keys := array_fill('k001'::text, array[300, 300]) || array[array_fill('k000'::text, array[300])];",
    )
    await enqueue(db, "t", *CROWD[:3])
    async with on_duty(impatient(settings, workers=1)):
        await until_empty(db)
    assert await db.fetchval("select changed_keys from outbox.batch") == ["k000", "k001"]


async def test_a_job_goes_on_behind_a_key_that_kills_its_backend(
    db: asyncpg.Connection, dsn: str, settings: Settings
) -> None:
    bad = "000250"
    await make_bulk(db, 500, f"if '{bad}' = any (p_keys) then perform pg_terminate_backend(pg_backend_pid()); end if;")
    result = await recalcd_on(dsn)("backfill", "--topic", BULK)
    assert (result.exit_code, "left to the daemon" in result.stderr) == (0, True), result.stderr
    assert "job resume" not in result.stderr
    job = await jobs.find(db, 1)
    assert (job.state, job.done_count) == ("finished", 500)
    assert bad in await pending(db, BULK)

    async def is_dead() -> bool:
        await make_due(db)
        return {key: row["state"] for key, row in (await failures(db)).items()} == {bad: "dead"}

    async with on_duty(impatient(settings, poll_interval_s=0.05)):
        await eventually(is_dead, timeout_s=30)
        await until_empty(db)
    assert await times_done(db) == dict.fromkeys((key for key in numbers(1, 500) if key != bad), 1)


@asynccontextmanager
async def mortal_server() -> AsyncIterator[tuple[EmbeddedPostgres, asyncpg.Connection]]:
    """Run a server whose backends may be killed, with both sets applied."""
    with embedded_postgres(version=18, settings={"fsync": "off"}) as server:
        db = await asyncpg.connect(server.dsn())
        try:
            await migrations.up(db)
            await add_daemon_login(db)
            await make_ledger(db)
            yield server, db
        finally:
            await close(db)


@asynccontextmanager
async def visit(server: EmbeddedPostgres) -> AsyncIterator[asyncpg.Connection]:
    """Connect for a moment: no session outlives the next crash."""
    db = await asyncpg.connect(server.dsn())
    try:
        yield db
    finally:
        await close(db)


async def after_crashes(server: EmbeddedPostgres, question: Callable[[asyncpg.Connection], Awaitable[bool]]) -> None:
    """Wait until the answer is yes, through whatever ends our sessions meanwhile."""

    async def answer() -> bool:
        try:
            async with visit(server) as db:
                return await question(db)
        except DATABASE_ERRORS:
            return False

    await eventually(answer, timeout_s=120)


async def only_the_bad_one_is_dead(db: asyncpg.Connection) -> bool:
    await make_due(db)
    failed = {key: row["state"] for key, row in (await failures(db)).items()}
    return failed == {BAD: "dead"} and not await pending(db)


@pytest.mark.own_server
async def test_a_key_for_which_the_kernel_kills_a_backend_is_dead_in_the_end_and_alone(tmp_path: Path) -> None:
    """The postmaster ends all other sessions with it; those tell whoever was in them that he is innocent."""

    async def innocent_is_done(db: asyncpg.Connection) -> bool:
        # A cautious worker writes it down before each call, and takes that back once it has reconnected: each may have
        # done the first and not yet the second. A third time would mean that nobody excuses it, and convict it.
        assert await db.fetchval("select coalesce(max(crash_count), 0) from outbox.suspect where topic = 'slow'") <= 2
        return await done(db, "slow") == ["innocent"]

    async with mortal_server() as (server, first):
        await make_topic(first, "slow", f"perform pg_advisory_xact_lock_shared({GATE}), pg_sleep(0.2);")
        await make_poison(first, "killer", Poison("copy (select 1) to program 'kill -9 $PPID';", "RC006"))
        await first.execute(f"select pg_advisory_lock({GATE})")  # till the crash
        await enqueue(first, "slow", "innocent")
        with daemon_on(server.dsn(), tmp_path, as_given=True, WORKERS="2"):  # a superuser, who may run programs
            await wait_until_blocked(first, "recalcd worker")
            await enqueue(first, "killer", *CROWD)
            await after_crashes(server, innocent_is_done)
            await after_crashes(server, only_the_bad_one_is_dead)
        async with visit(server) as db:
            row = (await failures(db))[BAD]
            assert (row["sqlstate"], row["attempts"]) == ("RC006", 2)
            assert (await done(db, "killer"), await done(db, "slow")) == (REST, ["innocent"])
            suspects = await db.fetch("select key, crash_count from outbox.suspect")
            crashes = {row["key"]: row["crash_count"] for row in suspects}
            assert crashes.pop(BAD) > 1
            # A worker that takes long to reconnect suspects its whole batch, though the other has run some of it since.
            assert set(crashes.values()) <= {1}


@pytest.mark.own_server
@pytest.mark.skipif(not shutil.which("prlimit"), reason="limiting a server's memory takes prlimit: install util-linux")
async def test_a_key_that_takes_all_memory_is_dead_in_the_end_and_alone(tmp_path: Path) -> None:
    """Where memory is limited for a process, Postgres says so itself, and no session is lost."""
    async with mortal_server() as (server, db):
        # The limit of the postmaster, which its children inherit; set by one of them, since it may belong to nobody.
        await db.execute(f"copy (select 1) to program 'prlimit --pid {server.pid} --as={MEMORY_BYTES}'")
        await make_poison(db, "eater", Poison(f"perform repeat('x', {MEMORY_BYTES});", "53200"))
        await enqueue(db, "eater", *CROWD)
        with daemon_on(server.dsn(), tmp_path):
            await after_crashes(server, only_the_bad_one_is_dead)
        row = (await failures(db))[BAD]
        assert (row["sqlstate"], row["message"]) == ("53200", "out of memory")
        assert "repeat" in row["context"]
        assert await done(db, "eater") == REST
        assert await calls(db, "eater") <= 1 + HALVES + 1  # and the retry
