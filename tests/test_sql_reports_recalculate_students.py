"""reports.recalculate_students: both cached tables say what the source says."""

import asyncio
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from oracle import drift
from school import ALL, DAY, NOBODY, School, found
from servers import Connect

from daemon import sample_school

SMALL: dict[str, Any] = {"students": 40, "groups": 4, "timeframes": 4, "units": 8, "feedback": 400}


@pytest.fixture
async def school(db: asyncpg.Connection) -> School:
    return await found(db)


async def report(school: School, pupil: int = 0, timeframe: UUID = ALL) -> asyncpg.Record:
    row = await school.db.fetchrow(
        "select * from reports.report_student_rollups where student_id = $1 and timeframe_id = $2",
        school.pupils[pupil],
        timeframe,
    )
    assert row is not None
    return row


async def unit_levels(school: School, pupil: int = 0) -> list[int | None]:
    rows = await school.db.fetch(
        "select unit_id, working_level from reports.report_student_unit_rollups "
        "where student_id = $1 and timeframe_id = $2",
        school.pupils[pupil],
        ALL,
    )
    levels = {row["unit_id"]: row["working_level"] for row in rows}
    return [levels.get(unit) for unit in school.units]


async def footprint(db: asyncpg.Connection) -> list[asyncpg.Record]:
    """Return where every cached row lies, which transactions touched it, and when it says it was calculated."""
    return await db.fetch(
        "select c.ctid, c.xmin, c.xmax, c.calculated_at from reports.report_student_rollups as c union all "
        "select c.ctid, c.xmin, c.xmax, c.calculated_at from reports.report_student_unit_rollups as c"
    )


async def test_a_pupil_without_any_work_has_an_empty_report_in_every_timeframe(school: School) -> None:
    await school.add_timeframe("Term", date(2026, 1, 1), date(2026, 6, 30))
    assert await school.settle() == sorted(map(str, school.pupils))
    assert await school.db.fetchval("select count(*) from reports.report_student_rollups") == 2 * len(school.pupils)
    row = await report(school)
    assert (row["average"], row["feedback_count"], row["assignment_count"], row["subjects"]) == (None, 0, 0, "{}")
    assert await drift(school.db) == []


async def test_means_counts_and_the_latest_feedback_are_of_all_work_in_the_timeframe(school: School) -> None:
    activity, assessment = await school.assign(), await school.assign(unit=1, kind="assessment")
    await school.assign(day=date(2020, 1, 1))
    await school.record_feedback(activity, school.pupils[0], Decimal("0.5"))
    await school.record_feedback(assessment, school.pupils[0], Decimal("0.8"), "well done")
    await school.settle()
    row = await report(school)
    assert (row["activity_average"], row["assessment_average"], row["average"]) == tuple(
        map(Decimal, ("0.5", "0.8", "0.65"))
    )
    assert (row["activity_count"], row["assessment_count"], row["feedback_count"]) == (1, 1, 2)
    assert row["assignment_count"] == 3
    assert (row["latest_assignment_id"], row["latest_comment"]) == (assessment, "well done")
    assert await drift(school.db) == []


async def test_a_timeframe_holds_the_assignments_dated_on_its_first_and_last_day(school: School) -> None:
    term = await school.add_timeframe("Term", date(2026, 1, 1), date(2026, 1, 31))
    for day in (date(2025, 12, 31), date(2026, 1, 1), date(2026, 1, 31), date(2026, 2, 1)):
        await school.record_feedback(await school.assign(day=day), school.pupils[0], 1)
    await school.settle()
    assert (await report(school, timeframe=term))["feedback_count"] == 2
    assert (await report(school))["feedback_count"] == 4
    assert await drift(school.db) == []


async def test_feedback_stays_when_the_pupil_leaves_but_its_work_no_longer_counts_for_the_level(school: School) -> None:
    await school.record_feedback(await school.assign(level=3), school.pupils[0], 1)
    await school.settle()
    assert await unit_levels(school) == [3, None]
    await school.leave_group(school.pupils[0], school.groups[0])
    await school.settle()
    assert await unit_levels(school) == [None, None]
    row = await report(school)
    assert (row["feedback_count"], row["assignment_count"], row["average"]) == (1, 0, 1)
    assert await drift(school.db) == []


@pytest.mark.parametrize(
    ("scores_by_level", "level"),
    [
        pytest.param({}, None, id="nothing set"),
        pytest.param({1: [None]}, None, id="set, without feedback"),
        pytest.param({1: [0]}, None, id="a score of zero is not positive"),
        pytest.param({1: ["0.0001"]}, 1, id="the least score is positive"),
        pytest.param({1: [1, None]}, None, id="a half is not more than half"),
        pytest.param({1: [1, 1, None]}, 1, id="two of three"),
        pytest.param({1: [1, 1, 0, 0]}, None, id="two of four"),
        pytest.param({1: [1], 2: [1]}, 2, id="the highest of those reached"),
        pytest.param({1: [1], 2: [1, 0]}, 1, id="a higher one that is not reached"),
        pytest.param({1: [0], 5: [1]}, 5, id="a lower one need not be reached"),
        pytest.param({99: ["0.5"]}, 99, id="the highest there is"),
    ],
)
async def test_the_working_level_of_a_unit(school: School, scores_by_level: dict[int, list[Any]], level: int) -> None:
    for at, scores in scores_by_level.items():
        for score in scores:
            assignment = await school.assign(level=at)
            if score is not None:
                await school.record_feedback(assignment, school.pupils[0], Decimal(score))
    await school.recalculate()
    assert (await unit_levels(school))[0] == level
    assert await drift(school.db) == []


