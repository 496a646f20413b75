"""What the hot statements touch: plans and counts, which hold on any machine, and never times. `make bench-smoke`.

The counters are the server's own, of the transaction in hand: rows read and written per table, scans and entries per
index. They tell what was executed inside a routine, where EXPLAIN of its caller sees one row of a result.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import asyncpg
import pytest
from asyncpg.connection import LoggedQuery
from engine import LIVE, enqueue, make_topic, mutate
from servers import Connect

from daemon import sample_school
from daemon.batch import MAKE_PARTITIONS, RECALCULATE, Batch, Recalculation
from daemon.claim import claim
from daemon.doorbell import LOOK
from daemon.one_statement import OneStatement

STUDENTS, EACH = 400, 20
TOPIC = "t"
BATCH_KEYS = 50
LONG = "k" * 30
"""As long as a uuid: the index on keys is the larger one, and looks dearer."""

TABLES = """
select relid::regclass::text as name, coalesce(seq_scan, 0) as scans, coalesce(seq_tup_read, 0) as read,
       n_tup_ins + n_tup_upd + n_tup_del as written
from pg_stat_xact_user_tables
"""
INDEXES = """
select i.indexrelid::regclass::text as name, coalesce(pg_stat_get_xact_numscans(i.indexrelid), 0) as scans,
       coalesce(pg_stat_get_xact_tuples_returned(i.indexrelid), 0) as read, 0 as written
