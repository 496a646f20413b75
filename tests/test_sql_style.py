"""House rules that the shipped SQL keeps, checked on the migrated schema and on the files."""

import re
from pathlib import Path

import asyncpg
import pytest

from daemon.sql import SQL_ROOT, statement

SCHEMAS = ["outbox", "school", "reports"]

FILES = sorted(SQL_ROOT.rglob("*.sql"))
QUERIES = sorted((SQL_ROOT / "queries").glob("*.sql"))


def code_of(path: Path) -> str:
    """Return the file without what stands in comments and in string literals."""
    text = re.sub(r"--[^\n]*", "--", path.read_text("utf-8"))
    return re.sub(r"'(?:[^']|'')*'", "''", text)


def name_of(path: Path) -> str:
    return str(path.relative_to(SQL_ROOT))


async def offenders(db: asyncpg.Connection, query: str) -> list[str]:
    return [row[0] for row in await db.fetch(query, SCHEMAS)]


async def test_every_table_view_and_index_of_its_own_has_a_comment(db: asyncpg.Connection) -> None:
    # An index behind a constraint is explained by the constraint; partitions by their parent.
    query = """
        select c.oid::regclass::text
        from pg_class as c
        where c.relnamespace::regnamespace::text = any ($1) and c.relkind in ('r', 'p', 'v', 'm', 'i', 'I')
            and not c.relispartition
            and not exists (select from pg_constraint as k where k.conindid = c.oid)
            and obj_description(c.oid, 'pg_class') is null
    """
    assert await offenders(db, query) == []


async def test_every_column_has_a_comment(db: asyncpg.Connection) -> None:
    query = """
        select c.oid::regclass || '.' || a.attname
        from pg_class as c
        inner join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        where c.relnamespace::regnamespace::text = any ($1) and c.relkind in ('r', 'p', 'v', 'm', 'c')
            and not c.relispartition and col_description(c.oid, a.attnum) is null
    """
    assert await offenders(db, query) == []


async def test_every_routine_has_a_comment(db: asyncpg.Connection) -> None:
    query = """
        select oid::regprocedure::text from pg_proc
        where pronamespace::regnamespace::text = any ($1) and obj_description(oid, 'pg_proc') is null
    """
    assert await offenders(db, query) == []


async def test_every_schema_and_type_has_a_comment(db: asyncpg.Connection) -> None:
    query = """
        select nspname from pg_namespace where nspname = any ($1) and obj_description(oid, 'pg_namespace') is null
        union all
        select t.oid::regtype::text from pg_type as t left join pg_class as c on c.oid = t.typrelid
        where t.typnamespace::regnamespace::text = any ($1) and t.typelem = 0 and coalesce(c.relkind, 'c') = 'c'
            and obj_description(t.oid, 'pg_type') is null
    """
    assert await offenders(db, query) == []


async def test_there_are_no_triggers(db: asyncpg.Connection) -> None:
    query = """
        select t.tgname::text from pg_trigger as t inner join pg_class as c on c.oid = t.tgrelid
        where not t.tgisinternal and c.relnamespace::regnamespace::text = any ($1)
    """
    assert await offenders(db, query) == []
    assert await db.fetch("select from pg_event_trigger") == []


async def test_names_of_constraints_and_indexes_say_table_and_rule(db: asyncpg.Connection) -> None:
    # PostgreSQL 18 names not-null constraints, 'n', by itself.
    query = """
        with named as (
            select k.conname as name, c.relname as table_name,
                case k.contype when 'p' then 'pkey' when 'u' then 'key' when 'f' then 'fkey' when 'c' then 'check'
                    when 'x' then 'excl' end as kind
            from pg_constraint as k inner join pg_class as c on c.oid = k.conrelid
            where c.relnamespace::regnamespace::text = any ($1) and not c.relispartition and k.contype <> 'n'
            union all
            select i.relname, c.relname, 'idx'
            from pg_index as x
            inner join pg_class as i on i.oid = x.indexrelid
            inner join pg_class as c on c.oid = x.indrelid
            where c.relnamespace::regnamespace::text = any ($1) and not c.relispartition
                and not exists (select from pg_constraint as k where k.conindid = i.oid)
        )
        select table_name || ': ' || name from named
        where name !~ ('^' || table_name || case when kind = 'pkey' then '_pkey$' else '_.+_' || kind || '$' end)
    """
    assert await offenders(db, query) == []


async def test_routines_with_their_owners_rights_pin_the_search_path(db: asyncpg.Connection) -> None:
    query = """
        select oid::regprocedure::text from pg_proc
        where pronamespace::regnamespace::text = any ($1) and prosecdef
            and not exists (select from unnest(proconfig) as setting where setting like 'search_path=%')
    """
    assert await offenders(db, query) == []


async def test_every_query_can_be_prepared(db: asyncpg.Connection) -> None:
    broken = {}
    for path in QUERIES:
        try:
            await db.prepare(statement(path.stem))
        except asyncpg.PostgresError as error:
            broken[path.stem] = str(error)
    assert broken == {}


def test_every_parameter_has_its_type() -> None:
    bare = {name_of(path): found for path in QUERIES if (found := re.findall(r"\$\d+(?!\d|::)", code_of(path)))}
    assert bare == {}


def test_every_query_is_used() -> None:
    code = "".join(
        path.read_text("utf-8") for path in [*SQL_ROOT.parent.glob("*.py"), *SQL_ROOT.parent.glob("daemon/**/*.py")]
    )
    assert [path.stem for path in QUERIES if f'"{path.stem}"' not in code] == []


@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param(r"\bselect\s+(?:distinct\s+)?(?:\w+\.)?\*", id="select *"),
        pytest.param(
            r"\b(?:SELECT|INSERT|UPDATE|DELETE|FROM|WHERE|CREATE|TABLE|FUNCTION|BEGIN|END)\b", id="upper case"
        ),
        pytest.param(r"\bcreate\s+(?:or\s+replace\s+)?(?:constraint\s+)?trigger\b", id="trigger"),
        pytest.param(r"\bdrop\b[^;]*\bcascade\b", id="drop cascade"),
        pytest.param(r"[ \t]+\n|\t", id="blanks at the end, tabs"),
    ],
)
def test_no_file_has(pattern: str) -> None:
    found = {name_of(path): match.group() for path in FILES if (match := re.search(pattern, code_of(path)))}
    assert found == {}


def test_every_file_begins_with_a_comment_and_ends_with_a_newline() -> None:
    texts = {name_of(path): path.read_text("utf-8") for path in FILES}
    assert [name for name, text in texts.items() if not text.startswith("-- ")] == []
    assert [name for name, text in texts.items() if not text.endswith("\n") or text.endswith("\n\n")] == []
