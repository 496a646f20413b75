"""verify: finds every row that is not true, says what differs, and is never deceived by lag."""

import asyncio
import json
import random

import asyncpg
import pytest
from engine import LEDGER, drain, enqueue, make_ledger, make_topic, on_duty, record
from school import ALL, School, found
from servers import Connect
from typed import Recalcd, recalcd_on

from daemon.difference import ABSENT, Difference, differences
from daemon.drift import known_drift
from daemon.keys import find_topic
from daemon.settings import Settings
from daemon.verify import Verdict, Verifier

STUDENT = "reports.student"


@pytest.fixture
def recalcd(dsn: str) -> Recalcd:
    return recalcd_on(dsn)


async def verify(db: asyncpg.Connection, topic: str = STUDENT, *, repair: bool = False) -> Verdict:
    return await Verifier(db, await find_topic(db, topic), repair).run()


async def school_with_feedback(db: asyncpg.Connection, pupils: int) -> School:
    school = await found(db, pupils=pupils)
    assignment = await school.assign()
    for pupil in school.pupils:
        await school.record_feedback(assignment, pupil, 0.5)
    await school.settle()
    return school


async def test_every_one_of_a_hundred_rows_tampered_with_is_found_and_mended(db: asyncpg.Connection) -> None:
    school = await school_with_feedback(db, 120)
    chance = random.Random(1)
    victims = sorted(str(pupil) for pupil in chance.sample(school.pupils, 100))
    tampering = [
        "update reports.report_student_rollups set average = 0.9 where student_id = $1 and timeframe_id = $2",
        "update reports.report_student_unit_rollups set feedback_count = 7 where student_id = $1 and timeframe_id = $2",
        "update reports.report_student_rollups set subjects = '{}' where student_id = $1 and timeframe_id = $2",
        "delete from reports.report_student_rollups where student_id = $1 and timeframe_id = $2",
        "update reports.report_student_unit_rollups set unit_id = $2 where student_id = $1 and timeframe_id = $2",
    ]
    for number, victim in enumerate(victims):
        assert await db.execute(tampering[number % len(tampering)], victim, ALL) in ("UPDATE 1", "DELETE 1")

    verdict = await verify(db)
    assert (sorted(verdict.drifted), verdict.checked_count) == (victims, 120)
    assert all(verdict.differences[victim] for victim in victims)
    (status,) = await known_drift(db)
    assert status.drifted_keys == 100

    verdict = await verify(db, repair=True)
    assert sorted(verdict.repaired) == victims
    assert (await verify(db)).is_good
    (status,) = await known_drift(db)
    assert (status.drifted_keys, status.problems()) == (0, [])


async def test_what_differs_is_told_column_by_column(db: asyncpg.Connection) -> None:
    school = await school_with_feedback(db, 1)
    (key,) = map(str, school.pupils)
    await db.execute(
        "update reports.report_student_rollups set average = 0.9, subjects = jsonb_set(subjects, "
        "'{Mathematics,working_level}', '3')"
    )
    await db.execute("delete from reports.report_student_unit_rollups")

    found_differences = (await verify(db)).differences[key]
    rows = {each.path[0]: each for each in found_differences if each.kind == "missing"}
    assert list(rows) == ["report_student_unit_rollups"]
    columns = {each.path[2:]: (each.cached, each.true) for each in found_differences if each.kind == "differs"}
    assert {path: (str(cached), str(true)) for path, (cached, true) in columns.items()} == {
        ("average",): ("0.9000", "0.5000"),
        ("subjects", "Mathematics", "working_level"): ("3", "1"),
    }


async def test_a_topic_that_cannot_describe_its_rows_still_has_its_drift_found(db: asyncpg.Connection) -> None:
    await make_ledger(db)
    await record(db, "a", 5)
    await db.execute("delete from outbox.event")
    verdict = await Verifier(db, await find_topic(db, LEDGER)).run(["a", "b"])
    assert (verdict.drifted, verdict.differences, verdict.checked_count) == (["a"], {}, 2)
    assert await db.fetchval("select count(*) from ledger.balance") == 0


