"""The write functions of schema school: what they refuse, and exactly whom they enqueue."""

from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from oracle import drift
from school import ALL, DAY, NOBODY, School, found

TOO_LONG = "x" * 201


@pytest.fixture
async def school(db: asyncpg.Connection) -> School:
    """Pupils 0 and 1 are in group 0, pupil 2 in group 1, pupil 3 in none."""
    school = await found(db, pupils=4)
    for pupil in (2, 3):
        await school.leave_group(school.pupils[pupil], school.groups[0])
    await school.join_group(school.pupils[2], school.groups[1])
    await school.events()
    return school


def pupils(school: School, *numbers: int) -> set[UUID]:
    return {school.pupils[number] for number in numbers}


# Each case: the function, its arguments as words about the school, the SQLSTATE.
REFUSALS = [
    ("record_feedback", ["assignment", "pupil", Decimal("-0.01")], "SC001"),
    ("record_feedback", ["assignment", "pupil", Decimal("1.01")], "SC001"),
    ("record_feedback", ["assignment", "pupil", Decimal("NaN")], "SC001"),
    ("record_feedback", ["assignment", "pupil", Decimal("Infinity")], "SC001"),
    ("record_feedback", ["assignment", "pupil", None], "SC001"),
    ("record_feedback", ["assignment", "pupil", 1, "x" * 10001], "SC009"),
    ("record_feedback", ["assignment", NOBODY, 1], "SC002"),
    ("record_feedback", ["assignment", None, 1], "SC002"),
    ("record_feedback", [NOBODY, "pupil", 1], "SC003"),
    ("record_feedback", [None, "pupil", 1], "SC003"),
    ("record_feedback", ["assignment", "stranger", 1], "SC004"),
    ("add_cohort", [""], "SC009"),
    ("add_cohort", [None], "SC009"),
    ("edit_cohort", [NOBODY, "x"], "SC008"),
    ("edit_cohort", ["cohort", TOO_LONG], "SC009"),
    ("delete_cohort", [NOBODY], "SC008"),
    ("delete_cohort", ["cohort"], "SC011"),
    ("add_student", [NOBODY, "x"], "SC008"),
    ("add_student", ["cohort", TOO_LONG], "SC009"),
    ("move_cohort", [NOBODY, "cohort"], "SC002"),
    ("move_cohort", ["pupil", NOBODY], "SC008"),
    ("remove_student", [NOBODY], "SC002"),
    ("add_group", [TOO_LONG], "SC009"),
    ("edit_group", [NOBODY, "x"], "SC005"),
    ("edit_group", ["group", ""], "SC009"),
    ("delete_group", [NOBODY], "SC005"),
    ("join_group", [NOBODY, "group"], "SC002"),
    ("join_group", ["pupil", NOBODY], "SC005"),
    ("leave_group", [NOBODY, "group"], "SC002"),
    ("leave_group", ["pupil", NOBODY], "SC005"),
    ("set_assignment", [NOBODY, "unit", 1, "activity", DAY], "SC005"),
    ("set_assignment", [None, "unit", 1, "activity", DAY], "SC005"),
    ("set_assignment", ["group", NOBODY, 1, "activity", DAY], "SC006"),
    ("set_assignment", ["group", None, 1, "activity", DAY], "SC006"),
    ("set_assignment", ["group", "unit", 0, "activity", DAY], "SC009"),
    ("set_assignment", ["group", "unit", 100, "activity", DAY], "SC009"),
    ("set_assignment", ["group", "unit", None, "activity", DAY], "SC009"),
    ("set_assignment", ["group", "unit", 1, "exam", DAY], "SC009"),
    ("set_assignment", ["group", "unit", 1, None, DAY], "SC009"),
    ("set_assignment", ["group", "unit", 1, "activity", None], "SC009"),
    ("set_assignment", ["group", "unit", 1, "activity", date.max], "SC009"),  # infinity, in asyncpg's words
    ("edit_assignment", [NOBODY], "SC003"),
    ("edit_assignment", ["assignment", NOBODY], "SC005"),
    ("edit_assignment", ["assignment", None, NOBODY], "SC006"),
    ("edit_assignment", ["assignment", None, None, 0], "SC009"),
    ("edit_assignment", ["assignment", None, None, None, "exam"], "SC009"),
    ("delete_assignment", [NOBODY], "SC003"),
    ("add_unit", ["", "x"], "SC009"),
    ("add_unit", ["x", TOO_LONG], "SC009"),
    ("edit_unit", [NOBODY, "x"], "SC006"),
    ("edit_unit", ["unit", ""], "SC009"),
    ("edit_unit", ["unit", None, ""], "SC009"),
    ("delete_unit", [NOBODY], "SC006"),
    ("add_timeframe", ["", DAY, DAY], "SC009"),
    ("add_timeframe", ["x", DAY, date(2000, 1, 1)], "SC010"),
    ("add_timeframe", ["x", None, DAY], "SC010"),
    ("edit_timeframe", [NOBODY, "x"], "SC007"),
    ("edit_timeframe", ["timeframe", ""], "SC009"),
    ("edit_timeframe", ["timeframe", None, date(2030, 1, 1)], "SC010"),
    ("edit_timeframe", [ALL, "x"], "SC013"),
    ("delete_timeframe", [NOBODY], "SC007"),
    ("delete_timeframe", [ALL], "SC013"),
]


