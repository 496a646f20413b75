"""tail: every batch is shown once, as it commits."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import asyncpg
import pytest
from engine import LEDGER, drain, enqueue, make_ledger, make_topic, record
from servers import Connect
from typed import Recalcd, recalcd_on

from daemon.batch import Recalculation, prepare_history
from daemon.render_tail import line_text
from daemon.tail import Line, Tail

KEPT = Recalculation(None, "live", keep_history=True)


@pytest.fixture
def recalcd(dsn: str) -> Recalcd:
    return recalcd_on(dsn)


@pytest.fixture
async def ledger(db: asyncpg.Connection) -> asyncpg.Connection:
    await make_ledger(db)
    await prepare_history(db, days_ahead=1)
    return db


async def batch_of(db: asyncpg.Connection, *accounts: str) -> None:
    for account in accounts:
        await record(db, account)
    await drain(db, KEPT)


async def next_of(lines: AsyncIterator[Line]) -> Line:
    async with asyncio.timeout(10):
        return await anext(lines)


async def test_the_last_batches_come_first_then_each_as_it_commits(
    ledger: asyncpg.Connection, connect: Connect
) -> None:
    for account in "abc":
        await batch_of(ledger, account)
    following = Tail(await connect())
    last = await following.last(2)
    assert [(line.topic, line.kind, line.key_count, line.event_count) for line in last] == [(LEDGER, "live", 1, 1)] * 2
    assert last[0].finished_at < last[1].finished_at

    lines = following.follow()
    coming = asyncio.create_task(next_of(lines))
    await batch_of(ledger, "a", "b", "b")
    line = await coming
    assert (line.key_count, line.changed_count, line.event_count) == (2, 2, 3)
    assert line.reasons == ["entry.recorded"]
    assert line.batch_id not in {each.batch_id for each in last}

    await enqueue(ledger, LEDGER, "a")  # changes nothing, so nobody rings
    await drain(ledger, KEPT)
    assert (await next_of(lines)).changed_count == 0


async def test_a_batch_that_commits_late_is_not_lost(ledger: asyncpg.Connection, connect: Connect) -> None:
    late = await connect()
    await record(ledger, "late")
    transaction = late.transaction(isolation="read_committed")
    await transaction.start()
    started_at = await late.fetchval("select started_at from outbox.claim_keys($1, '{late}')", LEDGER)
    settle = "select outbox.settle($1, '{late}', '{late}', 1, null, '{}', $2, 1, null, 'live', true)"
    await late.execute(settle, LEDGER, started_at)
    following = Tail(ledger)
    assert await following.last(5) == []
    await batch_of(await connect(), "early")
    lines = following.follow()
    first = await next_of(lines)
    await transaction.commit()
    second = await next_of(lines)
    assert second.finished_at < first.finished_at


async def test_a_topic_and_a_key_choose(ledger: asyncpg.Connection) -> None:
    await make_topic(ledger, "other")
    await batch_of(ledger, "a")
    await batch_of(ledger, "b")
    await enqueue(ledger, "other", "a")
    await drain(ledger, KEPT)
    assert [line.topic for line in await Tail(ledger, topic="other").last(9)] == ["other"]
    assert [line.topic for line in await Tail(ledger, key="a").last(9)] == [LEDGER, "other"]
    assert await Tail(ledger, key="nobody").last(9) == []
    assert await Tail(ledger).last(0) == []


def test_a_line_says_what_happened(line: Line) -> None:
    assert line_text(line) == (
        "12:03:04.120  reports.student  live        12 keys    8 changed     40 events  fresh after   35 ms"
        "  took   12 ms  feedback.recorded"
    )


@pytest.fixture
def line() -> Line:
    return Line(
        1, "reports.student", "live", 12, 8, 40, ["feedback.recorded"], 12.0,
        datetime(2026, 1, 1, 12, 3, 4, 120_000, UTC), 0.035,
    )  # fmt: skip


async def test_the_command_prints_json_lines_until_interrupted(ledger: asyncpg.Connection, dsn: str) -> None:
    await batch_of(ledger, "a")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cli", "tail", "--json",
        env=os.environ | {"RECALCD_DATABASE_URL": dsn}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout
    async with asyncio.timeout(30):
        first = json.loads(await process.stdout.readline())
        await batch_of(ledger, "b", "c")
        second = json.loads(await process.stdout.readline())
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
    assert set(first) == set(Line.__dataclass_fields__)
    assert (first["key_count"], second["key_count"]) == (1, 2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--topic", "nobody"), "no topic 'nobody'"),
        (("-n", "-1"), "not in the range"),
        (("--key",), "requires an argument"),
    ],
)
@pytest.mark.usefixtures("dsn")
async def test_bad_input_is_refused(recalcd: Recalcd, arguments: list[str], said: str) -> None:
    answer = await recalcd("tail", *arguments)
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert said in answer.stderr


async def test_without_a_history_there_is_nothing_to_show(recalcd: Recalcd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECALCD_HISTORY_DAYS", "0")
    answer = await recalcd("tail")
    assert answer.exit_code == 2
    assert "RECALCD_HISTORY_DAYS" in answer.stderr
