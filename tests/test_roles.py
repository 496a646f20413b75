"""The roles of least privilege: who may do what, how they come to be; each can do its work, and nothing else."""

import asyncio
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from urllib.parse import urlsplit

import asyncpg
import pytest
from engine import LEDGER, make_ledger, refused
from privileges import TABLE, privileges
from school import found
from servers import as_daemon
from typed import recalcd_on
from waiting import eventually

from daemon import migrations
from daemon.database import close
from daemon.embedded import EmbeddedPostgres, embedded_postgres
from daemon.migration_dump import dump
from daemon.migration_files import SET_NAMES
from daemon.migrations import Audience

ROLES = ["recalcd_writer", "recalcd_daemon", "recalcd_operator", "recalcd_reader"]

Login = Callable[[str], Awaitable[str]]
"""Makes a login that is a member of one role only; returns its DSN."""


@pytest.fixture
async def login(db: asyncpg.Connection, dsn: str) -> AsyncIterator[Login]:
    made: list[str] = []

    async def login(role: str) -> str:
        name = f"{urlsplit(dsn).path[1:]}_{role}"
        await db.execute(f"create role {name} login password 'secret' in role {role}")
        made.append(name)
        place = urlsplit(dsn)
        return place._replace(netloc=f"{name}:secret@{place.netloc.rpartition('@')[2]}").geturl()

    yield login
    for name in made:
        await db.execute(f"drop owned by {name}; drop role {name}")


async def test_what_each_role_may_do_is_what_the_file_says(db: asyncpg.Connection) -> None:
    assert await privileges(db) == TABLE.read_text("utf-8"), (
        "write it anew, and read the difference: tests/privileges.py"
    )


@pytest.mark.parametrize("declared", ["outbox.privileges", "reports.privileges"])
async def test_whatever_is_declared_exists(db: asyncpg.Connection, declared: str) -> None:
    missing = f"""
        select o.name from {declared}() as d cross join regexp_split_to_table(d.objects, ' ') as o (name)
        where case when d.kind = 'schema' then to_regnamespace(o.name)::oid
                   else coalesce(to_regclass(o.name)::oid, to_regproc(o.name)::oid) end is null
          and not exists (select from pg_proc as p where p.pronamespace::regnamespace || '.' || p.proname = o.name)
    """
    assert await db.fetch(missing) == []


async def test_nobody_may_do_anything_with_a_partition_itself(db: asyncpg.Connection) -> None:
    await db.execute("select outbox.make_partitions(1)")
    partitions = "select c.oid from pg_class as c where c.relispartition and c.relnamespace = 'outbox'::regnamespace"
    assert await db.fetchval(f"select count(*) >= 2 from ({partitions} and c.relkind = 'r') as p")
    assert await db.fetch(f"select from pg_class where oid in ({partitions}) and relacl is not null") == []


async def test_privileges_changed_by_hand_are_set_right_by_migrate_up(db: asyncpg.Connection) -> None:
    told: list[str] = []
    await db.execute("""
        grant all on all tables in schema outbox, school to recalcd_reader, public;
        grant update (key) on outbox.event to recalcd_daemon;
        grant create on schema school to recalcd_writer;
        grant execute on all routines in schema outbox to public;
        revoke execute on function outbox.look from recalcd_daemon
    """)
    assert await privileges(db) != TABLE.read_text("utf-8")
    await migrations.up(db, dry_run=True, audience=Audience(tell=told.append))
    assert told == ["would apply outbox grants", "would apply reports grants"]
    await migrations.up(db)
    assert await privileges(db) == TABLE.read_text("utf-8")
    assert await migrations.up(db) == 0


async def test_a_routine_is_never_everybodys_not_even_for_a_moment(db: asyncpg.Connection) -> None:
    told: list[str] = []
    await db.execute("drop function outbox.traceparent")
    await migrations.up(db, audience=Audience(tell=told.append))
    assert told == ["applied outbox outbox.traceparent.sql"], "grants came in a step of their own, after the routine"
    assert not await db.fetchval("select has_function_privilege('public', 'outbox.traceparent()', 'execute')")