@pytest.mark.parametrize(("function", "arguments", "sqlstate"), REFUSALS)
async def test_what_cannot_be_is_refused_with_a_hint_and_changes_nothing(
    school: School, function: str, arguments: list[Any], sqlstate: str
) -> None:
    words = {
        "assignment": await school.assign(),
        "timeframe": await school.add_timeframe("Term", date(2026, 1, 1), date(2026, 6, 30)),
        "pupil": school.pupils[0],
        "stranger": school.pupils[3],
        "group": school.groups[0],
        "unit": school.units[0],
        "cohort": school.cohorts[0],
    }
    await school.events()
    with pytest.raises(asyncpg.PostgresError) as caught:
        await getattr(school, function)(
            *(words.get(each, each) if isinstance(each, str) else each for each in arguments)
        )
    assert caught.value.sqlstate == sqlstate
    assert caught.value.hint
    assert "Pupil" not in str(caught.value)
    assert await school.events() == []


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_every_function_that_enqueues_refuses_other_isolation_levels(school: School, isolation: Any) -> None:
    names = await school.db.fetch(
        "select p.proname, p.pronargs - p.pronargdefaults as width from pg_proc as p "
        "where p.pronamespace = 'school'::regnamespace and p.prosrc ~ 'outbox\\.enqueue|enqueue_everybody'"
    )
    assert len(names) >= 16
    term = await school.add_timeframe("Term", DAY, DAY)
    named = {"record_feedback": [NOBODY, NOBODY, 1], "set_assignment": [NOBODY, NOBODY, 1, "activity"]} | {
        "add_timeframe": ["x", DAY, DAY],
        "add_student": [NOBODY, "x"],
        "delete_assignment": [await school.assign()],
        "edit_assignment": [await school.assign()],
        "delete_timeframe": [term],
        "edit_timeframe": [term],
        "enqueue_everybody": ["x"],
    }
    for row in names:
        arguments = named.get(row["proname"], [NOBODY] * row["width"])
        with pytest.raises(asyncpg.PostgresError) as caught:
            async with school.db.transaction(isolation=isolation):
                await getattr(school, row["proname"])(*arguments)
        assert caught.value.sqlstate == "SC012", row["proname"]


async def test_recording_feedback_enqueues_the_pupil(school: School) -> None:
    assignment = await school.assign()
    await school.events()
    assert await school.record_feedback(assignment, school.pupils[0], Decimal("0.5"), "good", given_by=NOBODY)
    assert await school.affected() == (pupils(school, 0), "feedback.recorded")


