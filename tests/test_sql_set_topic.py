"""outbox.set_topic: which routines a topic may name, and what is said of the others."""

import asyncpg
import pytest
from engine import make_ledger, refused

BODY = "begin null; end"
LISTS = "create function app.list_it(p_after text, p_limit integer) returns setof text language sql as 'select null'"


@pytest.fixture(autouse=True)
async def schema(db: asyncpg.Connection) -> None:
    await db.execute("create schema app")


async def call(db: asyncpg.Connection, name: str = "app.recalculate_it", keys: str = "array['a', 'b']") -> object:
    """Register a topic, and recalculate keys of it through the engine."""
    await db.execute("select outbox.set_topic('t', $1)", name)
    async with db.transaction():
        return await db.fetchval(f"select outbox.recalculate('t', {keys})")


SERVE = {
    "procedure (in p_keys text[], inout p_changed_keys text[] default null)": ("p_changed_keys := p_keys[1:1];", ["a"]),
    "procedure (in p_keys text[], inout p_changed_keys text[])": ("p_changed_keys := p_keys[1:1];", ["a"]),
    "procedure (in p_keys text[])": ("", None),
    "function (p_keys text[]) returns text[]": ("return p_keys[2:2];", ["b"]),
    "function (p_keys text[], out p_changed_keys text[])": ("p_changed_keys := p_keys[2:2];", ["b"]),
    "function (p_keys text[]) returns void": ("", None),
}


def creation(signature: str, body: str = "") -> str:
    """Return the statement that creates app.recalculate_it with this signature."""
    kind, _, rest = signature.partition(" ")
    return f"create {kind} app.recalculate_it{rest} language plpgsql as $$ begin {body} end $$"


@pytest.mark.parametrize(("signature", "body", "returned"), [(each, *SERVE[each]) for each in SERVE], ids=SERVE)
async def test_a_routine_that_serves_is_accepted_and_called(
    db: asyncpg.Connection, signature: str, body: str, returned: list[str] | None
) -> None:
    await db.execute(creation(signature, body))
    assert await call(db) == returned


REFUSED = [
    "function (p_keys text[]) returns text[] stable",
    "function (p_keys text[]) returns text[] immutable",
    "function (p_key text) returns text[]",
    "function (p_keys text[]) returns setof text",
    "function (p_keys text[]) returns bigint",
    "function (variadic p_keys text[]) returns text[]",
    "procedure (in p_keys bigint[])",
    "procedure (in p_keys text[], inout p_count bigint)",
    "procedure (in p_keys text[], in p_more text[])",
    "procedure (inout p_keys text[])",
    "procedure ()",
]
OTHER_THINGS = {
    "nothing": "select",
    "an aggregate": "create aggregate app.recalculate_it(text[]) (sfunc = array_cat, stype = text[])",
    "a table": "create table app.recalculate_it ()",
}


@pytest.mark.parametrize(
    "definition", [*map(creation, REFUSED), *OTHER_THINGS.values()], ids=[*REFUSED, *OTHER_THINGS.keys()]
)
async def test_any_other_is_refused_with_the_signature_it_should_have(db: asyncpg.Connection, definition: str) -> None:
    await db.execute(definition)
    signature = "procedure app.recalculate_it(in p_keys text[], inout p_changed_keys text[])"
    with refused("RC004", "app.recalculate_it", signature, "function app.recalculate_it(p_keys text[]) returns text[]"):
        await call(db)
    assert await db.fetchval("select count(*) from outbox.topic where topic = 't'") == 0


async def test_a_name_without_a_schema_is_refused(db: asyncpg.Connection) -> None:
    await db.execute(f"create procedure public.recalculate_it(in p_keys text[]) language plpgsql as '{BODY}'")
    with refused("RC004", "schema.name"):
        await call(db, "recalculate_it")


@pytest.mark.parametrize("name", ["app.recalculate_it(text[])", "not a name", "", "app.", "a.b.c"])
async def test_what_is_no_name_is_refused_with_the_signature_it_should_have(db: asyncpg.Connection, name: str) -> None:
    with refused("RC004", "schema.name"):
        await call(db, name)


async def test_a_name_that_needs_quotes_is_quoted_as_in_sql(db: asyncpg.Connection) -> None:
    await db.execute("""
        create schema "My App";
        create function "My App"."it's; drop"(p_keys text[]) returns text[] language sql as 'select p_keys[1:1]'
    """)
    assert await call(db, """"My App"."it's; drop\"""") == ["a"]


async def test_of_two_that_serve_the_one_that_reports_is_called(db: asyncpg.Connection) -> None:
    await db.execute("""
        create procedure app.recalculate_it(in p_keys text[]) language plpgsql as 'begin raise ''wrong one''; end';
        create procedure app.recalculate_it(in p_keys text[], inout p_changed_keys text[]) language plpgsql
        as 'begin p_changed_keys := p_keys; end'
    """)
    assert await call(db) == ["a", "b"]