async def test_only_work_of_the_pupils_own_groups_counts_for_the_level(school: School) -> None:
    await school.join_group(school.pupils[0], school.groups[1])
    await school.record_feedback(await school.assign(group=0, level=2), school.pupils[0], 1)
    await school.assign(group=1, level=2)
    await school.recalculate()
    assert await unit_levels(school, pupil=0) == [None, None]  # one of the two that both groups set
    await school.leave_group(school.pupils[0], school.groups[1])
    await school.recalculate()
    assert await unit_levels(school, pupil=0) == [2, None]
    assert await drift(school.db) == []


@pytest.mark.parametrize(
    ("unit_level", "level"),
    [
        pytest.param([], None, id="no unit"),
        pytest.param([None, None], None, id="no unit has one"),
        pytest.param([1, 1, 3], 1, id="the most frequent"),
        pytest.param([1, 1, 3, 3], 3, id="the higher on a tie"),
        pytest.param([2, None, None], 2, id="units without one have no vote"),
        pytest.param([4, 3, 2, 1], 4, id="all different"),
        pytest.param([10, 9, 9, 10, 2], 10, id="levels are numbers, not texts"),
    ],
)
async def test_the_working_level_of_a_subject(
    db: asyncpg.Connection, unit_level: list[int | None], level: int | None
) -> None:
    school = await found(db, pupils=1, units=len(unit_level))
    elsewhere = await school.add_unit("Music", "Rhythm")
    for number, at in enumerate(unit_level):
        assignment = await school.assign(unit=number, level=at or 1)
        await school.record_feedback(assignment, school.pupils[0], 1 if at else 0)
    other = await school.set_assignment(school.groups[0], elsewhere, 50, "activity", DAY)
    await school.record_feedback(other, school.pupils[0], 1)
    await school.recalculate()
    subject = "select (subjects -> $2 ->> 'working_level')::integer from reports.student_report($1)"
    assert await db.fetchval(subject, school.pupils[0], "Mathematics") == level
    assert await db.fetchval(subject, school.pupils[0], "Music") == 50
    assert await drift(db) == []


async def test_of_feedback_given_at_the_same_moment_the_greater_assignment_in_the_timeframe_is_the_latest(
    school: School,
) -> None:
    term = await school.add_timeframe("Term", DAY, DAY)
    days = [DAY, DAY, date(2020, 1, 1), date(2020, 1, 1), date(2020, 1, 1)]
    assignments = [await school.assign(day=day) for day in days]
    for assignment in assignments:
        await school.record_feedback(assignment, school.pupils[0], 1)
    await school.db.execute("update school.feedback set given_at = $1", datetime(2026, 2, 1, tzinfo=UTC))
    await school.recalculate()
    assert (await report(school))["latest_assignment_id"] == max(assignments)
    assert (await report(school, timeframe=term))["latest_assignment_id"] == max(assignments[:2])
    assert await drift(school.db) == []


async def test_a_clean_key_writes_nothing(db: asyncpg.Connection) -> None:
    await sample_school.load(db, **SMALL)
    keys = await db.fetchval("select array(select reports.list_students(null, 1000))")
    school = School(db)
    assert await school.recalculate(keys) == keys
    before = await footprint(db)
    assert await school.recalculate(keys) == []
    assert await footprint(db) == before


async def test_only_the_rows_that_differ_are_written(school: School) -> None:
    first, second = await school.assign(unit=0), await school.assign(unit=1)
    await school.record_feedback(first, school.pupils[0], 1)
    await school.recalculate()
    before = await school.db.fetch("select unit_id, calculated_at from reports.report_student_unit_rollups")
    await school.record_feedback(second, school.pupils[0], 1)
    assert await school.recalculate() == [str(school.pupils[0])]
    after = await school.db.fetch("select unit_id, calculated_at from reports.report_student_unit_rollups")
    changed = set(after) - set(before)
    assert [row["unit_id"] for row in changed] == [school.units[1]]


async def test_a_pupil_who_is_gone_loses_all_rows(school: School) -> None:
    await school.record_feedback(await school.assign(), school.pupils[0], 1)
    await school.recalculate()
    await school.remove_student(school.pupils[0])
    assert await school.settle() == [str(school.pupils[0])]
    for table in ("report_student_rollups", "report_student_unit_rollups"):
        assert not await school.db.fetch(f"select from reports.{table} where student_id = $1", school.pupils[0])
    assert await drift(school.db) == []


