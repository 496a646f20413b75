"""migrate up and down: the shipped sets there and back, and on small sets everything that can go wrong."""

import asyncio
import shutil
from functools import partial
from pathlib import Path

import asyncpg
import pytest
from schema import SqlRoot, schema_of
from servers import Connect
from waiting import eventually, wait_until_blocked

from daemon import migrations
from daemon.errors import DatabaseUnavailable, RecalcdError, SchemaMismatch, UsageError
from daemon.migration_files import SET_NAMES, load_sets
from daemon.migration_state import check_schema, read_status
from daemon.migrations import Audience
from daemon.sql import SQL_ROOT

ADD = "create or replace function outbox.add(a integer, b integer) returns integer language sql as 'select a + b';"


@pytest.fixture
def dsn(empty_dsn: str) -> str:
    """Give these tests a database that nobody has migrated."""
    return empty_dsn


@pytest.fixture
def sql_root(tmp_path: Path) -> SqlRoot:
    """Make a set with two tables and a routine."""
    root = SqlRoot(tmp_path / "sql")
    root.migration("outbox", 1, "one", "create table outbox.one (n integer);", "drop table outbox.one;")
    root.migration("outbox", 2, "two", "create table outbox.two (n integer);", "drop table outbox.two;")
    root.routine("outbox", "outbox.add.sql", ADD)
    return root


class Told(list[str]):
    """An audience that remembers."""

    @property
    def audience(self) -> Audience:
        return Audience(tell=self.append, warn=lambda line: self.append(f"warning: {line}"))


async def test_up_down_and_up_again_make_the_same_and_leave_nothing(dsn: str, db: asyncpg.Connection) -> None:
    empty = schema_of(dsn)
    await migrations.up(db)
    full = schema_of(dsn)
    await check_schema(db)
    await migrations.down(db)
    assert schema_of(dsn) == empty
    await migrations.up(db)
    assert schema_of(dsn) == full


async def test_every_shipped_migration_goes_there_and_back(dsn: str, db: asyncpg.Connection, tmp_path: Path) -> None:
    shutil.copytree(SQL_ROOT / "migrations", tmp_path / "migrations")  # routines would stay on the way down
    for each in load_sets(tmp_path):
        for version in range(1, each.newest + 1):
            before = schema_of(dsn)
            await migrations.up(db, set_names=(each.name,), to=version, sql_root=tmp_path)
            after = schema_of(dsn)
            await migrations.down(db, set_names=(each.name,), to=version - 1, sql_root=tmp_path)
            assert schema_of(dsn) == before, f"{each.name} {version} leaves something behind"
            await migrations.up(db, set_names=(each.name,), to=version, sql_root=tmp_path)
            assert schema_of(dsn) == after, f"{each.name} {version} is not the same the second time"


async def test_up_again_finds_nothing_to_do(dsn: str, db: asyncpg.Connection) -> None:
    await migrations.up(db)
    before, told = schema_of(dsn), Told()
    assert await migrations.up(db, audience=told.audience) == 0
    assert told == ["Nothing to do."]
    assert schema_of(dsn) == before


async def test_dry_run_tells_and_changes_nothing(dsn: str, db: asyncpg.Connection, sql_root: SqlRoot) -> None:
    empty, told = schema_of(dsn), Told()
    await migrations.up(db, dry_run=True, sql_root=sql_root.path, audience=told.audience)
    assert told == ["would apply outbox 0001_one", "would apply outbox 0002_two", "would apply outbox outbox.add.sql"]
    assert schema_of(dsn) == empty
    await migrations.up(db, sql_root=sql_root.path)
    full = schema_of(dsn)
    told.clear()
    await migrations.down(db, dry_run=True, sql_root=sql_root.path, audience=told.audience)
    assert told == [
        "would drop outbox outbox.add.sql",
        "would take back outbox 0002_two",
        "would take back outbox 0001_one",
    ]
    assert schema_of(dsn) == full
    await db.fetchval("select outbox.add(1, 2)")


async def test_up_to_a_version_stops_there_and_leaves_the_routines_for_later(
    db: asyncpg.Connection, sql_root: SqlRoot
) -> None:
    await migrations.up(db, set_names=("outbox",), to=1, sql_root=sql_root.path)
    status = (await read_status(db, sql_root.path))[0]
    assert [(str(each), str(each.state)) for each in status.migrations + status.routines] == [
        ("0001_one", "applied"),
        ("0002_two", "pending"),
        ("outbox.add.sql", "pending"),
    ]