async def test_feedback_takes_the_place_of_what_there_was(school: School) -> None:
    assignment = await school.assign()
    await school.record_feedback(assignment, school.pupils[0], Decimal("0.5"), "good", given_by=NOBODY)
    first = await school.db.fetchval("select given_at from school.feedback")
    await school.events()
    assert await school.record_feedback(assignment, school.pupils[0], Decimal("0.6"))
    row = await school.db.fetchrow(
        "select score, comment, given_by, given_at > $1 as is_later from school.feedback", first
    )
    assert row
    assert tuple(row) == (Decimal("0.6"), None, None, True)
    assert await school.affected() == (pupils(school, 0), "feedback.recorded")


@pytest.mark.parametrize("score", ["0.5", "0.50000", "0.50004"])
async def test_the_same_feedback_again_writes_and_enqueues_nothing(school: School, score: str) -> None:
    assignment = await school.assign()
    await school.record_feedback(assignment, school.pupils[0], Decimal("0.5"), "good", NOBODY)
    before = await school.db.fetch("select ctid, xmin, given_at from school.feedback")
    await school.events()
    assert not await school.record_feedback(assignment, school.pupils[0], Decimal(score), "good", NOBODY)
    assert await school.events() == []
    assert await school.db.fetch("select ctid, xmin, given_at from school.feedback") == before


async def test_retracting_feedback_enqueues_the_pupil_once(school: School) -> None:
    assignment = await school.assign()
    await school.record_feedback(assignment, school.pupils[0], 1)
    await school.events()
    assert await school.retract_feedback(assignment, school.pupils[0])
    assert await school.affected() == (pupils(school, 0), "feedback.retracted")
    assert not await school.retract_feedback(assignment, school.pupils[0])
    assert not await school.retract_feedback(NOBODY, NOBODY)
    assert await school.events() == []


async def test_pupils_come_move_and_go(school: School) -> None:
    pupil = await school.add_student(school.cohorts[0], "Zoe")
    assert await school.affected() == ({pupil}, "student.added")
    assert await school.move_cohort(pupil, school.cohorts[1])
    assert await school.affected() == ({pupil}, "student.moved")
    assert not await school.move_cohort(pupil, school.cohorts[1])
    assert await school.events() == []
    await school.remove_student(pupil)
    assert await school.affected() == ({pupil}, "student.removed")


async def test_removing_a_pupil_removes_feedback_and_memberships(school: School) -> None:
    await school.record_feedback(await school.assign(), school.pupils[0], 1)
    await school.remove_student(school.pupils[0])
    for table in ("student", "feedback", "group_membership"):
        assert not await school.db.fetch(f"select from school.{table} where student_id = $1", school.pupils[0])


async def test_joining_and_leaving_enqueue_the_pupil_unless_nothing_changes(school: School) -> None:
    assert await school.join_group(school.pupils[3], school.groups[0])
    assert await school.affected() == (pupils(school, 3), "group.joined")
    assert not await school.join_group(school.pupils[3], school.groups[0])
    assert await school.events() == []
    assert await school.leave_group(school.pupils[3], school.groups[0])
    assert await school.affected() == (pupils(school, 3), "group.left")
    assert not await school.leave_group(school.pupils[3], school.groups[0])
    assert await school.events() == []


async def test_setting_an_assignment_enqueues_the_groups_members(school: School) -> None:
    await school.assign(group=0)
    assert await school.affected() == (pupils(school, 0, 1), "assignment.set")


@pytest.mark.parametrize(
    "change", [{"level": 2}, {"kind": "assessment"}, {"assigned_on": date(2020, 1, 1)}, {"unit_id": 1}]
)
async def test_editing_an_assignment_enqueues_members_and_whoever_has_feedback_on_it(
    school: School, change: dict[str, Any]
) -> None:
    assignment = await school.assign(group=0)
    await school.record_feedback(assignment, school.pupils[1], 1)
    await school.leave_group(school.pupils[1], school.groups[0])
    await school.events()
    values = {name: school.units[1] if name == "unit_id" else value for name, value in change.items()}
    assert await school.edit_assignment(assignment, **values)
    assert await school.affected() == (pupils(school, 0, 1), "assignment.edited")
    assert not await school.edit_assignment(assignment, **values)
    assert not await school.edit_assignment(assignment)
    assert await school.events() == []