async def test_a_function_that_lists_keys_is_checked_too(db: asyncpg.Connection) -> None:
    await make_ledger(db)
    query = "select outbox.set_topic('ledger.account', p_list_keys => $1)"
    for definition in (
        "select",
        "create function app.list_it(p_after text) returns setof text language sql as 'select null'",
        "create function app.list_it(p_after text, p_limit bigint) returns setof text language sql as 'select null'",
        "create function app.list_it(p_limit integer, p_after text) returns setof text language sql as 'select null'",
    ):
        await db.execute(definition)
        with refused("RC004", "function app.list_it(p_after text, p_limit integer) returns setof text"):
            await db.execute(query, "app.list_it")
    await db.execute(LISTS)
    await db.execute(query, "app.list_it")
    assert await db.fetchval("select list_keys from outbox.topic where topic = 'ledger.account'") == "app.list_it"


async def test_a_function_that_describes_a_key_is_checked_too(db: asyncpg.Connection) -> None:
    await make_ledger(db)
    query = "select outbox.set_topic('ledger.account', p_describe => $1)"
    for definition in (
        "select",
        "create function app.describe_it(p_keys text[]) returns jsonb language sql as 'select null::jsonb'",
        "create function app.describe_it(p_key uuid) returns jsonb language sql as 'select null::jsonb'",
    ):
        await db.execute(definition)
        with refused("RC004", "function app.describe_it(p_key text) returns jsonb"):
            await db.execute(query, "app.describe_it")
    await db.execute("create function app.describe_it(p_key text) returns jsonb language sql as 'select null::jsonb'")
    await db.execute(query, "app.describe_it")
    assert await db.fetchval("select describe from outbox.topic where topic = 'ledger.account'") == "app.describe_it"


async def test_a_new_topic_needs_a_routine(db: asyncpg.Connection) -> None:
    with refused("RC004", "p_recalculate"):
        await db.execute("select outbox.set_topic('t', p_max_attempts => 3)")


async def test_null_leaves_a_setting_as_it_is(db: asyncpg.Connection) -> None:
    await make_ledger(db)
    before = await db.fetchrow("select * from outbox.topic where topic = 'ledger.account'")
    assert before is not None
    await db.execute("select outbox.set_topic('ledger.account', p_max_attempts => 3, p_retry_max_s => 99)")
    after = await db.fetchrow("select * from outbox.topic where topic = 'ledger.account'")
    assert dict(after or {}) == dict(before) | {"max_attempts": 3, "retry_max_s": 99}
    await db.execute("select outbox.set_topic('ledger.account', p_batch_keys => 7)")
    assert await db.fetchval("select (max_attempts, batch_keys) from outbox.topic where topic like 'l%'") == (3, 7)


async def test_a_number_out_of_its_range_is_refused(db: asyncpg.Connection) -> None:
    await make_ledger(db)
    for option in (
        "p_max_attempts => 0",
        "p_max_attempts => 101",
        "p_retry_base_s => 0",
        "p_retry_base_s => 3601",
        "p_retry_max_s => 4",
        "p_batch_keys => 0",
        "p_batch_keys => 1001",
        "p_statement_timeout_s => 0",
    ):
        with refused("23514"):
            await db.execute(f"select outbox.set_topic('ledger.account', {option})")


async def test_a_key_that_was_not_given_is_refused_and_so_is_null(db: asyncpg.Connection) -> None:
    for returned in ("array['a', 'stranger']", "array['a', null]", "array['a ']", "array['A']"):
        await db.execute(
            "create or replace function app.recalculate_it(p_keys text[]) returns text[] language sql "
            f"as $$ select {returned} $$"
        )
        with refused("RC005", "was not given", "Return only keys of p_keys"):
            await call(db)


async def test_a_routine_that_is_gone_or_forbidden_is_no_keys_fault(db: asyncpg.Connection) -> None:
    await db.execute("create procedure app.recalculate_it(in p_keys text[]) language plpgsql as 'begin null; end'")
    await call(db)
    role = await db.fetchval("select current_database() || '_daemon'")
    await db.execute(f"""
        create role {role} in role recalcd_daemon; grant usage on schema app to {role};
        revoke execute on procedure app.recalculate_it from public
    """)
    try:
        await db.execute(f"set role {role}")
        with refused("RC004", "app.recalculate_it", role):
            await db.fetchval("select outbox.recalculate('t', array['a'])")
    finally:
        await db.execute(f"reset role; drop owned by {role}; drop role {role}")
    await db.execute("drop procedure app.recalculate_it")
    with refused("RC004", "app.recalculate_it", "is missing"):
        await db.fetchval("select outbox.recalculate('t', array['a'])")


async def test_a_deferred_constraint_is_checked_while_its_keys_are_known(db: asyncpg.Connection) -> None:
    await db.execute("""
        create table app.parent (id text primary key);
        create table app.child (id text references app.parent deferrable initially deferred);
        create procedure app.recalculate_it(in p_keys text[]) language sql
        as 'insert into app.child select unnest(p_keys)'
    """)
    await db.execute("select outbox.set_topic('t', 'app.recalculate_it')")
    async with db.transaction():
        with refused("23503"):  # by the call, not by the commit
            async with db.transaction():
                await db.fetchval("select outbox.recalculate('t', array['a'])")