@pytest.mark.parametrize(
    ("set_names", "to", "sentence"),
    [
        (SET_NAMES, 1, "say which with --set"),
        (("outbox",), 3, "no version 3: the newest of this release is 2"),
    ],
)
async def test_a_version_must_be_one(
    db: asyncpg.Connection, sql_root: SqlRoot, set_names: tuple[str, ...], to: int, sentence: str
) -> None:
    for go in (migrations.up, migrations.down):
        with pytest.raises(UsageError, match=sentence):
            await go(db, set_names=set_names, to=to, sql_root=sql_root.path)


async def test_a_migration_that_fails_rolls_back_wholly_and_says_where(
    dsn: str, db: asyncpg.Connection, sql_root: SqlRoot
) -> None:
    sql_root.migration("outbox", 3, "three", "create table outbox.three (n integer);\ncreate table outbox.one ();\n")
    with pytest.raises(RecalcdError, match=r'Migration outbox 0003_three failed.*"one" already exists \(42P07'):
        await migrations.up(db, sql_root=sql_root.path)
    assert "outbox.three" not in schema_of(dsn)
    assert (await read_status(db, sql_root.path))[0].version == 2

    sql_root.migration("outbox", 3, "three", "create table outbox.three (n integer);\n\nselect nonsense;\n")
    with pytest.raises(RecalcdError, match=r"\(42703, line 3\)"):
        await migrations.up(db, sql_root=sql_root.path)


async def test_when_the_first_migration_fails_not_even_the_books_are_left(
    dsn: str, db: asyncpg.Connection, sql_root: SqlRoot
) -> None:
    empty = schema_of(dsn)
    sql_root.migration("outbox", 1, "one", "select nonsense")
    with pytest.raises(RecalcdError, match="outbox 0001_one failed"):
        await migrations.up(db, sql_root=sql_root.path)
    assert schema_of(dsn) == empty


async def test_a_connection_that_breaks_says_why_and_leaves_nothing_half_done(
    db: asyncpg.Connection, connect: Connect, sql_root: SqlRoot
) -> None:
    sql_root.migration("outbox", 3, "three", "create table outbox.three (); select pg_advisory_xact_lock(1);")
    runner = await connect("runner")
    await db.execute("select pg_advisory_lock(1)")
    up = asyncio.create_task(migrations.up(runner, sql_root=sql_root.path))
    await wait_until_blocked(db, "runner")
    await db.execute("select pg_terminate_backend($1)", runner.get_server_pid())
    with pytest.raises(DatabaseUnavailable, match=r"0003_three failed and was rolled back: .*administrator command"):
        await up
    assert (await read_status(db, sql_root.path))[0].version == 2
    assert await db.fetchval("select to_regclass('outbox.three')") is None


async def test_a_name_without_its_schema_is_an_error(db: asyncpg.Connection, sql_root: SqlRoot) -> None:
    sql_root.migration("outbox", 3, "three", "create table three (n integer);")
    with pytest.raises(RecalcdError, match="0003_three failed"):
        await migrations.up(db, sql_root=sql_root.path)


async def test_an_edited_file_is_refused_both_ways(db: asyncpg.Connection, sql_root: SqlRoot) -> None:
    await migrations.up(db, sql_root=sql_root.path)
    sql_root.migration("outbox", 1, "one", "create table outbox.one (n bigint);", "drop table outbox.one;")
    for go in (migrations.up, migrations.down):
        with pytest.raises(SchemaMismatch, match=r"0001_one was edited after it was applied.*new migration"):
            await go(db, sql_root=sql_root.path)
    with pytest.raises(SchemaMismatch, match="0001_one was edited"):
        await check_schema(db, sql_root.path)


async def test_a_checkout_with_other_line_ends_is_no_edit(db: asyncpg.Connection, sql_root: SqlRoot) -> None:
    path = sql_root.migration("outbox", 1, "one", "create table outbox.one (\n);\n", "drop table outbox.one;")
    await migrations.up(db, sql_root=sql_root.path)
    path.write_bytes(b"create table outbox.one (\r\n);\r\n")
    assert await migrations.up(db, sql_root=sql_root.path) == 0


async def test_a_newer_database_is_refused_both_ways(db: asyncpg.Connection, sql_root: SqlRoot) -> None:
    path = sql_root.migration("outbox", 3, "three", "create table outbox.three ();", "drop table outbox.three;")
    await migrations.up(db, sql_root=sql_root.path)
    path.unlink()
    path.with_name("0003_three.down.sql").unlink()
    for go in (migrations.up, migrations.down):
        with pytest.raises(SchemaMismatch, match=r"newer than this release.*holds 0003_three"):
            await go(db, sql_root=sql_root.path)
    with pytest.raises(SchemaMismatch, match="newer than this release"):
        await check_schema(db, sql_root.path)


