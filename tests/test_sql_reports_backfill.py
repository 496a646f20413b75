"""Recalculating everybody: reports.list_students, reports.backfill_student_rollups, and a school to do it to."""

import asyncio
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from oracle import drift
from school import School, found
from servers import Connect

from daemon import migrations, sample_school
from daemon.errors import RecalcdError

SCHOOL: dict[str, Any] = {"students": 25, "groups": 6, "timeframes": 3, "units": 9, "feedback": 300}


@pytest.fixture
async def notices(db: asyncpg.Connection) -> list[str]:
    messages: list[str] = []
    db.add_log_listener(lambda _, message: messages.append(getattr(message, "message", "")))
    return messages


async def pages(db: asyncpg.Connection, limit: int) -> list[list[str]]:
    found: list[list[str]] = []
    after = None
    while page := await db.fetchval("select array(select reports.list_students($1, $2))", after, limit):
        found.append(page)
        after = page[-1]
    return found


@pytest.mark.parametrize(("limit", "page_count"), [(1, 25), (10, 3), (25, 1), (1000, 1)])
async def test_every_pupil_is_listed_once_in_order(db: asyncpg.Connection, limit: int, page_count: int) -> None:
    await sample_school.load(db, **SCHOOL)
    found = await pages(db, limit)
    keys = [key for page in found for key in page]
    assert len(found) == page_count
    assert keys == sorted(set(keys))
    assert set(keys) == {str(row[0]) for row in await db.fetch("select student_id from school.student")}


async def test_pupils_who_are_gone_are_listed_while_they_have_cached_rows(db: asyncpg.Connection) -> None:
    school = await found(db)
    await school.assign()
    await school.settle()
    for pupil in school.pupils:
        await school.remove_student(pupil)
    await db.execute("delete from reports.report_student_rollups where student_id = $1", school.pupils[0])
    assert [key for page in await pages(db, 2) for key in page] == sorted(map(str, school.pupils))
    await school.settle()
    assert await pages(db, 2) == []


async def test_the_nil_uuid_is_an_id_like_any_other(db: asyncpg.Connection) -> None:
    cohort = await School(db).add_cohort("Cohort")
    await db.execute("insert into school.student values ($1, $2, 'Nil')", UUID(int=0), cohort)
    assert await pages(db, 1) == [[str(UUID(int=0))]]


async def test_a_page_after_what_is_no_key_is_refused(db: asyncpg.Connection) -> None:
    with pytest.raises(asyncpg.InvalidTextRepresentationError):
        await db.fetch("select reports.list_students('x', 10)")


async def test_a_backfill_makes_every_report_true_and_says_how_far_it_is(
    db: asyncpg.Connection, notices: list[str]
) -> None:
    await sample_school.load(db, **SCHOOL)
    await db.execute("call reports.backfill_student_rollups(10)")
    assert notices == [f"{done} pupils recalculated, of whom {done} changed" for done in (10, 20, 25)]
    assert await drift(db) == []


async def test_a_second_backfill_changes_nothing(db: asyncpg.Connection, notices: list[str]) -> None:
    await sample_school.load(db, **SCHOOL)
    await db.execute("call reports.backfill_student_rollups()")
    await db.execute("call reports.backfill_student_rollups()")
    assert notices[-1] == "25 pupils recalculated, of whom 0 changed"


async def test_a_backfill_commits_after_each_chunk(
    db: asyncpg.Connection, connect: Connect, wait_until_blocked: Any
) -> None:
    await sample_school.load(db, **SCHOOL)
    keys = [key for page in await pages(db, 10) for key in page]
    backfill = await connect("backfill")
    async with db.transaction():
        await db.execute("select outbox.lock_keys('reports.student', $1)", [keys[-1]])
        task = asyncio.ensure_future(backfill.execute("call reports.backfill_student_rollups(10)"))
        await wait_until_blocked(db, "backfill")
        assert await db.fetchval("select count(distinct student_id) from reports.report_student_rollups") == 20
    await task
    assert await drift(db) == []


@pytest.mark.parametrize("chunk", [0, -1, 1001, None])
async def test_a_chunk_out_of_range_is_refused(db: asyncpg.Connection, chunk: int | None) -> None:
    with pytest.raises(asyncpg.InvalidParameterValueError, match="chunk"):
        await db.execute(f"call reports.backfill_student_rollups({'null' if chunk is None else chunk})")


async def test_a_backfill_inside_a_transaction_is_refused(db: asyncpg.Connection) -> None:
    await found(db)
    with pytest.raises(asyncpg.InvalidTransactionTerminationError):
        async with db.transaction():
            await db.execute("call reports.backfill_student_rollups()")


async def test_the_same_seed_makes_the_same_school(db: asyncpg.Connection) -> None:
    digest = "select md5(string_agg(f::text, '|' order by f.student_id, f.assignment_id)) from school.feedback as f"
    digests = set()
    for _ in range(2):
        async with db.transaction():
            await sample_school.load(db, **SCHOOL)
            digests.add(await db.fetchval(digest))
            await db.execute("truncate school.feedback, school.assignment, school.unit, school.group_membership")
            await db.execute("truncate school.class_group, school.student, school.cohort cascade")
            await db.execute("delete from school.timeframe where starts_on <> '-infinity'")
    assert len(digests) == 1


@pytest.mark.parametrize(
    "change", [{}, {"students": 1}, {"groups": 1}, {"timeframes": 1}, {"units": 1}, {"feedback": 0}]
)
async def test_a_sample_school_has_what_was_asked_for(db: asyncpg.Connection, change: dict[str, int]) -> None:
    wanted = SCHOOL | change
    await sample_school.load(db, **wanted)
    tables = {"student": "students", "class_group": "groups", "timeframe": "timeframes", "unit": "units"}
    for table, name in (tables | {"feedback": "feedback"}).items():
        assert await db.fetchval(f"select count(*) from school.{table}") == wanted[name], table
    assert await db.fetchval("select count(*) from outbox.event") == 0


@pytest.mark.parametrize("change", [{"students": 0}, {"groups": 0}, {"timeframes": 0}, {"units": 0}, {"feedback": -1}])
async def test_a_school_without_pupils_groups_timeframes_or_units_is_refused(
    db: asyncpg.Connection, change: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match="at least one"):
        await sample_school.load(db, **(SCHOOL | change))


async def test_taking_the_reports_back_refuses_while_they_are_owed_unless_told_to_lose_the_events(
    db: asyncpg.Connection,
) -> None:
    school = await found(db)
    await school.assign()
    with pytest.raises(RecalcdError, match=r"3 events of topic reports\.student are pending"):
        await migrations.down(db, set_names=["reports"])
    assert len(await db.fetch("select from outbox.event")) == 3
    await migrations.down(db, set_names=["reports"], lose_events=True)
    for table in ("event", "failure", "suspect", "topic"):
        assert await db.fetch(f"select from outbox.{table}") == []
    assert not await db.fetchval(
        "select to_regnamespace('school') is not null or to_regnamespace('reports') is not null"
    )