async def test_a_timeframe_that_is_gone_loses_its_rows(school: School) -> None:
    await school.assign()
    term = await school.add_timeframe("Term", DAY, DAY)
    await school.settle()
    await school.delete_timeframe(term)
    assert await school.settle() == sorted(map(str, school.pupils))
    assert await drift(school.db) == []


async def test_rows_that_somebody_spoilt_are_mended(school: School) -> None:
    await school.record_feedback(await school.assign(), school.pupils[0], 1)
    await school.recalculate()
    await school.db.execute("update reports.report_student_unit_rollups set average = 0.1, working_level = 7")
    await school.db.execute("update reports.report_student_rollups set subjects = '{}', latest_comment = 'x'")
    await school.db.execute(
        "insert into reports.report_student_unit_rollups select $1, timeframe_id, unit_id, activity_average, "
        "assessment_average, average, 1, 1, 1, 1, 1, now(), now() from reports.report_student_unit_rollups limit 1",
        NOBODY,
    )
    keys = sorted(map(str, [*school.pupils, NOBODY]))
    assert await school.recalculate(keys) == keys
    assert await drift(school.db) == []


async def test_no_keys_change_nothing(school: School) -> None:
    assert await school.recalculate([]) == []


@pytest.mark.parametrize("key", ["", "Amir Khan", "5", "{key}", "AAAAAAAA-AAAA-4AAA-8AAA-AAAAAAAAAAAA"])
async def test_a_key_that_is_no_id_is_refused_without_being_repeated(school: School, key: str) -> None:
    with pytest.raises(asyncpg.InvalidTextRepresentationError) as caught:
        await school.recalculate([str(school.pupils[0]), key])
    assert key == "" or key not in str(caught.value)
    assert caught.value.hint == "Enqueue student_id::text: lower case, with hyphens."


async def test_a_null_key_is_refused(school: School) -> None:
    with pytest.raises(asyncpg.PostgresError) as caught:
        await school.db.execute("call reports.recalculate_students(array[null], null)")
    assert caught.value.sqlstate == "RC003"


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_other_isolation_levels_are_refused(school: School, isolation: Any) -> None:
    with pytest.raises(asyncpg.PostgresError) as caught:
        async with school.db.transaction(isolation=isolation):
            await school.recalculate()
    assert caught.value.sqlstate == "RC001"


async def test_a_recalculation_that_waited_for_another_sees_what_was_written_meanwhile(
    school: School, connect: Connect, wait_until_blocked: Any
) -> None:
    # Fails without outbox.lock_keys, and when it stands in the statement that recalculates.
    assignment = await school.assign()
    holder, follower = School(await connect()), School(await connect("follower"))
    async with holder.db.transaction():
        await holder.recalculate(school.pupils)
        waiting = asyncio.create_task(follower.recalculate(school.pupils))
        await wait_until_blocked(school.db, "follower")
        await school.record_feedback(assignment, school.pupils[0], 1)
    await waiting
    assert (await report(school))["feedback_count"] == 1
    assert await drift(school.db) == []


async def test_keys_are_locked_in_the_order_of_their_locks_whatever_order_they_come_in(
    school: School, connect: Connect, wait_until_blocked: Any
) -> None:
    # The keys come in the opposite order, so this fails without the sorting in outbox.lock_keys.
    lock_id = "outbox.key_lock_id('reports.student', key)"
    query = f"select key from unnest($1::text[]) as k (key) order by {lock_id}"
    keys = [row["key"] for row in await school.db.fetch(query, list(map(str, school.pupils)))]
    holder, follower = School(await connect()), School(await connect("follower"))
    async with holder.db.transaction():
        await holder.recalculate(keys[:1])
        waiting = asyncio.create_task(follower.recalculate(keys[::-1]))
        await wait_until_blocked(school.db, "follower")
        held = "select count(*) from pg_locks where locktype = 'advisory' and granted and pid = $1"
        assert await school.db.fetchval(held, follower.db.get_server_pid()) == 0
    await waiting


async def test_the_procedure_is_what_its_topic_says(db: asyncpg.Connection) -> None:
    row = await db.fetchrow("select recalculate, list_keys from outbox.topic where topic = 'reports.student'")
    assert row
    assert tuple(row) == ("reports.recalculate_students", "reports.list_students")
    await db.execute("select outbox.check_routines('reports.recalculate_students', 'reports.list_students')")


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_sample_school_agrees_with_the_oracle(db: asyncpg.Connection, seed: int) -> None:
    await sample_school.load(db, **SMALL, seed=seed)
    school = School(db)
    school.pupils = [row["student_id"] for row in await db.fetch("select student_id from school.student")]
    assert len(await school.recalculate()) == SMALL["students"]
    assert await drift(db) == []
    await db.execute("update school.feedback set score = 1 - score where student_id = $1", school.pupils[0])
    assert await drift(db) != [], "the oracle sees what nobody recalculated"