async def test_migrate_down_takes_every_privilege_back_and_leaves_the_roles(db: asyncpg.Connection) -> None:
    held = """
        select count(*) from pg_shdepend as d
        where d.dbid = (select oid from pg_database where datname = current_database())
          and d.refobjid in (select r.oid from pg_roles as r where r.rolname = any ($1))
    """
    assert await db.fetchval(held, ROLES) > 100
    await migrations.down(db, set_names=("reports",), to=3)
    open_to = "select array_agg(r) from unnest($1::text[]) as r where has_schema_privilege(r, 'school', 'usage')"
    assert await db.fetchval(open_to, ROLES) is None
    await migrations.down(db, set_names=("reports",))
    await migrations.down(db, set_names=("outbox",), to=5)
    assert await db.fetchval(held, ROLES) == 0
    assert await db.fetchval("select has_function_privilege('public', 'outbox.ring(text)', 'execute')")
    assert await db.fetchval("select count(*) from pg_roles where rolname = any ($1)", ROLES) == len(ROLES)
    await migrations.up(db, set_names=SET_NAMES)
    assert await privileges(db) == TABLE.read_text("utf-8")


async def test_a_writer_writes_and_reads_nothing(db: asyncpg.Connection, login: Login) -> None:
    writer = await asyncpg.connect(await login("recalcd_writer"))
    try:
        group, unit = [
            await writer.fetchval(f"select school.{call}") for call in ("add_group('7A')", "add_unit('M', 'N')")
        ]
        pupil = await writer.fetchval("select school.add_student(school.add_cohort('2026'), 'Ada')")
        await writer.execute("select school.join_group($1, $2)", pupil, group)
        assignment = await writer.fetchval("select school.set_assignment($1, $2, 1, 'activity')", group, unit)
        assert await writer.fetchval("select school.record_feedback($1, $2, 0.5)", assignment, pupil)
        await writer.execute("select outbox.enqueue('reports.student', $1), outbox.ring()", str(pupil))
        assert not await writer.fetchval("select outbox.is_fresh('reports.student', $1)", str(pupil))
        assert await db.fetchval("select count(*) from outbox.event") == 5  # added, joined, set, recorded, named
        for statement in (
            "select from outbox.event",
            "select from school.student",
            "select from reports.report_student_rollups",
            "insert into school.cohort (name) values ('x')",
            "select outbox.set_topic('t', 'school.add_cohort')",
            "update outbox.topic set recalculate = 'x'",
            "select outbox.claim()",
            "call reports.recalculate_students('{}')",
            "select school.drop_assignments('{}')",
            "create table outbox.mine ()",
            "select outbox.grant_roles()",
        ):
            with refused("42501"):
                await writer.execute(statement)
    finally:
        await close(writer)


async def test_a_reader_reads_reports_and_neither_writes_nor_sees_feedback(
    db: asyncpg.Connection, login: Login
) -> None:
    school = await found(db, pupils=2)
    pupil, group = school.pupils[0], school.groups[0]
    reader = await asyncpg.connect(await login("recalcd_reader"))
    try:
        assert len(await reader.fetch("select * from reports.student_report($1)", pupil)) == 1
        await reader.fetch("select * from reports.student_unit_report($1)", pupil)
        await reader.fetch("select * from reports.group_report($1)", group)
        await reader.fetch("select * from reports.cohort_report((select c.cohort_id from school.cohort as c limit 1))")
        await reader.fetchval("select outbox.wait_fresh('reports.student', 'nobody', '0')")
        for statement in (
            "select from school.feedback",
            "select from outbox.failure",
            "select outbox.enqueue('reports.student', 'x')",
            "delete from reports.report_student_rollups",
            "select school.add_cohort('x')",
            "select reports.describe_student('00000000-0000-0000-0000-000000000000')",
            "call reports.disable_row_security()",
        ):
            with refused("42501"):
                await reader.execute(statement)
    finally:
        await close(reader)


