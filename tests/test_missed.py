"""Missed-enqueue detection: a bulk load that forgot the outbox is named, row by row."""

import asyncpg
import pytest
from school import School, found
from typed import recalcd_on

from daemon.keys import find_topic
from daemon.verify import Verdict, Verifier


async def verify(db: asyncpg.Connection, *, repair: bool = False) -> Verdict:
    return await Verifier(db, await find_topic(db, "reports.student"), repair).run()


@pytest.fixture
async def school(db: asyncpg.Connection) -> School:
    school = await found(db, pupils=3)
    for level in (1, 2):
        await school.assign(level=level)
    await school.settle()
    return school


def sources(verdict: Verdict) -> dict[str, set[str]]:
    return {key: {row.source for row in rows} for key, rows in verdict.missed.items()}


async def test_a_bulk_load_that_forgot_the_outbox_is_named_row_by_row(db: asyncpg.Connection, school: School) -> None:
    first, second, _ = map(str, school.pupils)
    await db.execute(
        "insert into school.feedback (student_id, assignment_id, score) "
        "select s, assignment_id, 0.5 from school.assignment, unnest($1::uuid[]) as s",
        [first, second],
    )
    assignments = {str(row["assignment_id"]) for row in await db.fetch("select assignment_id from school.assignment")}

    verdict = await verify(db, repair=True)
    assert set(verdict.drifted) == {first, second}
    for key in (first, second):
        rows = verdict.missed[key]
        assert {row.source for row in rows} == {"school.feedback"}
        assert {row.row_key["assignment_id"] for row in rows} == assignments
        assert {row.row_key["student_id"] for row in rows} == {key}
    assert (await verify(db)).missed == {}


@pytest.mark.parametrize(
    ("statement", "source"),
    [
        ("update school.student set cohort_id = $1", "school.student"),
        ("insert into school.timeframe values ($1, 'Year', '2020-01-01', '2030-01-01')", "school.timeframe"),
        (
            (
                "update school.assignment as a set unit_id = u.unit_id "
                "from school.unit as u where u.unit_id not in (a.unit_id, $1)"
            ),
            "school.assignment",
        ),
        ("update school.unit set subject = 'Latin' where $1::uuid is not null", "school.unit"),
        ("delete from school.group_membership where $1::uuid is not null", None),
    ],
)
async def test_every_kind_of_source_row_is_looked_at_and_a_deletion_leaves_none(
    db: asyncpg.Connection, school: School, statement: str, source: str | None
) -> None:
    await db.execute(statement, school.cohorts[1])
    verdict = await verify(db)
    assert len(verdict.drifted) == 3
    assert sources(verdict) == ({} if source is None else {str(pupil): {source} for pupil in school.pupils})


async def test_a_membership_and_a_pupil_that_nobody_calculated_are_named(
    db: asyncpg.Connection, school: School
) -> None:
    pupil = await db.fetchval(
        "insert into school.student (cohort_id, name) values ($1, 'New') returning student_id", school.cohorts[0]
    )
    await db.execute("insert into school.group_membership values ($1, $2)", pupil, school.groups[0])
    verdict = await verify(db)
    assert verdict.drifted == [str(pupil)]
    assert {"school.student", "school.group_membership"} <= sources(verdict)[str(pupil)]


async def test_rows_written_with_their_event_and_reports_changed_by_hand_accuse_nobody(
    db: asyncpg.Connection, school: School, dsn: str
) -> None:
    assignment = await school.assign()
    await school.record_feedback(assignment, school.pupils[0], 0.5)
    assert (await verify(db)).missed == {}  # pending

    await school.settle()
    await db.execute("update reports.report_student_rollups set average = 0.9")
    verdict = await verify(db)
    assert (len(verdict.drifted), verdict.missed) == (3, {})
    assert "written since" not in (await recalcd_on(dsn)("verify")).stdout


async def test_the_command_names_the_rows(db: asyncpg.Connection, school: School, dsn: str) -> None:
    await db.execute(
        "insert into school.feedback (student_id, assignment_id, score) select $1, assignment_id, 0.5 "
        "from school.assignment limit 1", school.pupils[0],
    )  # fmt: skip
    answer = await recalcd_on(dsn)("verify")
    assert answer.exit_code == 1
    assert "    written since, without an event:\n      school.feedback (student_id " in answer.stdout
