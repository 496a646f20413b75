"""recalcd forget: a pupil who was removed leaves no trace, and one who is still there is not forgotten."""

import asyncio
import json
from uuid import UUID

import asyncpg
import pytest
from engine import failures, impatient, make_ledger, make_topic, on_duty, until_empty
from school import School
from school import found as found_school
from servers import Connect
from typed import Recalcd, at_terminal, recalcd_on
from waiting import wait_until_blocked

from daemon.batch import prepare_history
from daemon.settings import Settings

TOPIC = "reports.student"
HOLDS_KEYS = """
select format('%s.%I', c.oid::regclass, a.attname)
from pg_class as c
join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where c.relnamespace::regnamespace::text = any ('{outbox,reports}') and c.relkind in ('r', 'p') and not c.relispartition
  and a.atttypid = any ('{text,text[],jsonb,uuid,uuid[]}'::regtype[])
"""
NAMED_AS_KEYS = r"key|keys|changed_keys|cursor|after_key|student_id"
KEYS = {"event_count", "changed_count", "note_count", "job_count", "batch_count"}


@pytest.fixture
def recalcd(dsn: str) -> Recalcd:
    return recalcd_on(dsn)


@pytest.fixture
async def school(db: asyncpg.Connection) -> School:
    await prepare_history(db, days_ahead=1)
    return await found_school(db)


async def places(db: asyncpg.Connection, key: str) -> set[str]:
    """Return every column of the engine and of the reports that holds the key somewhere."""
    columns = [row[0] for row in await db.fetch(HOLDS_KEYS)]
    found = set()
    for column in columns:
        table, _, name = column.rpartition(".")
        query = f"select exists (select from {table} as t where position($1 in t.{name}::text) > 0)"
        if await db.fetchval(query, key):
            found.add(column)
    return found


async def keys_of_history(db: asyncpg.Connection) -> set[str]:
    return {row["key"] for row in await db.fetch("select k as key from outbox.batch as b, unnest(b.keys) as k")}


async def drive_everywhere(recalcd: Recalcd, db: asyncpg.Connection, school: School, settings: Settings) -> str:
    """Let a pupil pass through every feature, so that each leaves what it ever leaves; return the key."""
    pupil = school.pupils[0]
    key = str(pupil)
    await school.assign()  # concerns them all
    await school.record_feedback(await school.assign(), pupil, 0.5)
    async with on_duty(impatient(settings)):
        await until_empty(db)
        assert (await recalcd("replay", TOPIC, "--key", key, "--yes")).exit_code == 0
        await until_empty(db)
    await db.execute(
        """
        insert into outbox.job (kind, topic, part, is_named, key_count, chunk_keys, cursor)
        values ('backfill', 'reports.student', '{}', true, 2, 1, '00000000-0000-0000-0000-000000000001')
        """
    )
    await db.execute("insert into outbox.job_key select max(j.job_id), $1 from outbox.job as j", key)
    await db.execute("insert into outbox.suspect (topic, key) values ($1, $2)", TOPIC, key)
    await db.execute("insert into outbox.drift (topic, key) values ($1, $2)", TOPIC, key)
    await db.execute("insert into outbox.audit (topic, after_key) values ($1, $2)", TOPIC, key)
    await db.execute("insert into outbox.failure (topic, key, next_attempt_at) values ($1, $2, now())", TOPIC, key)
    await school.remove_student(pupil)
    return key


async def test_a_pupil_who_was_removed_is_in_no_column_any_more(
    recalcd: Recalcd, db: asyncpg.Connection, school: School, settings: Settings
) -> None:
    key = await drive_everywhere(recalcd, db, school, settings)
    before = await places(db, key)
    named = f"{HOLDS_KEYS} and a.attname ~ '^({NAMED_AS_KEYS})$'"
    assert before == {row[0] for row in await db.fetch(named)}, "a new column that holds keys, or one that is gone"

    everybody = await keys_of_history(db)
    told = await recalcd("forget", TOPIC, key, "--yes", "--json")
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert all(found[name] for name in KEYS), found
    assert (found["is_certain"], found["dry_run"], found["keys"]) == (True, False, [key])
    assert await places(db, key) == set()
    assert await keys_of_history(db) == everybody - {key}, "of its batches, the others stay"
    assert (await recalcd("verify")).exit_code == 0
    assert (await recalcd("forget", TOPIC, key, "--yes")).exit_code == 1


async def test_a_dry_run_tells_the_same_and_changes_nothing(
    recalcd: Recalcd, db: asyncpg.Connection, school: School, settings: Settings
) -> None:
    key = await drive_everywhere(recalcd, db, school, settings)
    before = await places(db, key)
    told = json.loads((await recalcd("forget", TOPIC, key, "--dry-run", "--json")).stdout)
    assert told["dry_run"] is True
    assert await places(db, key) == before
    done = json.loads((await recalcd("forget", TOPIC, key, "--yes", "--json")).stdout)
    assert told | {"dry_run": False} == done


async def test_a_pupil_who_is_still_there_is_not_forgotten(
    recalcd: Recalcd, db: asyncpg.Connection, school: School
) -> None:
    gone, stays = (str(pupil) for pupil in school.pupils[:2])
    await school.remove_student(UUID(gone))
    told = await recalcd("forget", TOPIC, gone, stays, "--yes")
    assert (told.exit_code, told.stdout) == (2, "")
    assert f"Nothing was forgotten: key '{stays}' of topic {TOPIC} still has a source" in told.stderr
    assert "Delete the source first" in told.stderr
    assert f"{TOPIC}" in told.stderr
    assert await db.fetchval("select count(*) from reports.report_student_rollups where student_id = $1::uuid", gone)