async def test_a_daemon_sees_no_pupil_and_writes_no_topic(dsn: str) -> None:
    daemon = await asyncpg.connect(as_daemon(dsn))
    try:
        for statement in (
            "select from school.student",
            "select from reports.report_student_rollups",
            "update outbox.topic set recalculate = 'x'",
            "insert into outbox.event (topic, key) values ('t', 'k')",
            "update outbox.event set key = 'x'",
            "delete from outbox.batch",
            "drop table outbox.event",
            "select outbox.set_topic('t', 'x.y')",
            "insert into outbox.migration values ('x', 1, 'x', 'x')",
        ):
            with refused("42501"):
                await daemon.execute(statement)
        with refused("428C9"):  # the privilege to lock events for update changes none of them
            await daemon.execute("update outbox.event set event_id = 1")
    finally:
        await close(daemon)


OPERATORS_COMMANDS = f"""\
backfill
verify
verify --repair
status
topic list
topic pause reports.student --reason testing
topic resume reports.student
topic set {LEDGER} --batch-keys 10
topic remove {LEDGER} --yes
failures list
explain reports.student {{pupil}}
replay reports.student --key {{pupil}} --yes
report student {{pupil}}
report group {{group}}
job list
migrate status"""


async def test_an_operators_commands_run_with_no_more_than_the_role(
    db: asyncpg.Connection, login: Login, dsn: str
) -> None:
    await make_ledger(db)
    await db.execute("""
        grant usage on schema ledger to recalcd_operator;
        grant select, insert, update, delete on all tables in schema ledger to recalcd_operator
    """)
    school = await found(db, pupils=2)
    operator = await login("recalcd_operator")
    for command in OPERATORS_COMMANDS.format(pupil=school.pupils[0], group=school.groups[0]).split("\n"):
        result = await recalcd_on(operator)(*command.split())
        # status finds that no daemon lives, which is bad news.
        assert (command, result.exit_code) == (command, int(command == "status")), result.stdout + result.stderr
        assert "permission denied" not in result.stderr
    drain = [sys.executable, "-m", "cli", "run", "--drain"]  # in a process of its own: it takes the signals
    environment = os.environ | {"RECALCD_DATABASE_URL": operator}
    await asyncio.to_thread(subprocess.run, drain, env=environment, check=True, timeout=60)
    await db.execute("select school.remove_student($1)", school.pupils[1])
    result = await recalcd_on(operator)("forget", "reports.student", str(school.pupils[1]), "--yes")
    assert result.exit_code == 0, result.stdout + result.stderr
    for login_dsn in (operator, as_daemon(dsn)):
        result = await recalcd_on(login_dsn)("doctor")
        assert [said for said in ("lacks", "permission denied", "superuser") if said in result.stdout] == [], (
            result.stdout
        )


# How they come to be


@pytest.fixture(scope="module")
def fresh() -> Iterator[EmbeddedPostgres]:
    """Start a cluster of its own, where no role of ours is yet."""
    with embedded_postgres(settings={"fsync": "off"}) as server:
        yield server


@pytest.fixture
async def admin(fresh: EmbeddedPostgres) -> AsyncIterator[asyncpg.Connection]:
    """Connect as superuser to a cluster without our roles."""
    db = await asyncpg.connect(fresh.dsn())
    yield db
    rows = await db.fetch("select datname from pg_database where datname like 'roles_%'")
    for row in rows:
        await db.execute(f"drop database {row['datname']} with (force)")
    for role in (*ROLES, "roles_owner"):
        await db.execute(f"drop role if exists {role}")
    await close(db)