async def test_moving_an_assignment_enqueues_the_members_of_both_groups(school: School) -> None:
    assignment = await school.assign(group=0)
    await school.events()
    assert await school.edit_assignment(assignment, group_id=school.groups[1])
    assert await school.affected() == (pupils(school, 0, 1, 2), "assignment.edited")


async def test_deleting_an_assignment_enqueues_members_and_whoever_had_feedback_on_it(school: School) -> None:
    assignment = await school.assign(group=0)
    await school.record_feedback(assignment, school.pupils[1], 1)
    await school.leave_group(school.pupils[1], school.groups[0])
    await school.events()
    await school.delete_assignment(assignment)
    assert await school.affected() == (pupils(school, 0, 1), "assignment.deleted")
    assert await school.db.fetchval("select count(*) from school.feedback") == 0


async def test_units_and_groups_affect_nobody_until_something_is_set(school: School) -> None:
    unit, group = await school.add_unit("Music", "Rhythm"), await school.add_group("7B")
    assert await school.edit_unit(unit, "Art", "Colour")
    assert await school.edit_group(group, "7C")
    assert await school.edit_cohort(school.cohorts[0], "Year 9")
    await school.delete_unit(unit)
    await school.delete_group(group)
    await school.delete_cohort(school.cohorts[1])
    assert await school.events() == []


async def test_a_new_name_affects_nobody_and_an_old_one_changes_nothing(school: School) -> None:
    await school.assign()
    term = await school.add_timeframe("Term", DAY, DAY)
    await school.events()
    renamed: list[tuple[Any, ...]] = [
        (school.edit_unit, school.units[0], None, "New"),
        (school.edit_group, school.groups[0], "New"),
        (school.edit_cohort, school.cohorts[0], "New"),
        (school.edit_timeframe, term, "New"),
    ]
    for rename, *arguments in renamed:
        assert await rename(*arguments)
        assert not await rename(*arguments)
    assert await school.events() == []


async def test_a_new_subject_and_deleting_a_unit_enqueue_everybody_it_was_set_for_or_who_has_feedback_on_it(
    school: School,
) -> None:
    assignment = await school.assign(group=0, unit=0)
    await school.assign(group=1, unit=1)
    await school.record_feedback(assignment, school.pupils[1], 1)
    await school.leave_group(school.pupils[1], school.groups[0])
    await school.settle()
    assert await school.edit_unit(school.units[0], "Art")
    assert await school.affected() == (pupils(school, 0, 1), "unit.edited")
    assert not await school.edit_unit(school.units[0], "Art")
    assert await school.events() == []
    await school.recalculate()
    await school.delete_unit(school.units[0])
    assert await school.affected() == (pupils(school, 0, 1), "unit.deleted")
    assert await school.db.fetchval("select count(*) from school.feedback") == 0
    await school.recalculate()
    assert await drift(school.db) == []


async def test_deleting_a_group_enqueues_members_and_whoever_had_feedback_on_its_assignments(school: School) -> None:
    assignment = await school.assign(group=0)
    await school.record_feedback(assignment, school.pupils[1], 1)
    await school.leave_group(school.pupils[1], school.groups[0])
    await school.events()
    await school.delete_group(school.groups[0])
    assert await school.affected() == (pupils(school, 0, 1), "group.deleted")


async def test_the_days_of_a_timeframe_concern_every_pupil(school: School) -> None:
    everybody = pupils(school, 0, 1, 2, 3)
    term = await school.add_timeframe("Term", DAY, DAY)
    assert await school.affected() == (everybody, "timeframe.added")
    assert await school.edit_timeframe(term, ends_on=date(2026, 3, 1))
    assert await school.affected() == (everybody, "timeframe.edited")
    assert not await school.edit_timeframe(term, ends_on=date(2026, 3, 1))
    assert await school.events() == []
    await school.delete_timeframe(term)
    assert await school.affected() == (everybody, "timeframe.deleted")


async def test_open_ends_are_infinite(school: School) -> None:
    await school.db.execute("select school.add_timeframe('Since', '2026-01-01', 'infinity')")
    await school.record_feedback(await school.assign(), school.pupils[0], 1)
    await school.recalculate()
    assert await drift(school.db) == []
