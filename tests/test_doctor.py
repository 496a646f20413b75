"""recalcd doctor: each finding is brought about once, and names its remedy."""

import json
from dataclasses import replace
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest
from engine import done, drain, enqueue, impatient, make_ledger, make_topic, on_duty
from proxy import proxy_to
from servers import Connect, Psql, as_daemon
from typed import Recalcd, recalcd_on

from daemon import doctor_server
from daemon.batch import Recalculation, prepare_history
from daemon.doctor import examine
from daemon.doctor_check import Finding, Patient
from daemon.doctor_outbox import check_notifications, check_vacuum
from daemon.doctor_server import check_clock, check_pooler, check_version
from daemon.settings import Settings, load
from daemon.threats import Thresholds

KEPT = Recalculation(None, "live", keep_history=True)


@pytest.fixture
def recalcd(dsn: str) -> Recalcd:
    return recalcd_on(dsn)


@pytest.fixture
async def patient(db: asyncpg.Connection, settings: Settings) -> Patient:
    await prepare_history(db, days_ahead=1)
    return Patient(db, settings)


async def complaints(patient: Patient, check: str) -> list[Finding]:
    """Return what the check complains of."""
    return [each async for each in examine(patient) if each.check == check and each.level != "ok"]


async def complaint(patient: Patient, check: str) -> Finding:
    """Return the only complaint of the check; each has a remedy."""
    (found,) = await complaints(patient, check)
    assert found.remedy
    return found


async def test_a_healthy_deployment_has_no_error(recalcd: Recalcd, db: asyncpg.Connection, settings: Settings) -> None:
    await make_ledger(db)
    await db.execute("select ledger.record('a', 1)")
    async with on_duty(impatient(settings)):
        told = await recalcd("doctor")
        as_json = json.loads((await recalcd("doctor", "--json")).stdout)
    assert told.exit_code == 0, told.stdout
    assert told.stdout.splitlines()[-1].startswith("0 errors, ")
    assert {tuple(each) for each in as_json} == {("check", "level", "sentence", "remedy")}
    assert {each["check"] for each in as_json} == {
        "connection", "server", "role", "clock", "tls", "logging", "schema", "routines", "privileges", "daemons",
        "locks", "autovacuum", "horizon", "notifications", "history", "events", "pauses", "procedures",
    }  # fmt: skip
    assert {each["level"] for each in as_json} <= {"ok", "warning"}


async def test_errors_are_exit_code_1(recalcd: Recalcd) -> None:
    told = await recalcd("doctor")
    assert told.exit_code == 1
    assert "error   daemons         no daemon is running" in told.stdout
    assert "-> Start one: recalcd run" in told.stdout


async def test_a_database_without_the_schema(empty_dsn: str) -> None:
    told = await recalcd_on(empty_dsn)("doctor")
    assert told.exit_code == 1
    assert "this database has no recalcd schema" in told.stdout
    assert "daemons" not in told.stdout


async def test_no_database_and_bad_options(recalcd: Recalcd) -> None:
    assert (await recalcd("--database-url", "postgresql://127.0.0.1:1/x", "doctor")).exit_code == 3
    assert (await recalcd("doctor", "everything")).exit_code == 2


async def test_a_pooler_that_swallows_notifications(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_server, "ECHO_TIMEOUT_S", 0.3)
    async with proxy_to(dsn) as pooler:
        pooler.swallowed.add(b"A")  # NotificationResponse
        settings = load(database_url=pooler.dsn)
        connection = await asyncpg.connect(pooler.dsn)
        try:
            (found,) = [each async for each in check_pooler(Patient(connection, settings))]
            polling = settings.model_copy(update={"wake": "poll"})
            assert [each async for each in check_pooler(Patient(connection, polling))] == []
        finally:
            await connection.close()
    assert (found.level, "notifications do not arrive" in found.sentence) == ("error", True)
    assert "RECALCD_WAKE=poll" in found.remedy


async def test_a_pooler_that_changes_the_backend(patient: Patient) -> None:
    await patient.connection.execute("""
        create schema pooled;
        create sequence pooled.backend;
        create function pooled.pg_backend_pid() returns bigint language sql as $$ select nextval('pooled.backend') $$;
        set search_path = pooled, pg_catalog, public;
    """)
    (found,) = [each async for each in check_pooler(patient)]
    assert "other clients are served by the same session" in found.sentence