async def test_ones_own_describe_function_is_shown(db: asyncpg.Connection) -> None:
    await make_ledger(db)
    await db.execute("""
        create function ledger.describe(p_key text) returns jsonb language sql stable as $$
            select to_jsonb(b) - 'account' from ledger.balance as b where b.account = p_key
        $$;
        select outbox.set_topic('ledger.account', p_describe => 'ledger.describe');
        insert into ledger.balance values ('a', 7, 1), ('b', 7, 1);
        insert into ledger.entry (account, amount) values ('a', 5), ('c', 1);
    """)
    verdict = await Verifier(db, await find_topic(db, LEDGER)).run(["a", "b", "c"])
    assert verdict.differences == {
        "a": [Difference(("amount",), 7, 5)],
        "b": [Difference((), {"amount": 7, "entry_count": 1}, ABSENT)],
        "c": [Difference((), ABSENT, {"amount": 1, "entry_count": 1})],
    }
    assert [each.kind for each in (*verdict.differences["b"], *verdict.differences["c"])] == ["stale", "missing"]


def test_numbers_are_compared_as_numbers_and_null_is_no_absence() -> None:
    assert differences('{"a": 0.50, "b": 1}', '{"a": 0.5, "b": 1.0}') == []
    (only,) = differences('{"a": null}', '{"a": 0.1}')
    assert only.kind == "differs"


async def test_a_key_whose_event_waits_is_late_and_not_drifted(db: asyncpg.Connection) -> None:
    await make_ledger(db)
    await record(db, "a")
    verdict = await Verifier(db, await find_topic(db, LEDGER)).run(["a"])
    assert (verdict.drifted, verdict.checked_count, verdict.is_good) == ([], 1, True)


async def test_a_key_that_somebody_works_on_is_waited_for_and_then_judged(
    db: asyncpg.Connection, connect: Connect
) -> None:
    await make_ledger(db)
    other = await connect()
    transaction = other.transaction()
    await transaction.start()
    await other.execute("select outbox.lock_keys($1, '{a}')", LEDGER)
    topic = await find_topic(db, LEDGER)
    verifier = Verifier(db, topic)
    assert await verifier.check(["a", "b"]) == ["a"]
    verifying = asyncio.create_task(verifier.run(["a"]))
    await transaction.rollback()
    assert (await verifying).left_out == []


async def test_a_key_that_owes_a_failed_recalculation_is_not_judged(db: asyncpg.Connection) -> None:
    await make_ledger(db)
    await make_topic(db, "poison", "if 'bad' = any (p_keys) then raise 'no'; end if; p_changed_keys := '{}';")
    await db.execute(
        "insert into outbox.failure (topic, key, state, attempts, event_count, next_attempt_at, sqlstate, message) "
        "values ('poison', 'owed', 'retrying', 1, 1, clock_timestamp(), 'P0001', 'no')"
    )
    verifier = Verifier(db, await find_topic(db, "poison"))
    assert await verifier.check(["bad", "good", "owed"]) == ["owed"]
    assert (verifier.verdict.checked_count, list(verifier.verdict.failed)) == (1, ["bad"])


async def test_a_recalculation_by_event_takes_a_key_off_the_list(db: asyncpg.Connection) -> None:
    await make_ledger(db)
    await db.execute("insert into ledger.entry (account, amount) values ('a', 5)")
    topic = await find_topic(db, LEDGER)
    await Verifier(db, topic).run(["a"])
    assert await db.fetchval("select count(*) from outbox.drift") == 1
    await enqueue(db, LEDGER, "a")
    await drain(db)
    assert await db.fetchval("select count(*) from outbox.drift") == 0


