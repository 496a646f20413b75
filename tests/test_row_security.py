"""Row security: with it, end users see the pupils that their claims name, and nobody else; without it, all."""

import json
from collections.abc import AsyncIterator, Callable
from uuid import UUID

import asyncpg
import pytest
from engine import impatient, on_duty, refused, until_empty
from privileges import TABLE, privileges
from school import NOBODY, School, found
from servers import as_daemon

from daemon import migrations
from daemon.database import close
from daemon.settings import Settings

PERSONAL = [
    "reports.report_student_rollups",
    "reports.report_student_unit_rollups",
    "school.student",
    "school.group_membership",
    "school.feedback",
]


@pytest.fixture
async def school(db: asyncpg.Connection) -> School:
    """Found a school: Ada and Ben in group 0, Cem in group 1, each with feedback and a report; row security is on."""
    school = await found(db, pupils=3)
    await school.leave_group(school.pupils[2], school.groups[0])
    await school.join_group(school.pupils[2], school.groups[1])
    for group, pupils in ((0, school.pupils[:2]), (1, school.pupils[2:])):
        assignment = await school.assign(group)
        for pupil in pupils:
            await school.record_feedback(assignment, pupil, 1)
    await school.settle()
    await db.execute("call reports.enable_row_security()")
    return school


class User:
    """Somebody at the application, by way of a role that may read what recalcd_reader may, and feedback."""

    def __init__(self, db: asyncpg.Connection, settings: dict[str, str]) -> None:
        self.db = db
        self.settings = settings

    async def fetch(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        """Ask in a transaction with these settings, as an application or a gateway does."""
        async with self.db.transaction():
            for name, value in self.settings.items():
                await self.db.execute("select set_config($1, $2, true)", name, value)
            return list(await self.db.fetch(query, *arguments))

    async def pupils(self, table: str) -> set[UUID]:
        return {row["student_id"] for row in await self.fetch(f"select student_id from {table}")}


@pytest.fixture
async def reader(db: asyncpg.Connection, dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """Connect as the role that an application hands to its users."""
    role = await db.fetchval("select current_database() || '_authenticated'")
    await db.execute(f"create role {role} in role recalcd_reader; grant select on school.feedback to {role}")
    reader = await asyncpg.connect(dsn)
    await reader.execute(f"set session authorization {role}")
    yield reader
    await close(reader)
    await db.execute(f"drop owned by {role}; drop role {role}")


def by_settings(*, student: object = None, groups: tuple[object, ...] = ()) -> dict[str, str]:
    claims = {"recalcd.student_id": str(student)} if student else {}
    return claims | ({"recalcd.group_ids": ",".join(map(str, groups))} if groups else {})


def by_token(*, student: object = None, groups: tuple[object, ...] = ()) -> dict[str, str]:
    mine = {"student_id": student and str(student), "group_ids": [str(group) for group in groups] or None}
    return {"request.jwt.claims": json.dumps({"sub": "somebody", "role": "authenticated", "app_metadata": mine})}


Claim = Callable[..., dict[str, str]]

how = pytest.mark.parametrize("claim", [by_settings, by_token])


@how
async def test_a_pupil_sees_the_own_rows(reader: asyncpg.Connection, school: School, claim: Claim) -> None:
    ada, ben, _ = school.pupils
    user = User(reader, claim(student=ada))
    for table in PERSONAL:
        assert await user.pupils(table) == {ada}, table
    (report,) = await user.fetch("select * from reports.student_report($1)", ada)
    assert (report["average"], report["is_fresh"]) == (1, True)
    assert len(await user.fetch("select * from reports.student_unit_report($1)", ada)) == 1
    assert {
        row["student_id"] for row in await user.fetch("select * from reports.group_report($1)", school.groups[0])
    } == {ada}
    with refused("SC002"):  # as if there were no such pupil
        await user.fetch("select * from reports.student_report($1)", ben)


@how
async def test_a_teacher_sees_the_members_of_the_own_groups(
    reader: asyncpg.Connection, school: School, claim: Claim
) -> None:
    ada, ben, cem = school.pupils
    user, of_both = User(reader, claim(groups=(school.groups[0],))), User(reader, claim(groups=tuple(school.groups)))
    for table in PERSONAL:
        assert await user.pupils(table) == {ada, ben}, table
        assert await of_both.pupils(table) == {ada, ben, cem}, table
    rows = await user.fetch("select * from reports.group_report($1)", school.groups[0])
    assert [(row["student_id"], row["average"]) for row in rows] == [(ada, 1), (ben, 1)]
    assert await user.fetch("select * from reports.group_report($1)", school.groups[1]) == []
    assert {
        row["student_id"] for row in await user.fetch("select * from reports.cohort_report($1)", school.cohorts[0])
    } == {
        ada,
        ben,
    }
    with refused("SC002"):
        await user.fetch("select * from reports.student_report($1)", cem)


@how
async def test_a_stranger_sees_nobody(reader: asyncpg.Connection, school: School, claim: Claim) -> None:
    for user in (User(reader, claim(student=NOBODY)), User(reader, claim(groups=(NOBODY,)))):
        for table in PERSONAL:
            assert await user.pupils(table) == set(), table
        assert await user.fetch("select * from reports.group_report($1)", school.groups[0]) == []


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"recalcd.student_id": "", "recalcd.group_ids": ""},
        {"request.jwt.claims": ""},
        {"request.jwt.claims": "{}"},
        {"request.jwt.claims": "null"},
        {"request.jwt.claims": '"text"'},
        {"request.jwt.claims": '{"app_metadata": null}'},
        {"request.jwt.claims": '{"app_metadata": {"group_ids": []}}'},
    ],
    ids=str,
)
async def test_no_claim_sees_nobody(reader: asyncpg.Connection, school: School, settings: dict[str, str]) -> None:
    user = User(reader, settings)
    for table in PERSONAL:
        assert await user.pupils(table) == set(), table
    with refused("SC002"):
        await user.fetch("select * from reports.student_report($1)", school.pupils[0])