@pytest.mark.own_server
async def test_databases_of_one_cluster_can_be_migrated_at_the_same_time(
    admin: asyncpg.Connection, fresh: EmbeddedPostgres
) -> None:
    names = [f"roles_{secrets.token_hex(3)}" for _ in range(4)]
    for name in names:
        await admin.execute(f"create database {name}")
    connections = [await asyncpg.connect(fresh.dsn(name)) for name in names]
    try:
        # The first one holds its new roles uncommitted, until the others have got as far as that.
        await asyncio.gather(*(migrations.up(each, set_names=("outbox",)) for each in connections))
        for each in connections:
            assert await each.fetch("select * from outbox.privilege_changes('outbox.privileges')") == []
    finally:
        for each in connections:
            await close(each)


@pytest.mark.own_server
@pytest.mark.parametrize("by", ["migrate", "dump"])
async def test_who_may_not_create_roles_is_told_and_the_grants_follow_the_roles(
    admin: asyncpg.Connection, fresh: EmbeddedPostgres, by: str
) -> None:
    await admin.execute("create role roles_owner login")
    await admin.execute("create database roles_managed owner roles_owner")
    dsn = fresh.dsn("roles_managed").replace("postgres@", "roles_owner@")
    owner = await asyncpg.connect(dsn)
    warned: list[str] = []
    try:
        if by == "dump":
            owner.add_log_listener(lambda _, message: warned.append(message.message))
            await owner.execute(dump())
        else:
            await migrations.up(owner, audience=Audience(warn=warned.append))
        assert f"may not create: {', '.join(ROLES)}" in warned[0]
        assert await owner.fetchval("select count(*) from pg_roles where rolname = any ($1)", ROLES) == 0
        assert not await owner.fetchval("select has_function_privilege('public', 'outbox.ring(text)', 'execute')")
        await owner.execute("select outbox.ring()")

        await admin.execute("create role recalcd_writer; create role recalcd_daemon")
        warned.clear()
        await migrations.up(owner, audience=Audience(warn=warned.append))
        assert "may not create: recalcd_operator, recalcd_reader" in warned[0]
        assert await owner.fetchval("select has_function_privilege('recalcd_writer', 'outbox.ring(text)', 'execute')")
        assert await owner.fetchval("select has_function_privilege('recalcd_daemon', 'outbox.look(text[])', 'execute')")
        await owner.execute("call reports.enable_row_security()")  # without the operators' policy
        await migrations.down(owner)
    finally:
        await close(owner)


@pytest.mark.own_server
async def test_a_login_that_may_create_roles_and_is_no_superuser_makes_them(
    admin: asyncpg.Connection, fresh: EmbeddedPostgres
) -> None:
    await admin.execute("create role roles_owner login createrole")
    await admin.execute("create database roles_managed owner roles_owner")
    owner = await asyncpg.connect(fresh.dsn("roles_managed").replace("postgres@", "roles_owner@"))
    warned: list[str] = []
    try:
        await migrations.up(owner, audience=Audience(warn=warned.append))
        assert warned == []
        assert await owner.fetchval("select count(*) from pg_roles where rolname = any ($1)", ROLES) == len(ROLES)
        assert await privileges(owner) == TABLE.read_text("utf-8")
    finally:
        await close(owner)


@pytest.mark.own_server
async def test_a_role_that_another_database_is_just_creating_is_waited_for(
    admin: asyncpg.Connection, fresh: EmbeddedPostgres
) -> None:
    await admin.execute("create database roles_second")
    first, second = await asyncpg.connect(fresh.dsn()), await asyncpg.connect(fresh.dsn("roles_second"))
    try:
        creating = first.transaction()
        await creating.start()
        await first.execute("create role recalcd_operator")
        up = asyncio.create_task(migrations.up(second))
        waits = "select exists (select from pg_stat_activity where pid = $1 and wait_event_type = 'Lock')"
        await eventually(lambda: admin.fetchval(waits, second.get_server_pid()))
        await creating.commit()
        await up
        assert await second.fetchval("select has_schema_privilege('recalcd_operator', 'outbox', 'usage')")
    finally:
        await close(first)
        await close(second)