async def test_no_false_drift_beside_live_writes(db: asyncpg.Connection, connect: Connect, settings: Settings) -> None:
    """The issue asks for 60 s of 200 writes/s; that was run by hand, five seconds of it are for every day."""
    school = await school_with_feedback(db, 40)
    assignments = [await school.assign(level=level) for level in (1, 2, 3)]
    await school.settle()
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + 5
    writes = 0

    async def write(seed: int) -> None:
        nonlocal writes
        chance, own, due_at = random.Random(seed), School(await connect()), loop.time()
        while loop.time() < ends_at:
            await own.record_feedback(chance.choice(assignments), chance.choice(school.pupils), chance.random())
            writes += 1
            due_at += 0.01
            await asyncio.sleep(max(0, due_at - loop.time()))

    async with on_duty(settings), asyncio.TaskGroup() as writers:
        for seed in range(2):
            writers.create_task(write(seed))
        verifier, rounds = await connect(), 0
        while loop.time() < ends_at:
            verdict = await verify(verifier)
            assert (verdict.drifted, verdict.failed) == ([], {})
            rounds += 1
    assert writes > 200
    assert rounds > 2


async def test_the_command_shows_repairs_and_exits_1(db: asyncpg.Connection, recalcd: Recalcd) -> None:
    school = await school_with_feedback(db, 3)
    key = str(school.pupils[1])
    await db.execute("update reports.report_student_rollups set average = 0.9 where student_id = $1", key)

    shown = await recalcd("verify")
    assert shown.exit_code == 1
    assert shown.stdout.splitlines() == [
        "checked 3 keys: 1 drifted",
        f"  drifted: {key}",
        f"    report_student_rollups / {ALL}",
        "      average: cached 0.9000, true 0.5000",
    ]
    answer = json.loads((await recalcd("verify", "--json", "--repair")).stdout)
    assert (answer["drifted"], answer["repaired"]) == ([key], [key])
    (difference,) = answer["differences"][key]
    assert (difference["cached"], difference["true"]) == (0.9, 0.5)
    assert set(answer) == {"checked_count", "drifted", "differences", "missed", "repaired", "failed", "left_out"}
    assert (await recalcd("verify")).stdout == "checked 3 keys: 0 drifted\n"


async def test_a_cohort_a_sample_and_named_keys_are_parts(db: asyncpg.Connection, recalcd: Recalcd) -> None:
    school = await school_with_feedback(db, 4)
    await school.move_cohort(school.pupils[0], school.cohorts[1])
    await school.settle()
    for arguments, count in {
        ("--cohort", "Cohort 0"): 3,
        ("--cohort", str(school.cohorts[1])): 1,
        ("--cohort", "Cohort 0", "--sample", "2"): 2,
        ("--sample", "99"): 4,
        ("--key", str(school.pupils[0])): 1,
    }.items():
        answer = await recalcd("verify", *arguments)
        assert (answer.exit_code, answer.stdout) == (0, f"checked {count} keys: 0 drifted\n"), arguments
    await school.add_cohort("Nobody")
    assert (await recalcd("verify", "--cohort", "Nobody")).stdout == "checked 0 keys: 0 drifted\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--topic", "nobody"), "no topic 'nobody'"),
        (("--cohort", "7Z"), "no cohort '7Z'"),
        (("--key", str(ALL), "--cohort", "7A"), "not both"),
        (("--key", str(ALL)), "no key"),
        (("--sample", "0"), "0 is not in the range"),
        (("--sample", "many"), "not a valid integer"),
    ],
)
@pytest.mark.usefixtures("db")
async def test_bad_input_is_refused(recalcd: Recalcd, arguments: list[str], said: str) -> None:
    answer = await recalcd("verify", *arguments)
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert said in answer.stderr


async def test_a_topic_whose_procedure_does_not_say_what_changed_is_refused(
    db: asyncpg.Connection, recalcd: Recalcd
) -> None:
    await db.execute("""
        create procedure public.silent(in p_keys text[]) language plpgsql as $$ begin end $$;
        select outbox.set_topic('silent', 'public.silent');
    """)
    answer = await recalcd("verify", "--topic", "silent", "--key", "a")
    assert answer.exit_code == 2
    assert "does not say which keys it changed" in answer.stderr