@pytest.mark.parametrize(
    ("settings", "sqlstate"),
    [
        ({"recalcd.student_id": "Ada"}, "22P02"),
        ({"recalcd.group_ids": "7A"}, "22P02"),
        ({"recalcd.student_id": "' or true --"}, "22P02"),
        ({"request.jwt.claims": "{"}, "22P02"),
        ({"request.jwt.claims": '{"app_metadata": {"student_id": ["a"]}}'}, "22P02"),
        ({"request.jwt.claims": '{"app_metadata": {"group_ids": "7A"}}'}, "22023"),
        ({"request.jwt.claims": '{"app_metadata": {"group_ids": ["7A"]}}'}, "22P02"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("school")
async def test_a_malformed_claim_fails_the_query(
    reader: asyncpg.Connection, settings: dict[str, str], sqlstate: str
) -> None:
    for table in PERSONAL:
        with refused(sqlstate):
            await User(reader, settings).pupils(table)


async def test_a_token_outranks_what_the_session_was_told_before(reader: asyncpg.Connection, school: School) -> None:
    """In a pool a setting may be left from somebody else; what the gateway says of this request is what counts."""
    ada, _, cem = school.pupils
    settings = by_settings(student=ada, groups=(school.groups[0],))
    assert await User(reader, settings | by_token(student=cem)).pupils("school.student") == {cem}
    assert await User(reader, settings | by_token()).pupils("school.student") == set()
    assert await User(reader, {}).pupils("school.student") == set()  # and a transaction leaves nothing behind


async def test_users_write_nothing(reader: asyncpg.Connection, school: School) -> None:
    for statement in (
        "update reports.report_student_rollups set average = 1",
        "delete from school.feedback",
        "call reports.disable_row_security()",
        "alter table school.student disable row level security",
    ):
        with refused("42501"):
            await User(reader, by_settings(student=school.pupils[0])).fetch(statement)


async def test_daemons_writers_and_operators_are_not_limited(
    db: asyncpg.Connection, school: School, settings: Settings, dsn: str
) -> None:
    role = await db.fetchval("select current_database() || '_server'")
    await db.execute(f"create role {role} in role recalcd_writer, recalcd_operator")
    staff = await asyncpg.connect(dsn)
    try:
        await staff.execute(f"set session authorization {role}")
        assignment = await staff.fetchval(
            "select a.assignment_id from school.assignment as a where a.group_id = $1", school.groups[0]
        )
        for pupil in school.pupils[:2]:
            assert await staff.fetchval("select school.record_feedback($1, $2, 0)", assignment, pupil)
        async with on_duty(impatient(settings)):
            await until_empty(db)
        rows = await staff.fetch("select student_id, average from reports.report_student_rollups where average = 0")
        assert {row["student_id"] for row in rows} == set(school.pupils[:2])
        assert await staff.fetchval("select count(*) from school.student") == 3
        daemon = await asyncpg.connect(as_daemon(dsn))
        keys = await daemon.fetchval("select array(select outbox.list_keys('reports.student'))")
        assert sorted(keys) == sorted(map(str, school.pupils))
        found_drift = await daemon.fetchrow("select * from outbox.find_drift('reports.student', $1)", keys)
        assert found_drift is not None
        assert (len(found_drift["checked_keys"]), found_drift["drifted_keys"]) == (3, [])
        await close(daemon)
    finally:
        await close(staff)
        await db.execute(f"drop owned by {role}; drop role {role}")


async def test_it_is_off_unless_asked_for_and_off_again_when_told(
    db: asyncpg.Connection, reader: asyncpg.Connection
) -> None:
    secured = "select count(*) from pg_class where relrowsecurity"
    school = await found(db, pupils=2)
    assert await db.fetchval(secured) == 0
    assert await User(reader, {}).pupils("school.student") == set(school.pupils)
    for _ in range(2):  # once more is harmless
        await db.execute("call reports.enable_row_security()")
        assert await db.fetchval(secured) == len(PERSONAL)
        assert await User(reader, {}).pupils("school.student") == set()
    for _ in range(2):
        await db.execute("call reports.disable_row_security()")
        assert await db.fetchval(secured) == 0
        assert await db.fetchval("select count(*) from pg_policy") == 0
        assert await User(reader, {}).pupils("school.student") == set(school.pupils)


async def test_policies_of_the_applications_own_stay(db: asyncpg.Connection) -> None:
    await db.execute("create policy mine on school.student using (false); call reports.enable_row_security()")
    await db.execute("call reports.disable_row_security()")
    assert [row["polname"] for row in await db.fetch("select polname from pg_policy")] == ["mine"]


@pytest.mark.usefixtures("school")
async def test_migrate_goes_down_and_up_with_row_security_on(db: asyncpg.Connection) -> None:
    await migrations.down(db, lose_events=True)
    await migrations.up(db)
    assert await privileges(db) == TABLE.read_text("utf-8")
    await db.execute("call reports.enable_row_security()")
    await migrations.down(db, set_names=("reports",), to=3)
    assert await db.fetchval("select count(*) from pg_policy") == 0


async def test_claims_are_read_once_for_a_query_and_rows_found_by_their_index(
    db: asyncpg.Connection, reader: asyncpg.Connection, school: School
) -> None:
    await db.execute("set enable_seqscan = off")
    async with reader.transaction():
        await reader.execute("set local enable_seqscan = off")
        await reader.execute("select set_config('recalcd.student_id', $1, true)", str(school.pupils[0]))
        row = await reader.fetchval(
            "explain (analyze, format json, timing off, buffers off, costs off) "
            "select * from reports.report_student_rollups "
            f"where student_id = '{school.pupils[0]}' and timeframe_id = '{UUID(int=0)}'"
        )
    (plan,) = json.loads(row)
    assert plan["Plan"]["Index Name"] == "report_student_rollups_pkey"
    once, *lookups = plan["Plan"]["Plans"]
    assert (once["Parent Relationship"], once["Actual Loops"]) == ("InitPlan", 1)
    assert [each["Actual Loops"] for each in lookups] == [0] * len(lookups), "a pupil's own row asks for no group"
