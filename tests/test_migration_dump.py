"""migrate dump: the file must do what migrate up does, whoever runs it."""

import subprocess
from pathlib import Path

import asyncpg
import pytest
from schema import SqlRoot, schema_of
from servers import Psql

from daemon import migrations
from daemon.migration_dump import dump
from daemon.migration_state import check_schema, read_status

BOOKS = """
select set_name, version::text, name, checksum, '{}'::text[] from outbox.migration
union all select set_name, file_name, '', checksum, signatures from outbox.routine
order by 1, 2
"""

ADD = "create or replace function outbox.add(a integer, b integer) returns integer language sql as 'select a + b';"


@pytest.fixture
def dsn(empty_dsn: str) -> str:
    """Give these tests a database that nobody has migrated."""
    return empty_dsn


@pytest.fixture
def sql_root(tmp_path: Path) -> SqlRoot:
    """Make a set with a table and a routine of two overloads."""
    root = SqlRoot(tmp_path / "sql")
    root.migration("outbox", 1, "one", "create table outbox.one (n integer);", "drop table outbox.one;")
    root.routine("outbox", "outbox.add.sql", ADD + ADD.replace("integer", "bigint"))
    return root


@pytest.mark.parametrize("options", [(), ("--single-transaction",)], ids=["by statement", "in one transaction"])
async def test_the_dump_applied_twice_equals_migrate_up(
    dsn: str, db: asyncpg.Connection, psql: Psql, options: tuple[str, ...]
) -> None:
    psql(dump(), *options)
    psql(dump(), *options)
    dumped, books = schema_of(dsn), await db.fetch(BOOKS)
    await check_schema(db)
    assert await migrations.up(db) == 0
    await migrations.down(db)
    await migrations.up(db)
    assert schema_of(dsn) == dumped
    assert await db.fetch(BOOKS) == books


async def test_the_dump_works_under_a_savepoint(db: asyncpg.Connection) -> None:
    async with db.transaction(), db.transaction():
        await db.execute(dump())
    await check_schema(db)


async def test_the_settings_of_the_tool_are_as_they_were(db: asyncpg.Connection) -> None:
    shown = "select current_setting('search_path') || current_setting('check_function_bodies')"
    async with db.transaction():
        before = await db.fetchval(shown)
        await db.execute(dump())
        assert await db.fetchval(shown) == before


async def test_the_dump_goes_on_where_the_database_is(db: asyncpg.Connection, psql: Psql) -> None:
    await migrations.up(db, set_names=("outbox",), to=1)
    psql(dump())
    await check_schema(db)


async def test_one_set_at_a_time(db: asyncpg.Connection, psql: Psql) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        psql(dump(("reports",)))
    assert "Set outbox has to be applied first." in caught.value.stderr
    psql(dump(("outbox",)))
    psql(dump(("reports",)))
    assert all(each.is_current for each in await read_status(db))


async def test_routines_are_changed_brought_back_and_dropped(
    db: asyncpg.Connection, psql: Psql, sql_root: SqlRoot
) -> None:
    sql_root.routine("outbox", "outbox.lost.sql", ADD.replace("outbox.add", "outbox.lost"))
    gone = sql_root.routine("outbox", "outbox.gone.sql", ADD.replace("outbox.add", "outbox.gone"))
    psql(dump(sql_root=sql_root.path))
    await db.execute("drop function outbox.lost")
    gone.unlink()
    sql_root.routine("outbox", "outbox.add.sql", ADD.replace("a + b", "a + b + 100"))
    psql(dump(sql_root=sql_root.path))
    assert await db.fetchval("select outbox.add(1, 2)") == 103
    signatures = "select oid::regprocedure::text from pg_proc where pronamespace = 'outbox'::regnamespace order by 1"
    made = [row[0] for row in await db.fetch(signatures)]
    assert made == ["outbox.add(integer,integer)", "outbox.lost(integer,integer)"]
    await check_schema(db, sql_root.path)


async def test_a_routine_file_makes_what_it_is_named_after(psql: Psql, sql_root: SqlRoot) -> None:
    sql_root.routine("outbox", "outbox.subtract.sql", ADD)
    with pytest.raises(subprocess.CalledProcessError) as caught:
        psql(dump(sql_root=sql_root.path))
    assert "outbox.subtract.sql does not create the routine" in caught.value.stderr


async def test_a_newer_database_is_refused_before_anything_is_done(psql: Psql, sql_root: SqlRoot) -> None:
    old = dump(sql_root=sql_root.path)
    sql_root.migration("outbox", 2, "two", "create table outbox.two ();")
    psql(dump(sql_root=sql_root.path))
    with pytest.raises(subprocess.CalledProcessError) as caught:
        psql(old)
    assert "holds migrations that are not those of recalcd" in caught.value.stderr
    assert "outbox 0002_two" in caught.value.stderr


def test_nothing_in_it_is_a_placeholder_of_flyway_or_a_second_part_for_dbmate() -> None:
    assert "${" not in dump()
    assert [line for line in dump().splitlines() if line.startswith("-- migrate:")] == ["-- migrate:up"]


def test_a_file_must_not_end_its_own_quotes(sql_root: SqlRoot) -> None:
    sql_root.migration("outbox", 2, "two", "select $recalcd_file$;")
    with pytest.raises(ValueError, match="must not hold the quotes"):
        dump(sql_root=sql_root.path)