async def test_the_second_runner_waits_for_the_first(
    db: asyncpg.Connection, connect: Connect, sql_root: SqlRoot
) -> None:
    sql_root.migration("outbox", 3, "three", "select pg_advisory_xact_lock(1);")
    first, second = await connect("first"), await connect("second")
    told = Told()
    async with asyncio.timeout(20), asyncio.TaskGroup() as group, db.transaction():
        await db.execute("select pg_advisory_xact_lock(1)")
        group.create_task(migrations.up(first, sql_root=sql_root.path))
        await wait_until_blocked(db, "first")
        group.create_task(migrations.up(second, sql_root=sql_root.path, audience=told.audience))
        await wait_until_blocked(db, "second")
    assert told == [
        "warning: Another `recalcd migrate` is at work on this database: waiting for it.",
        "Nothing to do.",
    ]
    assert await db.fetchval("select pg_try_advisory_lock(29283, 2)"), "it is still held"


async def test_a_short_statement_timeout_of_the_role_ends_neither_wait_nor_migration(
    db: asyncpg.Connection, connect: Connect, sql_root: SqlRoot
) -> None:
    sql_root.migration("outbox", 3, "three", "select pg_advisory_xact_lock(1, 1);")
    hurried = await connect("hurried")
    await hurried.execute("set statement_timeout = '250ms'")

    async def waits_too_long(namespace: int, number: int) -> bool:
        return bool(
            await db.fetchval(
                """
                select exists (
                    select from pg_locks as l inner join pg_stat_activity as a using (pid)
                    where a.application_name = 'hurried' and a.datname = current_database()
                        and l.locktype = 'advisory' and not l.granted and l.classid = $1 and l.objid = $2
                        and now() - a.query_start > '300 ms'
                )
                """,
                namespace,
                number,
            )
        )

    async with asyncio.timeout(20):
        await db.execute("select pg_advisory_lock(1, 1), pg_advisory_lock(29283, 2)")
        up = asyncio.create_task(migrations.up(hurried, sql_root=sql_root.path))
        for lock in ((29283, 2), (1, 1)):
            await eventually(partial(waits_too_long, *lock))
            await db.execute("select pg_advisory_unlock($1::int, $2::int)", *lock)
        assert await up == 4


async def test_a_changed_routine_is_applied_again_and_no_other(db: asyncpg.Connection, sql_root: SqlRoot) -> None:
    sql_root.routine("outbox", "outbox.same.sql", ADD.replace("outbox.add", "outbox.same"))
    await migrations.up(db, sql_root=sql_root.path)
    sql_root.routine("outbox", "outbox.add.sql", ADD.replace("a + b", "a + b + 100"))
    with pytest.raises(SchemaMismatch, match=r"outbox\.add\.sql is changed\. Run `recalcd migrate up`"):
        await check_schema(db, sql_root.path)
    told = Told()
    await migrations.up(db, sql_root=sql_root.path, audience=told.audience)
    assert told == ["applied outbox outbox.add.sql"]
    assert await db.fetchval("select outbox.add(1, 2)") == 103


async def test_a_routine_that_somebody_dropped_comes_back(db: asyncpg.Connection, sql_root: SqlRoot) -> None:
    await migrations.up(db, sql_root=sql_root.path)
    await db.execute("drop function outbox.add")
    with pytest.raises(SchemaMismatch, match=r"outbox\.add\.sql is missing"):
        await check_schema(db, sql_root.path)
    await migrations.up(db, sql_root=sql_root.path)
    assert await db.fetchval("select outbox.add(1, 2)") == 3


async def test_a_routine_whose_file_is_gone_is_dropped_with_all_overloads(
    db: asyncpg.Connection, sql_root: SqlRoot
) -> None:
    path = sql_root.routine("outbox", "outbox.add.sql", ADD + ADD.replace("integer", "bigint"))
    await migrations.up(db, sql_root=sql_root.path)
    path.unlink()
    with pytest.raises(SchemaMismatch, match=r"outbox\.add\.sql is gone"):
        await check_schema(db, sql_root.path)
    await migrations.up(db, sql_root=sql_root.path)
    assert await db.fetchval("select count(*) from pg_proc where pronamespace = 'outbox'::regnamespace") == 0