async def test_cached_rows_that_stay_are_told_even_by_a_topic_that_lists_no_keys(
    recalcd: Recalcd, db: asyncpg.Connection
) -> None:
    await make_ledger(db)
    await db.execute("insert into ledger.entry (account, amount) values ('a', 1)")
    await db.execute("""
        create function ledger.describe(p_key text) returns jsonb language sql stable as $$
            select jsonb_build_object('balance', (select to_jsonb(b) from ledger.balance as b where b.account = p_key))
        $$;
        select outbox.set_topic('ledger.account', p_describe => 'ledger.describe');
    """)
    assert (await recalcd("forget", "ledger.account", "a", "--yes")).exit_code == 2
    await db.execute("delete from ledger.entry")
    await db.execute("insert into ledger.balance values ('a', 1, 1)")
    assert (await recalcd("forget", "ledger.account", "a", "--yes")).exit_code == 0
    assert await db.fetchval("select count(*) from ledger.balance") == 0


async def test_a_topic_that_can_tell_nothing_of_its_keys_says_so(recalcd: Recalcd, db: asyncpg.Connection) -> None:
    await make_ledger(db)
    await db.execute("insert into ledger.balance values ('a', 1, 1)")
    told = await recalcd("forget", "ledger.account", "a", "--yes")
    assert told.exit_code == 0
    assert "can neither list nor describe its keys: make sure that their source is gone" in told.stdout


async def test_a_recalculation_that_fails_leaves_everything(recalcd: Recalcd, db: asyncpg.Connection) -> None:
    """Else the evidence would be gone, and the cached rows still there."""
    await make_ledger(db)
    await make_topic(db, "fails", "raise exception 'never';")
    await db.execute("insert into outbox.failure (topic, key, next_attempt_at) values ('fails', 'k', now())")
    told = await recalcd("forget", "fails", "k", "--yes")
    assert told.exit_code == 1
    assert "P0001" in told.stderr
    assert list(await failures(db)) == ["k"]


async def test_a_job_that_stands_at_a_key_is_named(recalcd: Recalcd, db: asyncpg.Connection) -> None:
    await make_ledger(db)
    job_id = await db.fetchval("""
        insert into outbox.job (kind, topic, key_count, chunk_keys, cursor)
        values ('backfill', 'ledger.account', 1, 1, 'k') returning job_id
    """)
    told = await recalcd("forget", "ledger.account", "k", "--yes")
    assert told.exit_code == 2
    assert f"job {job_id} stands at one of the keys. Let it go on, or cancel it" in told.stderr
    assert (await recalcd("job", "cancel", str(job_id), "--yes")).exit_code == 0
    assert (await recalcd("forget", "ledger.account", "k", "--yes")).exit_code == 0
    assert await db.fetchval("select cursor from outbox.job") is None


async def test_forgetting_waits_for_whoever_is_at_work_on_the_key(
    recalcd: Recalcd, db: asyncpg.Connection, connect: Connect
) -> None:
    """Else a batch could settle behind it, and bring the key back into the history."""
    await prepare_history(db, days_ahead=1)
    await db.execute("""
        create procedure public.lock_nothing(in p_keys text[], inout p_changed_keys text[] default null)
        language plpgsql as $$ begin p_changed_keys := '{}'; end $$;
        select outbox.set_topic('careless', 'public.lock_nothing');
    """)
    daemon = await connect()
    async with daemon.transaction():
        await daemon.execute("select outbox.lock_keys('careless', '{k}')")
        forgetting = recalcd("forget", "careless", "k", "--yes")
        await wait_until_blocked(db, "recalcd forget")
        await daemon.execute(
            "insert into outbox.batch (topic, keys, event_count, started_at, recalculate_ms) "
            "values ('careless', '{k,other}', 1, now(), 1)"
        )
    async with asyncio.timeout(30):
        assert (await forgetting).exit_code == 0
    assert await db.fetchval("select keys from outbox.batch") == ["other"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nobody", "k", "--yes"), "no topic 'nobody'"),
        ((TOPIC,), "Missing argument 'KEY...'"),
        ((TOPIC, "00000000-0000-0000-0000-00000000dead"), "there is nobody to ask: say --yes"),
    ],
)
async def test_what_cannot_be_meant_is_a_usage_error(recalcd: Recalcd, arguments: tuple[str, ...], says: str) -> None:
    told = await recalcd("forget", *arguments)
    assert (told.exit_code, told.stdout) == (2, "")
    assert says in " ".join(told.stderr.split())


@pytest.mark.parametrize(("answer", "exit_code", "left"), [("n", 1, 1), ("y", 0, 0)])
async def test_it_asks_first(dsn: str, db: asyncpg.Connection, answer: str, exit_code: int, left: int) -> None:
    await make_ledger(db)
    await db.execute("insert into ledger.balance values ('a', 1, 1)")
    async with at_terminal(dsn, "forget", "ledger.account", "a") as typed:
        _, stderr = await typed.answer(answer)
    assert typed.process.returncode == exit_code
    assert "would forget 1 key of ledger.account: 1 key with cached rows" in stderr
    assert await db.fetchval("select count(*) from ledger.balance") == left
