"""The functions that read the cached reports."""

from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from school import ALL, DAY, NOBODY, School, found


@pytest.fixture
async def school(db: asyncpg.Connection) -> School:
    """Pupil 0 has 0.5 in unit 0 and nothing in unit 1; both are set for group 0, whose members are all."""
    school = await found(db)
    assignment = await school.assign(unit=0)
    await school.assign(unit=1)
    await school.record_feedback(assignment, school.pupils[0], Decimal("0.5"), "good")
    await school.settle()
    return school


async def rows(school: School, function: str, *arguments: Any) -> list[dict[str, Any]]:
    slots = ", ".join(f"${number}" for number in range(1, len(arguments) + 1))
    return [dict(row) for row in await school.db.fetch(f"select * from reports.{function}({slots})", *arguments)]


async def student_report(school: School, pupil: UUID, timeframe: UUID = ALL) -> dict[str, Any]:
    (row,) = await rows(school, "student_report", pupil, timeframe)
    return row


async def test_a_report_is_of_everything_unless_told_otherwise(school: School) -> None:
    (row,) = await rows(school, "student_report", school.pupils[0])
    assert row == await student_report(school, school.pupils[0], ALL)
    assert (row["timeframe_id"], row["average"], row["latest_comment"]) == (ALL, Decimal("0.5"), "good")
    assert row["is_fresh"] is True


async def test_a_report_is_stale_from_the_write_to_the_recalculation(school: School) -> None:
    await school.record_feedback(await school.assign(), school.pupils[0], 1)
    row = await student_report(school, school.pupils[0])
    assert (row["feedback_count"], row["is_fresh"]) == (1, False)
    await school.settle()
    row = await student_report(school, school.pupils[0])
    assert (row["feedback_count"], row["is_fresh"]) == (2, True)


async def test_a_report_is_stale_while_a_failed_recalculation_is_owed(school: School) -> None:
    await school.db.execute(
        "insert into outbox.failure (topic, key, next_attempt_at) values ('reports.student', $1, now())",
        str(school.pupils[0]),
    )
    assert (await student_report(school, school.pupils[0]))["is_fresh"] is False


async def test_is_fresh_is_judged_in_the_snapshot_of_the_rest(school: School, connect: Any) -> None:
    reader = School(await connect())
    async with reader.db.transaction(isolation="repeatable_read"):
        before = await student_report(reader, school.pupils[0])
        await school.record_feedback(await school.assign(), school.pupils[0], 1)
        assert await student_report(reader, school.pupils[0]) == before
        await school.settle()
        assert await student_report(reader, school.pupils[0]) == before


async def test_a_pupil_who_waits_for_the_first_calculation_has_a_row_that_is_not_fresh(school: School) -> None:
    await school.db.execute("delete from reports.report_student_rollups")
    row = await student_report(school, school.pupils[0])
    assert (row["student_id"], row["cohort_id"]) == (school.pupils[0], school.cohorts[0])
    assert (row["average"], row["calculated_at"], row["is_fresh"]) == (None, None, False)


async def test_a_pupil_who_was_just_removed_still_has_a_stale_report(school: School) -> None:
    await school.remove_student(school.pupils[0])
    assert (await student_report(school, school.pupils[0]))["is_fresh"] is False
    await school.settle()
    with pytest.raises(asyncpg.PostgresError):
        await student_report(school, school.pupils[0])


@pytest.mark.parametrize(
    ("function", "word", "sqlstate"),
    [
        ("student_report", None, "SC002"),
        ("student_unit_report", None, "SC002"),
        ("group_report", None, "SC005"),
        ("cohort_report", None, "SC008"),
        ("student_report", "pupils", "SC007"),
        ("student_unit_report", "pupils", "SC007"),
        ("group_report", "groups", "SC007"),
        ("cohort_report", "cohorts", "SC007"),
    ],
)
async def test_what_does_not_exist_is_an_error_with_a_hint(
    school: School, function: str, word: str | None, sqlstate: str
) -> None:
    arguments = [NOBODY] if word is None else [getattr(school, word)[0], NOBODY]
    with pytest.raises(asyncpg.PostgresError) as caught:
        await rows(school, function, *arguments)
    assert caught.value.sqlstate == sqlstate
    assert caught.value.hint


async def test_a_unit_report_lists_units_by_subject_and_title(school: School) -> None:
    await school.edit_unit(school.units[0], "Music", "A")
    await school.settle()
    found = await rows(school, "student_unit_report", school.pupils[0])
    assert [(row["subject"], row["title"]) for row in found] == [("Mathematics", "Unit 1"), ("Music", "A")]
    assert [row["average"] for row in found] == [None, Decimal("0.5")]
    assert all(row["is_fresh"] for row in found)


async def test_a_pupil_without_work_has_an_empty_unit_report(school: School) -> None:
    pupil = await school.add_student(school.cohorts[0], "Zoe")
    assert await rows(school, "student_unit_report", pupil) == []


async def test_a_group_report_is_a_grid_of_members_by_units_of_the_group(school: School) -> None:
    await school.leave_group(school.pupils[2], school.groups[0])
    await school.join_group(school.pupils[0], school.groups[1])
    await school.set_assignment(school.groups[1], await school.add_unit("Art", "Colour"), 1, "activity", DAY)
    await school.settle()
    grid = await rows(school, "group_report", school.groups[0])
    assert [(row["student_name"], row["title"], row["average"]) for row in grid] == [
        ("Pupil 0", "Unit 0", Decimal("0.5")),
        ("Pupil 0", "Unit 1", None),
        ("Pupil 1", "Unit 0", None),
        ("Pupil 1", "Unit 1", None),
    ]
    assert {row["pupil_average"] for row in grid} == {Decimal("0.5"), None}
    assert all(row["is_fresh"] for row in grid)


async def test_a_group_report_of_a_timeframe_has_the_units_set_in_it(school: School) -> None:
    term = await school.add_timeframe("Term", date(2027, 1, 1), date(2027, 6, 30))
    assert {row["unit_id"] for row in await rows(school, "group_report", school.groups[0], term)} == {None}
    await school.assign(unit=1, day=date(2027, 2, 1))
    await school.settle()
    grid = await rows(school, "group_report", school.groups[0], term)
    assert [(row["unit_id"], row["assignment_count"]) for row in grid] == [(school.units[1], 1)] * 3


async def test_a_group_report_never_touches_feedback(school: School) -> None:
    async with school.db.transaction():
        await school.db.execute("alter table school.feedback rename to gone")
        assert len(await rows(school, "group_report", school.groups[0])) == 6
        assert len(await rows(school, "cohort_report", school.cohorts[0])) == 3


async def test_an_empty_group_has_an_empty_report(school: School) -> None:
    assert await rows(school, "group_report", school.groups[1]) == []


async def test_a_cohort_report_lists_its_pupils_by_name(school: School) -> None:
    await school.move_cohort(school.pupils[1], school.cohorts[1])
    await school.settle()
    found = await rows(school, "cohort_report", school.cohorts[0])
    assert [(row["student_name"], row["average"]) for row in found] == [("Pupil 0", Decimal("0.5")), ("Pupil 2", None)]
    assert [row["student_name"] for row in await rows(school, "cohort_report", school.cohorts[1])] == ["Pupil 1"]


async def test_a_reader_may_read_in_a_read_only_transaction(school: School) -> None:
    async with school.db.transaction(readonly=True):
        assert (await student_report(school, school.pupils[0]))["is_fresh"]