async def test_an_overload_that_left_its_file_is_dropped(db: asyncpg.Connection, sql_root: SqlRoot) -> None:
    sql_root.routine("outbox", "outbox.add.sql", ADD + ADD.replace("integer", "bigint"))
    await migrations.up(db, sql_root=sql_root.path)
    sql_root.routine("outbox", "outbox.add.sql", ADD)
    await migrations.up(db, sql_root=sql_root.path)
    signatures = "select array_agg(oid::regprocedure::text) from pg_proc where pronamespace = 'outbox'::regnamespace"
    assert await db.fetchval(signatures) == ["outbox.add(integer,integer)"]


async def test_a_failing_routine_leaves_all_routines_as_they_were(db: asyncpg.Connection, sql_root: SqlRoot) -> None:
    await migrations.up(db, sql_root=sql_root.path)
    sql_root.routine("outbox", "outbox.add.sql", ADD.replace("a + b", "a + b + 100"))
    sql_root.routine("outbox", "outbox.broken.sql", "create function outbox.broken(nonsense) returns void;")
    with pytest.raises(RecalcdError, match=r"Routine outbox outbox\.broken\.sql failed"):
        await migrations.up(db, sql_root=sql_root.path)
    assert await db.fetchval("select outbox.add(1, 2)") == 3


async def test_a_routine_file_makes_what_it_is_named_after(db: asyncpg.Connection, sql_root: SqlRoot) -> None:
    sql_root.routine("outbox", "outbox.subtract.sql", ADD)
    with pytest.raises(RecalcdError, match=r"outbox\.subtract\.sql does not create the routine"):
        await migrations.up(db, sql_root=sql_root.path)


async def test_routines_may_name_what_comes_later(db: asyncpg.Connection, sql_root: SqlRoot) -> None:
    sql_root.routine(
        "outbox", "outbox.aaa.sql", "create function outbox.aaa() returns integer return outbox.add(1, 2);"
    )  # begin atomic and return are parsed at once, whatever check_function_bodies says
    with pytest.raises(RecalcdError, match="aaa"):
        await migrations.up(db, sql_root=sql_root.path)
    sql_root.routine(
        "outbox",
        "outbox.aaa.sql",
        "create function outbox.aaa() returns integer language sql as 'select outbox.add(1, 2)';",
    )
    await migrations.up(db, sql_root=sql_root.path)
    assert await db.fetchval("select outbox.aaa()") == 3


async def test_reports_needs_the_engine(db: asyncpg.Connection) -> None:
    with pytest.raises(SchemaMismatch, match="Set reports needs set outbox"):
        await migrations.up(db, set_names=("reports",))
    await migrations.up(db, set_names=("outbox",))
    await migrations.up(db, set_names=("reports",))
    await check_schema(db)
    with pytest.raises(SchemaMismatch, match="Set reports needs set outbox: take reports back first"):
        await migrations.down(db, set_names=("outbox",))
    await migrations.down(db, set_names=("reports",))
    await check_schema(db)


async def test_an_upgrade_adds_no_set_that_was_left_out(db: asyncpg.Connection) -> None:
    told: list[str] = []
    await migrations.up(db, set_names=("outbox",))
    await migrations.up(db, audience=Audience(tell=told.append))
    assert told == ["leaving out set reports, which is not there: --set reports adds it", "Nothing to do."]
    assert await db.fetchval("select to_regnamespace('school') is null and to_regnamespace('reports') is null")


async def test_the_engine_goes_back_a_version_with_the_reports_in_place(dsn: str, db: asyncpg.Connection) -> None:
    await migrations.up(db)
    before = schema_of(dsn)
    newest = max(each.newest for each in load_sets(SQL_ROOT) if each.name == "outbox")
    assert await migrations.down(db, set_names=("outbox",), to=newest - 1) == 1
    await migrations.up(db)
    assert schema_of(dsn) == before


PENDING = "insert into outbox.event (topic, key) values ('t', '1'), ('t', '2')"
OWED = "insert into outbox.failure (topic, key, next_attempt_at) values ('t', '1', now())"


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [(PENDING, r"lose pending events \(2\)"), (OWED, r"lose failed keys that are owed a recalculation \(1\)")],
)
async def test_down_refuses_to_lose_what_is_owed(dsn: str, db: asyncpg.Connection, rows: str, sentence: str) -> None:
    await migrations.up(db)
    await db.execute(rows)
    before = schema_of(dsn)
    with pytest.raises(RecalcdError, match=sentence):
        await migrations.down(db)
    assert schema_of(dsn) == before
    await migrations.down(db, lose_events=True)
    assert "outbox" not in schema_of(dsn)