async def test_an_old_server_and_a_standby(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    row = "version_num", "version", "is_standby", "has_statement_statistics"
    old = f"select 140002 as {row[0]}, '14.2' as {row[1]}, true as {row[2]}, true as {row[3]}"
    monkeypatch.setattr(doctor_server, "DOCTOR_SERVER", old)
    found = [each async for each in check_version(patient)]
    assert [each.level for each in found] == ["error", "error"]
    assert "PostgreSQL 14.2" in found[0].sentence
    assert "standby" in found[1].sentence


@pytest.mark.parametrize(("by_s", "says"), [(60, "60.0 s ahead of"), (-60, "60.0 s behind")])
async def test_clocks_that_differ(patient: Patient, monkeypatch: pytest.MonkeyPatch, *, by_s: int, says: str) -> None:
    skewed = f"select extract(epoch from clock_timestamp())::double precision + {by_s} as now_s"
    monkeypatch.setattr(doctor_server, "DOCTOR_SERVER", skewed)
    (found,) = [each async for each in check_clock(patient)]
    assert (found.level, says in found.sentence) == ("warning", True)


async def test_a_routine_that_is_missing(patient: Patient) -> None:
    await patient.connection.execute("drop function outbox.wait_fresh")
    found = await complaint(patient, "schema")
    assert (found.level, "outbox.wait_fresh.sql is missing" in found.sentence) == ("error", True)


async def test_a_migration_that_is_unknown(patient: Patient) -> None:
    await patient.connection.execute("insert into outbox.migration values ('outbox', 99, 'future', 'x')")
    assert "0099_future is unknown" in (await complaint(patient, "schema")).sentence


async def test_a_routine_that_was_replaced_by_hand(patient: Patient) -> None:
    await patient.connection.execute("""
        create or replace function outbox.is_fresh(p_topic text, p_key text) returns boolean
        language sql stable security definer set search_path = pg_catalog, pg_temp as $$ select true $$
    """)
    found = await complaint(patient, "routines")
    assert found.level == "error"
    assert found.sentence.startswith("outbox.is_fresh(text,text) was replaced by hand")


async def test_a_role_that_lacks_privileges(dsn: str, psql: Psql) -> None:
    role = f"limited_{urlsplit(dsn).path[1:]}"
    psql(f"create role {role} login password 'secret'; grant usage on schema outbox to {role};")
    place = urlsplit(dsn)
    limited = place._replace(netloc=f"{role}:secret@{place.netloc.rpartition('@')[2]}").geturl()
    try:
        told = await recalcd_on(limited)("doctor", "--json")
        psql(f"revoke usage on schema outbox from {role}")
        blind = await recalcd_on(limited)("doctor")
    finally:
        psql(f"drop owned by {role}; drop role {role}")
    found = {each["check"]: each for each in json.loads(told.stdout)}
    assert found["privileges"]["level"] == "error"
    assert f"role {role} lacks " in found["privileges"]["sentence"]
    assert f"grant pg_read_all_stats to {role}" in found["role"]["remedy"]
    assert (told.exit_code, blind.exit_code) == (1, 1)
    assert "usage on schema outbox" in blind.stdout


@pytest.mark.parametrize(
    ("state", "version", "says"),
    [("degraded", None, "gets no notifications"), ("idle", "0.0.1", "is of release 0.0.1")],
)
async def test_daemons_in_trouble(patient: Patient, *, state: str, version: str | None, says: str) -> None:
    from daemon import __version__  # noqa: PLC0415

    await patient.connection.execute(
        "insert into outbox.daemon values ($1, 'h', 1, $2, $3, 1, now())", uuid4(), version or __version__, state
    )
    found = await complaint(patient, "daemons")
    assert (found.level, says in found.sentence) == ("warning", True)


@pytest.mark.parametrize(("workers", "level"), [(16, "warning"), (64, "error")])
async def test_too_little_room_for_locks(patient: Patient, *, workers: int, level: str) -> None:
    crowded = replace(patient, settings=patient.settings.model_copy(update={"workers": workers}))
    found = await complaint(crowded, "locks")
    assert (found.level, "max_locks_per_transaction" in (found.remedy or "")) == (level, True)


async def test_settings_of_vacuum(patient: Patient) -> None:
    await patient.connection.execute("""
        alter table outbox.event reset (autovacuum_vacuum_threshold);
        alter table outbox.event set (autovacuum_vacuum_scale_factor = 0.2, autovacuum_enabled = off);
    """)
    found = [(each.level, each.sentence) for each in await complaints(patient, "autovacuum")]
    assert found == [
        ("error", "autovacuum is off for outbox.event, whose every row dies"),
        ("warning", "outbox.event has autovacuum_vacuum_scale_factor = 0.2 instead of 0"),
        ("warning", "outbox.event has autovacuum_vacuum_threshold = the default instead of 2000"),
    ]


async def test_dead_rows_and_a_full_queue(patient: Patient) -> None:
    strict = replace(patient, limits=Thresholds(dead_rows=0, notify_queue=0.0))
    assert [each.level async for each in check_vacuum(strict)] == ["warning"]
    assert [each.level async for each in check_notifications(strict)] == ["error"]


async def test_a_pinned_horizon(patient: Patient, connect: Connect) -> None:
    forgotten = await connect("forgotten")
    async with forgotten.transaction(isolation="repeatable_read"):
        await forgotten.fetchval("select count(*) from outbox.event")
        strict = replace(patient, limits=Thresholds(horizon_s=0.0))
        found = [each for each in await complaints(strict, "horizon") if "(forgotten," in each.sentence]
    (pin,) = found
    assert f"pg_terminate_backend({forgotten.get_server_pid()})" in (pin.remedy or "")


async def test_a_history_without_a_partition(patient: Patient) -> None:
    for row in await patient.connection.fetch(
        "select inhrelid::regclass::text as name from pg_inherits where inhparent = 'outbox.batch'::regclass"
    ):
        await patient.connection.execute(f"drop table {row['name']}")
    assert "no partition for today" in (await complaint(patient, "history")).sentence
    off = replace(patient, settings=patient.settings.model_copy(update={"history_days": 0}))
    assert await complaints(off, "history") == []


async def test_events_of_a_topic_that_nobody_registered(patient: Patient) -> None:
    await patient.connection.execute("insert into outbox.event (topic, key) values ('lost', 'a')")
    found = await complaint(patient, "events")
    assert (found.level, "1 events name topic lost" in found.sentence) == ("error", True)


async def test_a_pause_that_may_be_forgotten(patient: Patient) -> None:
    await patient.connection.execute("select outbox.pause_topic('reports.student', 'exams')")
    found = await complaint(patient, "pauses")
    assert (found.level, found.sentence.endswith("UTC (exams)")) == ("warning", True)


async def tried(patient: Patient, trouble: str = "") -> list[Finding]:
    """Register a topic whose procedure runs `trouble`, let it do a key, and examine it."""
    db = patient.connection
    await make_ledger(db)
    await make_topic(db, "works")
    await enqueue(db, "works", "a")
    await drain(db, KEPT)
    await make_topic(db, "works", trouble)
    return [each for each in await complaints(patient, "procedures") if each.sentence.startswith("topic works")]


async def test_a_procedure_that_is_gone(patient: Patient) -> None:
    await make_ledger(patient.connection)
    await patient.connection.execute("drop procedure ledger.recalculate")
    found = await complaint(patient, "procedures")
    assert (found.level, "there is no routine ledger.recalculate" in found.sentence) == ("error", True)


async def test_a_login_of_a_daemon_that_may_not_call_the_procedure(patient: Patient, dsn: str) -> None:
    await make_ledger(patient.connection)
    async with on_duty(impatient(patient.settings)):
        assert await complaints(patient, "procedures") == []
        await patient.connection.execute("revoke usage on schema ledger from recalcd_daemon")
        found = await complaint(patient, "procedures")
    login = urlsplit(as_daemon(dsn)).username
    assert (found.level, f"login {login} may not call ledger.recalculate" in found.sentence) == ("error", True)
    assert "grant usage on schema ledger to recalcd_daemon" in str(found.remedy)


async def test_a_function_that_lists_nothing_of_a_topic_that_works(patient: Patient) -> None:
    db = patient.connection
    await make_ledger(db)
    await db.execute("select ledger.record('a', 1)")
    await drain(db, KEPT)
    await db.execute("""
        create function ledger.list(p_after text, p_limit integer) returns setof text language sql stable
        as $$ select b.account from ledger.balance as b where b.account > p_after order by 1 limit p_limit $$;
        select outbox.set_topic('ledger.account', p_list_keys => 'ledger.list');
    """)
    found = await complaint(patient, "procedures")
    assert (found.level, "lists no keys, though a was recalculated" in found.sentence) == ("warning", True)


async def test_a_procedure_that_is_no_no_op_on_a_clean_key(patient: Patient) -> None:
    (found,) = await tried(patient)
    assert (found.level, "changes key a again" in found.sentence) == ("error", True)
    assert await done(patient.connection, "works") == ["a"]  # what was tried was taken back


async def test_a_procedure_that_writes_what_did_not_change(patient: Patient) -> None:
    (found,) = await tried(patient, "p_changed_keys := '{}';")
    assert (found.level, "writes 1 rows for the clean key a" in found.sentence) == ("warning", True)


async def test_a_procedure_that_raises(patient: Patient) -> None:
    (found,) = await tried(patient, "raise exception 'never';")
    assert (found.level, "recalculating key a fails: (withheld" in found.sentence) == ("error", True)


async def test_a_procedure_that_says_nothing_and_locks_nothing(patient: Patient) -> None:
    db = patient.connection
    await make_ledger(db)
    await db.execute("""
        create procedure ledger.mute(in p_keys text[]) language plpgsql as $$ begin null; end $$;
        select outbox.set_topic('mute', 'ledger.mute');
    """)
    await enqueue(db, "mute", "a")
    await drain(db, KEPT)
    found = [each for each in await complaints(patient, "procedures") if each.sentence.startswith("topic mute")]
    assert [each.level for each in found] == ["warning", "warning"]
    assert "does not say what it changed" in found[0].sentence
    assert "locks no keys" in found[1].sentence


async def test_a_key_that_is_busy_is_no_error(patient: Patient, connect: Connect) -> None:
    db, other = patient.connection, await connect()
    await make_ledger(db)
    await db.execute("select ledger.record('a', 1)")
    await drain(db, KEPT)
    async with other.transaction():
        await other.execute("select outbox.lock_keys('ledger.account', '{a}')")
        found = await complaint(patient, "procedures")
    assert (found.level, "key a is busy" in found.sentence) == ("warning", True)
