"""A writer who plants things, and names that are SQL: nothing of theirs ever runs with rights that they do not have."""

import contextlib
import json
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import asyncpg
import pytest
from engine import LEDGER, drain, make_ledger, refused
from servers import as_daemon

from daemon.batch import Recalculation
from daemon.database import close

PLANTED = "planted: it ran as %"

KEPT = Recalculation(None, "live", keep_history=True)

EVIL = """a'); drop table outbox.event; --"$$%s%I\\"""
"""A text that ends strings, identifiers and dollar quotes, and that format would take for placeholders."""


@pytest.fixture
async def mallory(db: asyncpg.Connection) -> AsyncIterator[str]:
    """Make a writer who may create things in a schema of their own, in schema shop and in public."""
    name = await db.fetchval("select current_database() || '_mallory'")
    await db.execute(f"""
        create role {name} in role recalcd_writer, recalcd_reader;
        create schema mallory authorization {name};
        create schema shop; grant usage, create on schema shop to {name}; grant create on schema public to {name};
    """)
    yield name
    await db.execute(f"reset role; drop owned by {name} cascade; drop role {name}")


@pytest.fixture
async def writer(mallory: str, dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """Connect as that writer."""
    writer = await asyncpg.connect(dsn)
    await writer.execute(f"set session authorization {mallory}")
    yield writer
    await close(writer)


@pytest.fixture
async def daemon(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """Connect as a daemon does."""
    daemon = await asyncpg.connect(as_daemon(dsn))
    yield daemon
    await close(daemon)


async def test_routines_with_their_owners_rights_look_nowhere_but_in_the_catalog(db: asyncpg.Connection) -> None:
    found = await db.fetch("""
        select p.oid::regprocedure::text as name, p.proconfig as settings
        from pg_proc as p
        where p.prosecdef and p.pronamespace::regnamespace::text in ('outbox', 'school', 'reports')
    """)
    assert len(found) > 30
    pinned = "search_path=pg_catalog, pg_temp"
    assert [row["name"] for row in found if pinned not in (row["settings"] or [])] == []


async def test_routines_without_a_search_path_are_known_and_have_their_callers_rights(db: asyncpg.Connection) -> None:
    """Those that run a topic's routines with the path of a caller in psql, and those that a statement takes in."""
    found = await db.fetch("""
        select p.pronamespace::regnamespace || '.' || p.proname as name
        from pg_proc as p
        where p.pronamespace::regnamespace::text in ('outbox', 'school', 'reports')
          and not exists (select from unnest(p.proconfig) as s (setting) where s.setting like 'search_path=%')
        order by 1
    """)
    assert [row["name"] for row in found] == [
        "outbox.describe",
        "outbox.find_drift",
        "outbox.find_left",
        "outbox.forget",
        "outbox.key_lock_id",
        "outbox.list_job_keys",
        "outbox.list_keys",
        "outbox.list_part",
        "outbox.next_audit",
        "outbox.recalculate",
        "outbox.run_batch",
        "outbox.traceparent",
        "reports.average",
        "reports.backfill_student_rollups",
        "reports.level_counts",
        "reports.standings",
    ]


# Names that a routine might find instead of what it means

NAMESAKES = """
select distinct p.proname as name, pg_get_function_identity_arguments(p.oid) as arguments,
       pg_get_function_result(p.oid) as result
from pg_proc as p
where p.pronamespace = 'pg_catalog'::regnamespace and p.prokind = 'f' and not p.proretset
  and exists (
      select from pg_proc as ours
      where ours.pronamespace::regnamespace::text in ('outbox', 'school', 'reports')
        and ours.prosrc ~ ('\\m' || p.proname || '\\(')
  )
"""

OPERATORS = {
    "text": ["=", "<>", "||", "~"],
    "uuid": ["=", "<>", "<="],
    "date": ["<="],
    "bigint": ["<"],
    "integer": ["="],
    "timestamptz": [">=", "<"],
    "double precision": ["*"],
}
"""By the type of both operands."""


TABLES = """
select c.relname as name
from pg_class as c
join pg_namespace as n on n.oid = c.relnamespace
where n.nspname in ('outbox', 'school', 'reports') and c.relkind in ('r', 'p')
   or n.nspname = 'pg_catalog' and c.relname in ('pg_locks', 'pg_class', 'pg_proc', 'pg_database')
"""

NOT_TO_BE_MADE = (
    asyncpg.InvalidFunctionDefinitionError,
    asyncpg.PostgresSyntaxError,
    asyncpg.FeatureNotSupportedError,
)
"""Of functions that take anything, and those whose name is grammar."""


def trap(routine: str) -> str:
    return f"create {routine} language plpgsql as $$ begin raise exception '{PLANTED}', current_user; end $$"


async def plant_everything(writer: asyncpg.Connection, db: asyncpg.Connection) -> int:
    """Plant a namesake of every function, operator, type and table that our routines use, and put them first."""
    count = 0
    for row in await db.fetch(NAMESAKES):
        with contextlib.suppress(*NOT_TO_BE_MADE):
            await writer.execute(trap(f"function mallory.{row['name']}({row['arguments']}) returns {row['result']}"))
            count += 1
    for number, (kind, operator) in enumerate((kind, each) for kind, some in OPERATORS.items() for each in some):
        result = kind if operator in {"*", "||"} else "boolean"
        await writer.execute(f"""
            {trap(f"function mallory.operator_{number}(a {kind}, b {kind}) returns {result}")};
            create operator mallory.{operator} (
                leftarg = {kind}, rightarg = {kind}, function = mallory.operator_{number}
            );
        """)
    for row in await db.fetch(TABLES):
        await writer.execute(f"create temporary table {row['name']} (topic text, key text, paused_at timestamptz)")
    for name in ("text", "uuid", "timestamptz", "boolean", "regclass"):
        await writer.execute(f'create domain pg_temp."{name}" as pg_catalog.text check (false)')
    await writer.execute("set search_path = pg_temp, mallory, public, pg_catalog")
    return count


async def test_what_a_writer_plants_is_never_called(writer: asyncpg.Connection, db: asyncpg.Connection) -> None:
    assert await plant_everything(writer, db) > 30
    with refused("P0001", "planted"):  # that is, the trap works
        await writer.execute("select length('x'::pg_catalog.text)")

    async def call(routine: str, *arguments: object) -> object:
        slots = ", ".join(f"${number}" for number in range(1, len(arguments) + 1))
        return await writer.fetchval(f"select {routine}({slots})", *arguments)

    cohort, other = await call("school.add_cohort", "2026"), await call("school.add_cohort", "2027")
    group, unit = await call("school.add_group", "7A"), await call("school.add_unit", "Mathematics", "Fractions")
    pupil = await call("school.add_student", cohort, "Ada")
    assert await call("school.join_group", pupil, group)
    assignment = await db.fetchval("select school.set_assignment($1, $2, 1, 'activity')", group, unit)
    assert await call("school.record_feedback", assignment, pupil, 1)
    assert await call("school.retract_feedback", assignment, pupil)
    assert await call("school.move_cohort", pupil, other)
    assert await call("school.edit_group", group, "7B")
    assert await call("school.edit_unit", unit, "Physics", "Light")
    await call("school.delete_cohort", cohort)
    await call("outbox.enqueue", "reports.student", "x", "y")
    await writer.execute("select outbox.enqueue('reports.student', array['x']::pg_catalog.text[]), outbox.ring()")
    assert not await call("outbox.is_fresh", "reports.student", str(pupil))
    await writer.execute("select outbox.wait_fresh('reports.student', 'x', '1 ms'::pg_catalog.interval)")
    await writer.execute("select from reports.student_report($1)", pupil)
    await writer.execute("select from reports.group_report($1)", group)
    await call("school.delete_unit", unit)
    await call("school.delete_group", group)
    await call("school.remove_student", pupil)
    assert await db.fetchval("select count(*) from outbox.event") > 10
    assert await writer.fetchval("select pg_catalog.count(*) from pg_temp.event") == 0


# Topics and their routines

REAL = """
create procedure shop.recalculate(in p_keys text[], inout p_changed_keys text[] default null) language plpgsql
as $$ begin perform outbox.lock_keys('shop', p_keys); p_changed_keys := p_keys; end $$
"""


@pytest.fixture
async def shop(db: asyncpg.Connection, mallory: str) -> None:  # noqa: ARG001  # who makes the schema
    """Make a topic whose procedure lies in a schema where others may create things, too."""
    await db.execute(f"""
        {REAL}; grant usage on schema shop to recalcd_daemon;
        create function shop.list(p_after text, p_limit integer) returns setof text language sql stable
            as $$ select 'k' where p_after is null $$;
        create function shop.describe(p_key text) returns jsonb language sql stable as $$ select '{{}}'::jsonb $$;
        select outbox.set_topic('shop', 'shop.recalculate', p_list_keys => 'shop.list', p_describe => 'shop.describe');
    """)


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize(
    "signature",
    [
        "shop.recalculate(in p_keys text[], inout p_changed text)",  # what an unknown null would rather be
        "shop.recalculate(in p_keys text[])",
        "public.recalculate(in p_keys text[], inout p_changed_keys text[])",
    ],
)
async def test_a_namesake_of_a_topics_procedure_is_not_called_in_its_place(
    writer: asyncpg.Connection, daemon: asyncpg.Connection, signature: str
) -> None:
    await writer.execute(trap(f"procedure {signature}"))
    await daemon.execute("set search_path = public, shop")
    assert await daemon.fetchval("select outbox.recalculate('shop', '{k}')") == ["k"]


@pytest.mark.usefixtures("shop")
async def test_a_namesake_can_at_worst_make_the_call_ambiguous(
    writer: asyncpg.Connection, daemon: asyncpg.Connection
) -> None:
    """Then the topic stands still, and says so: whoever may create things in its schema can do that much."""
    await writer.execute(trap("procedure shop.recalculate(text[], inout text[], in integer default 0)"))
    with refused("42725"):
        await daemon.execute("select outbox.recalculate('shop', '{k}')")


@pytest.mark.usefixtures("shop")
async def test_a_namesake_that_would_report_better_is_not_preferred_to_the_owners(
    db: asyncpg.Connection, writer: asyncpg.Connection, daemon: asyncpg.Connection
) -> None:
    await db.execute("""
        drop procedure shop.recalculate;
        create procedure shop.recalculate(in p_keys text[]) language plpgsql as $$ begin null; end $$
    """)
    await writer.execute(trap("procedure shop.recalculate(in p_keys text[], inout p_changed_keys text[])"))
    assert await daemon.fetchval("select outbox.recalculate('shop', '{k}')") is None


@pytest.mark.usefixtures("shop")
async def test_what_is_planted_where_a_routine_was_is_refused(
    db: asyncpg.Connection, writer: asyncpg.Connection, daemon: asyncpg.Connection
) -> None:
    await db.execute("drop procedure shop.recalculate; drop function shop.list; drop function shop.describe")
    await writer.execute(trap("procedure shop.recalculate(in p_keys text[], inout p_changed_keys text[])"))
    await writer.execute(trap("function shop.list(p_after text, p_limit integer) returns setof text"))
    await writer.execute(trap("function shop.list(p_after text, p_limit integer, p_part jsonb) returns setof text"))
    await writer.execute(trap("function shop.describe(p_key text) returns jsonb"))
    for call in (
        "recalculate('shop', '{k}')",
        "list_keys('shop')",
        "describe('shop', '{k}')",
        "find_drift('shop', '{k}')",
    ):
        with refused("RC004"):
            await daemon.execute(f"select outbox.{call}")
        with refused("RC004"):
            await db.execute(f"select outbox.{call}")  # nor with a superuser's rights
    with refused("RC004"):
        await db.execute("select outbox.list_part('shop', '{\"a\": 1}')")


@pytest.mark.usefixtures("shop")
async def test_a_topic_is_not_pointed_at_what_a_writer_made(
    db: asyncpg.Connection, writer: asyncpg.Connection, mallory: str
) -> None:
    await writer.execute(trap("procedure mallory.recalculate(in p_keys text[], inout p_changed_keys text[])"))
    await writer.execute(trap("procedure shop.mine(in p_keys text[], inout p_changed_keys text[])"))
    for statement in (
        "select outbox.set_topic('shop', 'mallory.recalculate')",
        "update outbox.topic set recalculate = 'mallory.recalculate'",
        "insert into outbox.topic (topic, recalculate) values ('mine', 'mallory.recalculate')",
        REAL.replace("create procedure", "create or replace procedure"),
    ):
        with refused("42501"):
            await writer.execute(statement)
    with refused("RC004", "owner"):  # an operator is warned of it
        await db.execute("select outbox.set_topic('shop', 'shop.mine')")
    await db.execute(f"grant recalcd_operator to {mallory}")
    await db.execute("select outbox.set_topic('shop', 'shop.mine')")


# SQL in names and values


async def test_every_routine_that_builds_sql_is_among_those_tried_here(db: asyncpg.Connection) -> None:
    found = await db.fetch("""
        select distinct p.proname::text as name from pg_proc as p
        where p.pronamespace::regnamespace::text in ('outbox', 'school', 'reports') and p.prosrc ~ '\\mexecute\\s+[a-z]'
        order by 1
    """)
    assert [row["name"] for row in found] == [
        "describe",
        "disable_row_security",  # names of our own tables and policies
        "drop_partitions",
        "enable_row_security",  # names of our own tables
        "grant_roles",
        "list_keys",
        "list_part",
        "make_partitions",  # a number of days
        "privilege_changes",
        "recalculate",
    ]


async def test_sql_in_topic_key_and_reason_is_text(
    db: asyncpg.Connection, writer: asyncpg.Connection, daemon: asyncpg.Connection
) -> None:
    await make_ledger(db)
    await db.execute("select outbox.make_partitions(1)")
    with refused("RC002"):
        await writer.execute("select outbox.enqueue($1, $2)", EVIL, EVIL)
    await writer.execute("select outbox.wait_fresh($1, $2, '0')", EVIL, EVIL)
    await writer.execute("select outbox.enqueue('ledger.account', $1, $2)", EVIL, EVIL)
    await writer.execute("select outbox.ring($1)", EVIL[:30])
    assert len(await drain(daemon, KEPT)) == 1
    with refused("RC002"):
        await db.execute("select outbox.remove_topic($1)", EVIL)
    await db.execute("select outbox.set_topic($1, 'ledger.recalculate')", EVIL)
    await writer.execute("select outbox.enqueue($1, $2::text[], $2[1])", EVIL, [EVIL])
    assert len(await drain(daemon, KEPT)) == 1
    assert await db.fetchval("select count(*) from outbox.event") == 0
    rows = await db.fetch("select topic, keys, reasons from outbox.batch order by started_at")
    assert [tuple(row) for row in rows] == [(LEDGER, [EVIL], [EVIL]), (EVIL, [EVIL], [EVIL])]
    assert await db.fetchval("select to_regclass('outbox.event') is not null")


async def test_sql_in_the_names_of_routines_is_part_of_the_name(
    db: asyncpg.Connection, daemon: asyncpg.Connection
) -> None:
    schema = await db.fetchval("select quote_ident($1)", f"s{EVIL}")
    name = await db.fetchval("select quote_ident($1)", f"r{EVIL}")
    full = f"{schema}.{name}"
    await db.execute(f"""
        create schema {schema}; grant usage on schema {schema} to recalcd_daemon;
        create procedure {full}(in p_keys text[], inout p_changed_keys text[]) language plpgsql
            as 'begin p_changed_keys := p_keys; end';
        create function {full}(p_after text, p_limit integer) returns setof text language sql
            as 'select ''k'' where p_after is null';
        create function {full}(p_after text, p_limit integer, p_part jsonb) returns setof text language sql
            as 'select p_part::text';
        create function {full}(p_key text) returns jsonb language sql as 'select to_jsonb(p_key)';
    """)
    await db.execute("select outbox.set_topic('t', $1, p_list_keys => $1, p_describe => $1)", full)
    assert await daemon.fetchval("select outbox.recalculate('t', array[$1])", EVIL) == [EVIL]
    assert await daemon.fetchval("select array(select outbox.list_keys('t'))") == ["k"]
    assert await db.fetchval("select array(select outbox.list_part('t', '{\"a\": 1}'))") == ['{"a": 1}']
    assert [json.loads(each) for each in await daemon.fetchval("select outbox.describe('t', array[$1])", EVIL)] == [
        EVIL
    ]
    for bad in (EVIL, "ledger.recalculate; drop table outbox.event", 'a.b"', "a.b(text[])", "", "a.b.c", 'x."y'):
        with refused("RC004"):
            await db.execute("select outbox.set_topic('bad', $1)", bad)
        with refused("RC004"):
            await db.execute("select outbox.set_topic('t', p_list_keys => $1, p_describe => $1)", bad)
        with pytest.raises(asyncpg.PostgresError):
            await db.execute("select outbox.grant_roles($1)", bad)
    assert await db.fetchval("select to_regclass('outbox.event') is not null")


async def test_sql_in_the_name_of_a_partition_is_part_of_the_name(db: asyncpg.Connection) -> None:
    name = await db.fetchval("select quote_ident($1)", f"batch_20200101{EVIL}")
    await db.execute(
        f"create table outbox.{name} partition of outbox.batch for values from ('2020-01-01') to ('2020-01-02')"
    )
    assert await db.fetchval("select outbox.drop_partitions(1)") == [f"batch_20200101{EVIL}"]
    assert await db.fetchval("select to_regclass('outbox.event') is not null")


async def test_the_login_of_the_tests_daemons_is_only_a_daemon(db: asyncpg.Connection, dsn: str) -> None:
    login = urlsplit(as_daemon(dsn)).username
    row = await db.fetchrow(
        "select rolsuper or rolcreaterole or rolcreatedb or rolbypassrls as may from pg_roles where rolname = $1", login
    )
    assert row is not None
    assert not row["may"]
    memberships = await db.fetch(
        "select roleid::regrole::text as role from pg_auth_members where member = $1::regrole", login
    )
    assert [row["role"] for row in memberships] == ["recalcd_daemon"]