from pg_index as i
join pg_class as c on c.oid = i.indrelid
where c.relnamespace in ('outbox'::regnamespace, 'school'::regnamespace, 'reports'::regnamespace)
"""


@dataclass
class Touched:
    """What the statements of a block did to tables and indexes, by name."""

    scans: dict[str, int] = field(default_factory=dict)
    """Of an index, or of a table from end to end."""
    read: dict[str, int] = field(default_factory=dict)
    """Entries of an index, or rows of a table that was scanned."""
    written: dict[str, int] = field(default_factory=dict)

    def read_of(self, *names: str) -> int:
        return sum(self.read.get(name, 0) for name in names)


EVENTS = ("outbox.event", "outbox.event_pkey", "outbox.event_topic_key_idx")
FEEDBACK = ("school.feedback", "school.feedback_pkey", "school.feedback_assignment_idx")


@asynccontextmanager
async def touching(db: asyncpg.Connection) -> AsyncIterator[Touched]:
    """Run a block in a transaction that is rolled back, and count."""
    touched = Touched()
    transaction = db.transaction()
    await transaction.start()
    before = await _counters(db)
    yield touched
    after = await _counters(db)
    await transaction.rollback()
    for name, counts in after.items():
        for what, count in counts.items():
            if more := count - before.get(name, {}).get(what, 0):
                getattr(touched, what)[name] = more


async def _counters(db: asyncpg.Connection) -> Mapping[str, Mapping[str, int]]:
    rows = [*await db.fetch(TABLES), *await db.fetch(INDEXES)]
    return {row["name"]: {what: row[what] for what in ("scans", "read", "written")} for row in rows}


async def add_backlog(db: asyncpg.Connection, topic: str, *, events: int, keys: int, prefix: str = "k") -> None:
    """Add events of as many keys in turn, and let the planner count them."""
    await db.execute(
        "insert into outbox.event (topic, key) select $1, $4 || i % $3 from generate_series(0, $2::integer - 1) as i",
        topic,
        events,
        keys,
        prefix,
    )
    await db.execute("analyze outbox.event")


@pytest.fixture
async def school(db: asyncpg.Connection) -> list[str]:
    """Load a school whose reports are true; return its pupils."""
    await sample_school.load(
        db, students=STUDENTS, groups=STUDENTS // 20, timeframes=3, units=16, feedback=EACH * STUDENTS
    )
    await db.execute("call reports.backfill_student_rollups()")
    # Also sets the hint bits, which is written ahead where pages have checksums.
    await db.execute("vacuum (analyze)")
    return [row[0] for row in await db.fetch("select student_id::text from school.student order by 1")]


@pytest.fixture
async def topic(db: asyncpg.Connection) -> str:
    await db.execute("create schema ledger; create sequence ledger.call_count")
    await db.execute("create table ledger.done (topic text, key text, call bigint)")
    await make_topic(db, TOPIC, batch_keys=BATCH_KEYS)
    return TOPIC


async def claiming(db: asyncpg.Connection, topic: str, above: int = 0) -> Touched:
    """Return what a claim of a full batch touches."""
    async with touching(db) as touched:
        taken = await claim(db, {topic: {"above": above}}, after="", retries_first=False)
    assert taken is not None
    assert len(taken.keys) == BATCH_KEYS
    return touched


async def test_a_claim_reads_as_much_beside_a_large_backlog_as_beside_a_small_one(
    db: asyncpg.Connection, topic: str
) -> None:
    await add_backlog(db, topic, events=2_000, keys=2_000)
    small = await claiming(db, topic)
    await add_backlog(db, topic, events=20_000, keys=20_000)
    large = await claiming(db, topic)
    assert large.read_of(*EVENTS) <= small.read_of(*EVENTS) + BATCH_KEYS
    assert small.read_of(*EVENTS) <= 5 * BATCH_KEYS


async def test_a_claim_finds_the_head_by_the_primary_key_and_the_events_of_its_keys_by_theirs(
    db: asyncpg.Connection, topic: str
) -> None:
    await add_backlog(db, topic, events=2_000, keys=1_000)
    touched = await claiming(db, topic)
    # The planner looks at the ends of an index, too: that is the one entry more.
    assert BATCH_KEYS <= touched.read["outbox.event_pkey"] <= BATCH_KEYS + 1
    assert 2 * BATCH_KEYS <= touched.read["outbox.event_topic_key_idx"] <= 2 * BATCH_KEYS + 1
    assert "outbox.event" not in touched.scans
    assert touched.written == {"outbox.event": 2 * BATCH_KEYS}


async def test_a_claim_gathers_many_events_of_a_backlog_by_a_bitmap(db: asyncpg.Connection, topic: str) -> None:
    await add_backlog(db, topic, events=20_000, keys=400)
    assert await fetching(db) == (20_000 * BATCH_KEYS // 400, 0)


async def test_a_claim_gathers_few_events_by_the_index_whatever_the_planner_believes(
    db: asyncpg.Connection, topic: str
) -> None:
    """A bitmap would read the entries of those that are gone, too, again with every claim of the key."""
    await add_backlog(db, topic, events=20_000, keys=40)
    await db.execute("delete from outbox.event where event_id <= (select max(event_id) - 9 from outbox.event)")
    assert await fetching(db) == (9, 9)


@pytest.mark.parametrize(("pending", "keys", "is_kept"), [(8, 50, True), (9, 50, False), (9, 8, False)])
async def test_a_plan_is_kept_only_where_few_events_wait(
    db: asyncpg.Connection, topic: str, pending: int, keys: int, is_kept: bool
) -> None:
    """One that was made while the table was all but empty may read every event of the topic, and would be kept, too."""
    await mutate(
        db, "claim_keys", "perform set_config('plan_cache_mode', 'force_custom_plan', true)", "raise 'planned'"
    )
    await add_backlog(db, topic, events=pending, keys=pending)
    with nullcontext() if is_kept else pytest.raises(asyncpg.RaiseError, match="planned"):
        await claim(db, {topic: {"keys": keys}}, after="", retries_first=False)


async def fetching(db: asyncpg.Connection) -> tuple[int, int]:
    """Return how many events a claim takes, and how many of them it fetches one by one by the index on their keys."""
    query = "select pg_stat_get_xact_tuples_fetched('outbox.event_topic_key_idx'::regclass)"
    async with db.transaction():
        before = await db.fetchval(query)
        taken = await claim(db, {}, after="", retries_first=False)
        assert taken is not None
        return taken.event_count, await db.fetchval(query) - before


async def test_a_claim_above_the_mark_does_not_read_what_lies_below(db: asyncpg.Connection, topic: str) -> None:
    await add_backlog(db, topic, events=10_000, keys=5_000)
    mark = await db.fetchval("select min(event_id) + 8000 from outbox.event")
    await db.execute("delete from outbox.event where event_id <= $1", mark)  # and no vacuum takes the entries away
    touched = await claiming(db, topic, above=mark)
    # The events of the keys may be had by the primary key, too, while what lies above is so little.
    assert touched.read["outbox.event_pkey"] <= 2_000 + BATCH_KEYS


async def test_a_claim_does_not_read_the_older_backlog_of_another_topic(db: asyncpg.Connection, topic: str) -> None:
    await make_topic(db, "busy")
    await db.execute("select outbox.pause_topic('busy', 'test')")
    await add_backlog(db, "busy", events=20_000, keys=20_000)
    await add_backlog(db, topic, events=2_000, keys=2_000)
    assert (await claiming(db, topic)).read_of(*EVENTS) <= 5 * BATCH_KEYS


@pytest.mark.parametrize("query", ["outbox.is_fresh($1, $2)", "outbox.is_pending($1, $2)", "outbox.wait_fresh($1, $2)"])
async def test_whether_a_key_waits_is_not_asked_of_events_that_cannot_be_vacuumed(
    db: asyncpg.Connection, connect: Connect, topic: str, query: str
) -> None:
    """The planner counts none of them, and takes one index to be as good as another."""
    forgotten = await connect("forgotten")
    async with forgotten.transaction(isolation="repeatable_read"):
        await forgotten.execute("select from outbox.topic")
        await add_backlog(db, topic, events=50_000, keys=500, prefix=LONG)
        await db.execute("delete from outbox.event")
        await db.execute("vacuum (analyze) outbox.event")
        async with touching(db) as touched:
            await db.fetchval(f"select {query}", topic, f"{LONG}7")
    assert touched.read_of(*EVENTS) <= 500


async def test_a_look_reads_one_event_of_a_backlog(db: asyncpg.Connection, topic: str) -> None:
    await add_backlog(db, topic, events=20_000, keys=20_000)
    async with touching(db) as touched:
        assert (await db.fetchrow(LOOK, []))["ready"]  # type: ignore[index]
    assert touched.read_of(*EVENTS) == 1


STEP_BY_STEP = ("begin", "outbox.claim(", "outbox.recalculate(", "outbox.settle(", "commit")
AT_ONCE = ("outbox.run_batch(", "reset session authorization")


@pytest.mark.parametrize("routines", [STEP_BY_STEP, AT_ONCE])
async def test_a_batch_takes_all_events_of_its_keys_in_so_many_statements_and_one_commit(
    db: asyncpg.Connection, topic: str, routines: tuple[str, ...]
) -> None:
    at_once = OneStatement(LIVE, db)
    if routines == AT_ONCE:
        await enqueue(db, topic, "before")
        await at_once.next_batch({}, after="", retries_first=False)  # the session has its limit now
    await add_backlog(db, topic, events=5_000, keys=BATCH_KEYS)
    how = partial(at_once.next_batch, {}) if routines == AT_ONCE else partial(LIVE.next_batch, db, {})
    statements, batch = await _statements_of_a_batch(db, how)
    assert batch.claim.event_count == 5_000
    assert len(statements) == len(routines)
    assert all(routine in statement.lower() for routine, statement in zip(routines, statements, strict=True))
    assert await db.fetchval("select count(*) from ledger.done where key <> 'before'") == BATCH_KEYS


async def test_a_batch_writes_its_events_and_one_line_of_history(db: asyncpg.Connection, topic: str) -> None:
    await db.fetch(MAKE_PARTITIONS, 1)
    await add_backlog(db, topic, events=2_000, keys=BATCH_KEYS)
    how = Recalculation(None, "live", keep_history=True)
    async with touching(db) as touched:
        taken = await claim(db, {}, after="", retries_first=False)
        assert taken is not None
        await how.settle(db, await how.call(db, taken))
    history = {name: count for name, count in touched.written.items() if name.startswith("outbox.batch_")}
    assert list(history.values()) == [1]
    assert {name: touched.written[name] for name in touched.written.keys() - history.keys()} == {
        "outbox.event": 2_000,
        "ledger.done": BATCH_KEYS,
    }


async def _statements_of_a_batch(
    db: asyncpg.Connection, next_batch: Callable[..., Awaitable[Batch | None]]
) -> tuple[list[str], Batch]:
    statements: list[str] = []

    def note(query: LoggedQuery) -> None:
        statements.append(query.query.strip())

    with db.query_logger(note):
        batch = await next_batch(after="", retries_first=False)
        await db.execute("select 'the last one'")  # asyncpg tells the logger a turn of the loop later
    assert batch is not None
    return [each for each in statements if "the last one" not in each], batch


async def test_an_enqueue_writes_one_row_and_reads_none_of_the_backlog(db: asyncpg.Connection, topic: str) -> None:
    await add_backlog(db, topic, events=2_000, keys=2_000)
    async with touching(db) as touched:
        await db.execute("select outbox.enqueue($1, 'k1')", topic)
    assert touched.written == {"outbox.event": 1}
    assert touched.read_of(*EVENTS) == 0


async def test_recalculating_a_true_report_writes_no_row_and_no_wal(db: asyncpg.Connection, school: list[str]) -> None:
    await db.fetchval(RECALCULATE, "reports.student", school[:50])
    plan = await _analyze(db, "select outbox.recalculate('reports.student', $1)", school[:50])
    assert (plan.get("WAL Records", 0), plan.get("WAL Bytes", 0)) == (0, 0)
    async with touching(db) as touched:
        assert await db.fetchval(RECALCULATE, "reports.student", school[:50]) == []
    assert touched.written == {}


async def _analyze(db: asyncpg.Connection, query: str, *values: object) -> dict[str, Any]:
    """Run a statement; return the top of its plan, which counts what the routines inside did, too."""
    text = await db.fetchval(f"explain (analyze, wal, format json) {query}", *values)
    return dict(json.loads(text)[0]["Plan"])


async def test_recalculating_one_pupil_reads_that_pupils_feedback_by_its_key_and_its_reports_by_theirs(
    db: asyncpg.Connection, school: list[str]
) -> None:
    await _stale(db, school[:1])
    async with touching(db) as touched:
        assert await db.fetchval(RECALCULATE, "reports.student", school[:1]) == school[:1]
    assert FEEDBACK[0] not in touched.scans
    assert touched.scans["school.feedback_pkey"] >= 1
    assert touched.read_of(*FEEDBACK) <= 10 * EACH
    assert "reports.report_student_rollups" not in touched.scans
    assert "reports.report_student_unit_rollups" not in touched.scans


async def test_a_changed_score_rewrites_the_rows_that_it_changes_and_no_other(
    db: asyncpg.Connection, school: list[str]
) -> None:
    await _stale(db, school[:10])
    async with touching(db) as touched:
        await db.fetchval(RECALCULATE, "reports.student", school[:10])
    # The unit's row and the report, in the whole year and in the term of the assignment.
    assert touched.written == {
        "reports.report_student_rollups": 2 * 10,
        "reports.report_student_unit_rollups": 2 * 10,
    }


async def _stale(db: asyncpg.Connection, pupils: list[str]) -> None:
    """Change a score of each pupil."""
    await db.execute(
        "update school.feedback as f set score = case when f.score = 0.5 then 0.6 else 0.5 end"
        " from (select distinct on (o.student_id) o.student_id, o.assignment_id from school.feedback as o"
        "       where o.student_id = any ($1::text[]::uuid[]) order by 1, 2) as one"
        " where f.student_id = one.student_id and f.assignment_id = one.assignment_id",
        pupils,
    )


READS = {
    "select r.* from reports.student_report($1) as r": ("reports.report_student_rollups_pkey", 1),
    "select outbox.is_fresh('reports.student', $1::uuid::text)": ("outbox.event_topic_key_idx", 0),
}


@pytest.mark.parametrize(("query", "expected"), READS.items())
async def test_a_read_of_a_report_is_a_look_into_one_index(
    db: asyncpg.Connection, school: list[str], query: str, expected: tuple[str, int]
) -> None:
    index, entries = expected
    await add_backlog(db, "reports.student", events=20_000, keys=10_000)
    async with touching(db) as touched:
        await db.fetch(query, school[0])
    assert touched.scans[index] == 1
    assert touched.read.get(index, 0) == entries
    assert not {"outbox.event", "reports.report_student_rollups", *FEEDBACK} & touched.scans.keys()


@pytest.mark.parametrize("what", ["group", "cohort"])
async def test_the_report_of_many_comes_from_the_cached_tables_alone(
    db: asyncpg.Connection, school: list[str], what: str
) -> None:
    source = {"group": "school.class_group", "cohort": "school.cohort"}[what]
    one = await db.fetchval(f"select {what}_id from {source} limit 1")
    async with touching(db) as touched:
        assert len(await db.fetch(f"select r.* from reports.{what}_report($1) as r", one)) < len(school)
    assert not touched.scans.keys() & set(FEEDBACK)