async def test_down_refuses_an_event_that_commits_meanwhile(db: asyncpg.Connection, connect: Connect) -> None:
    await migrations.up(db)
    runner = await connect("runner")
    async with asyncio.timeout(20):
        async with db.transaction():
            await db.execute(PENDING)
            down = asyncio.create_task(migrations.down(runner))
            await wait_until_blocked(db, "runner")
        with pytest.raises(RecalcdError, match=r"lose pending events \(2\)"):
            await down
    await migrations.up(db)
    await check_schema(db)
    assert await db.fetchval("select count(*) from outbox.event") == 2


async def test_down_files_can_see_that_events_may_be_lost(db: asyncpg.Connection, sql_root: SqlRoot) -> None:
    down = "do $$ begin assert current_setting('recalcd.lose_events') = 'on'; end $$;"
    sql_root.migration("outbox", 3, "three", "", down)
    await migrations.up(db, sql_root=sql_root.path)
    with pytest.raises(RecalcdError, match="0003_three failed"):
        await migrations.down(db, sql_root=sql_root.path)
    await migrations.down(db, lose_events=True, sql_root=sql_root.path)


async def test_down_leaves_what_others_put_into_the_schema(db: asyncpg.Connection, sql_root: SqlRoot) -> None:
    await migrations.up(db, sql_root=sql_root.path)
    await db.execute("create table outbox.theirs ()")
    with pytest.raises(RecalcdError, match="cannot drop schema outbox because other objects depend on it"):
        await migrations.down(db, sql_root=sql_root.path)
    assert (await read_status(db, sql_root.path))[0].version == 1


async def test_the_daemon_is_told_what_is_wrong_with_the_schema(db: asyncpg.Connection, sql_root: SqlRoot) -> None:
    with pytest.raises(SchemaMismatch, match=r"no recalcd schema\. Run `recalcd migrate up`") as caught:
        await check_schema(db, sql_root.path)
    assert caught.value.exit_code == 4
    await migrations.up(db, set_names=("outbox",), to=1, sql_root=sql_root.path)
    with pytest.raises(SchemaMismatch, match=r"older than this release.*lacks 0002_two. Run `recalcd migrate up`"):
        await check_schema(db, sql_root.path)
    await migrations.up(db, sql_root=sql_root.path)
    await check_schema(db, sql_root.path)


@pytest.mark.parametrize(
    ("file_name", "sentence"),
    [
        ("0003_three.sql", "is not named NNNN_name"),
        ("0003_three.up.sql", "0003_three lacks its up or its down file"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(sql_root: SqlRoot, file_name: str, sentence: str) -> None:
    (sql_root.path / "migrations" / "outbox" / file_name).touch()
    with pytest.raises(ValueError, match=sentence):
        load_sets(sql_root.path)


def test_versions_leave_no_gap_and_none_twice(sql_root: SqlRoot) -> None:
    sql_root.migration("outbox", 4, "four", "")
    with pytest.raises(ValueError, match=r"not numbered 1, 2, 3 and so on: \[1, 2, 4\]"):
        load_sets(sql_root.path)


def test_a_routine_file_is_named_after_its_routine(sql_root: SqlRoot) -> None:
    sql_root.routine("outbox", "add.sql", ADD)
    with pytest.raises(ValueError, match=r"is not named schema\.routine\.sql"):
        load_sets(sql_root.path)


async def test_a_migration_that_deadlocks_with_a_daemon_at_work_is_tried_again(
    db: asyncpg.Connection, connect: Connect, sql_root: SqlRoot
) -> None:
    # A server looks for a deadlock once per wait: the migration has to be the last of the two to wait.
    down = "lock outbox.one; select pg_advisory_xact_lock(1); lock outbox.two;"
    sql_root.migration("outbox", 3, "three", "select;", down)
    await migrations.up(db, set_names=["outbox"], sql_root=sql_root.path)
    admin, at_work = await connect("migration"), await connect("at work")
    await at_work.execute("set deadlock_timeout = '1h'; begin; lock outbox.two")
    await db.execute("select pg_advisory_lock(1)")
    going = asyncio.create_task(migrations.down(admin, set_names=["outbox"], to=2, sql_root=sql_root.path))
    await wait_until_blocked(db, "migration")
    working = asyncio.create_task(at_work.execute("lock outbox.one; commit"))
    await wait_until_blocked(db, "at work")
    await db.execute("select pg_advisory_unlock(1)")
    await asyncio.gather(going, working)
    assert await db.fetchval("select max(version) from outbox.migration") == 2
