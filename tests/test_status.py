"""recalcd status: the verdict in words, what makes it bad news, and the keys of its JSON."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from datetime import UTC, datetime
from uuid import uuid4

import asyncpg
import pytest
from engine import enqueue, impatient, make_ledger, make_topic, on_duty, until_empty
from servers import Connect
from typed import Recalcd, recalcd_on

from daemon.batch import prepare_history
from daemon.settings import Settings
from daemon.status import Status, read_status
from daemon.threats import Pin, Server, Thresholds

STRICT = Thresholds(horizon_s=0.0)


@pytest.fixture
def recalcd(dsn: str) -> Recalcd:
    return recalcd_on(dsn)


@pytest.fixture
async def works(db: asyncpg.Connection) -> str:
    await make_ledger(db)
    await make_topic(db, "works")
    await prepare_history(db, days_ahead=1)
    return "works"


def topic_of(status: Status, name: str) -> dict[str, object]:
    return next(asdict(each) for each in status.topics if each.topic == name)


async def age(db: asyncpg.Connection, seconds: int) -> None:
    """Make all events older."""
    await db.execute("update outbox.event set enqueued_at = enqueued_at - make_interval(secs => $1)", seconds)


async def test_healthy(recalcd: Recalcd, db: asyncpg.Connection, settings: Settings, works: str) -> None:
    async with on_duty(impatient(settings)):
        await enqueue(db, works, "a", "a", "b")
        await until_empty(db)
        told = await recalcd("status")
        as_json = json.loads((await recalcd("status", "--json")).stdout)
    assert told.exit_code == 0
    assert told.stdout.startswith("healthy: nothing is late")
    assert as_json["healthy"] is True
    (daemon,) = as_json["daemons"]
    assert (daemon["is_running"], daemon["key_count"]) == (True, 2)
    (topic,) = [each for each in as_json["topics"] if each["topic"] == works]
    assert (topic["event_count"], topic["events_per_recalculation"]) == (3, 1.5)
    assert 0 < topic["freshness_p50_s"] <= topic["freshness_p95_s"] <= topic["freshness_p99_s"]


async def test_the_keys_of_the_json_are_those_that_are_documented(db: asyncpg.Connection, works: str) -> None:
    await enqueue(db, works, "a")
    await db.execute("insert into outbox.daemon values ($1, 'h', 1, '1', 'idle', 1, now())", uuid4())
    status = (await read_status(db)).as_json()
    assert set(status) == {"healthy", "verdict", "problems", "topics", "daemons", "server", "drift", "limits"}
    assert set(status["topics"][0]) == {
        "topic", "is_registered", "paused_at", "paused_reason", "pending_events", "pending_keys", "oldest_s",
        "oldest_claimable_s", "retrying_keys", "dead_keys", "event_count", "key_count", "freshness_p50_s",
        "freshness_p95_s", "freshness_p99_s", "events_per_recalculation",
    }  # fmt: skip
    assert set(status["daemons"][0]) == {
        "daemon_id", "host", "pid", "version", "state", "started_at", "seen_s", "batch_count", "key_count",
        "last_batch_s", "is_running",
    }  # fmt: skip
    assert set(status["server"]) == {
        "pins", "notify_queue_usage", "dead_rows", "live_rows", "vacuumed_at", "outbox_bytes",
    }  # fmt: skip


async def test_no_daemon_is_the_first_thing_to_say(recalcd: Recalcd, db: asyncpg.Connection, works: str) -> None:
    await enqueue(db, works, "a")
    await age(db, 100)
    told = await recalcd("status")
    assert told.exit_code == 1
    lines = told.stdout.splitlines()
    assert lines[0] == "NOT HEALTHY: no daemon is running: start one with `recalcd run`; and 1 more"
    assert lines[2].startswith("  - works: reports are late, the oldest event has waited 100 s")


async def test_thresholds_can_be_set(recalcd: Recalcd, db: asyncpg.Connection, works: str) -> None:
    await enqueue(db, works, "a")
    await age(db, 100)
    assert "late" not in (await recalcd("status", "--late-s", "200")).stdout
    defaults = json.loads((await recalcd("status", "--json")).stdout)["limits"]
    assert defaults == asdict(Thresholds())
    given = ("--late-s=1", "--unseen-s=2", "--dead-keys=3", "--horizon-s=4", "--horizon-xids=5", "--notify-queue=0.6")
    told = await recalcd("status", "--json", *given, "--dead-rows=7")
    assert list(json.loads(told.stdout)["limits"].values()) == [1, 2, 3, 4, 5, 0.6, 7]


@pytest.mark.parametrize(
    "option", ["--late-s=-1", "--notify-queue=2", "--dead-rows=many", "--watch=0", "--horizon-s=5min"]
)
async def test_what_cannot_be_meant_is_a_usage_error(recalcd: Recalcd, option: str) -> None:
    told = await recalcd("status", option)
    assert (told.exit_code, told.stdout) == (2, "")
    assert option.partition("=")[0] in told.stderr


async def test_events_of_keys_in_backoff_are_not_late(db: asyncpg.Connection, works: str) -> None:
    await db.execute("select outbox.fail_key($1, 'a', true, 1, 'P0001', 'no', null, null, null)", works)
    await enqueue(db, works, "a")
    await age(db, 100)
    status = await read_status(db)
    topic = topic_of(status, works)
    assert (topic["pending_events"], topic["oldest_claimable_s"], topic["retrying_keys"]) == (1, None, 1)
    assert isinstance(topic["oldest_s"], float)
    assert not [each for each in status.problems if "late" in each]

    await db.execute("update outbox.failure set next_attempt_at = clock_timestamp()")
    assert [each for each in (await read_status(db)).problems if "late" in each]


async def test_dead_keys(db: asyncpg.Connection, works: str) -> None:
    await db.execute("select outbox.set_topic($1, p_max_attempts => 1)", works)
    await db.execute("select outbox.fail_key($1, 'a', true, 1, 'P0001', 'no', null, null, null)", works)
    assert "works: 1 dead keys wait for an operator (recalcd failures list works)" in (await read_status(db)).problems
    assert len((await read_status(db, Thresholds(dead_keys=1))).problems) == 1  # no daemon


async def test_a_paused_topic_is_shown_and_not_late(recalcd: Recalcd, db: asyncpg.Connection, works: str) -> None:
    await enqueue(db, works, "a")
    await age(db, 100)
    await db.execute("select outbox.pause_topic($1, 'exams')", works)
    told = (await recalcd("status")).stdout
    assert "works (paused)" in told
    assert "UTC: exams" in told
    assert "late" not in told
    await db.execute("insert into outbox.daemon values ($1, 'h', 1, '1', 'idle', 1, now())", uuid4())
    assert (await recalcd("status")).stdout.splitlines()[0].endswith("; paused: works")


async def test_events_of_a_topic_that_nobody_registered(db: asyncpg.Connection) -> None:
    await db.execute("insert into outbox.event (topic, key) values ('lost', 'a')")
    assert "lost: nobody registered this topic, so its 1 events wait for ever" in (await read_status(db)).problems


@pytest.mark.parametrize(
    ("state", "unseen_s", "says"),
    [
        ("stopped", 0, "no daemon is running"),
        ("vanished", 0, "no daemon is running"),
        ("idle", 31, "no daemon is running"),
        ("degraded", 0, "the daemon 7 on h gets no notifications and polls instead"),
    ],
)
async def test_daemons_in_trouble(db: asyncpg.Connection, state: str, unseen_s: int, says: str) -> None:
    await db.execute(
        "insert into outbox.daemon (daemon_id, host, pid, version, state, backend_pid, backend_started_at, seen_at)"
        " values ($1, 'h', 7, '1', $2, 1, now(), clock_timestamp() - make_interval(secs => $3))",
        uuid4(),
        state,
        unseen_s,
    )
    (problem,) = (await read_status(db)).problems
    assert problem.startswith(says)


async def test_a_session_that_pins_the_horizon_is_named(db: asyncpg.Connection, connect: Connect) -> None:
    forgotten = await connect("psql of somebody")
    async with forgotten.transaction(isolation="repeatable_read"):
        await forgotten.fetchval("select count(*) from outbox.event")
        status = await read_status(db, STRICT)
    (pin,) = [each for each in status.server.pins if each.pid == forgotten.get_server_pid()]
    assert (pin.kind, pin.name, pin.state) == ("session", "psql of somebody", "idle in transaction")
    assert [each for each in status.problems if f"session {pin.pid} of" in each and "holds the horizon" in each]
    assert f"pg_terminate_backend({pin.pid})" in pin.remedy
    assert not [each for each in (await read_status(db)).problems if "horizon" in each]


async def test_a_writer_that_forgot_to_commit_pins_it_too(db: asyncpg.Connection, connect: Connect) -> None:
    """At read committed it holds no snapshot between two statements, but its transaction id does."""
    writer = await connect("forgetful")
    async with writer.transaction():
        await enqueue(writer, "reports.student", "a")
        assert "forgetful" in [each.name for each in (await read_status(db)).server.pins]


async def test_a_prepared_transaction_that_pins_it(db: asyncpg.Connection) -> None:
    await db.execute("begin; insert into outbox.event (topic, key) values ('t', 'k'); prepare transaction 'lost one'")
    try:
        pins = (await read_status(db, STRICT)).server
        assert [each for each in pins.problems(STRICT) if "the prepared transaction lost one of" in each]
    finally:
        await db.execute("rollback prepared 'lost one'")


def server(*pins: Pin, **update: object) -> Server:
    healthy = Server(list(pins), 0.0, dead_rows=0, live_rows=0, vacuumed_at=None, outbox_bytes=0)
    return replace(healthy, **update)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "says", "remedy"),
    [
        ("slot", "the replication slot old (inactive)", "pg_drop_replication_slot('old')"),
        ("standby", "the standby old (backend 7, hot_standby_feedback)", "hot_standby_feedback off"),
        ("prepared", "the prepared transaction old of bob", "rollback prepared 'old'"),
    ],
)
def test_what_does_not_say_since_when_is_judged_by_transactions(kind: str, says: str, remedy: str) -> None:
    pin = Pin(kind, "old", 7, "bob", "inactive", None, 2_000_000)  # type: ignore[arg-type]
    assert server(pin).problems(Thresholds()) == [
        f"{says} holds the horizon since 2,000,000 transactions: deleted events can't be vacuumed"
    ]
    assert remedy in pin.remedy
    assert server(replace(pin, age_xids=999_999)).problems(Thresholds()) == []


def test_a_full_queue_and_vacuum_left_behind() -> None:
    noon = datetime(2026, 1, 2, 12, tzinfo=UTC)
    assert server(notify_queue_usage=0.3).problems(Thresholds()) == [
        "the NOTIFY queue is 30% full: a session listens, but sits in a transaction"
    ]
    (never,) = server(dead_rows=200_000).problems(Thresholds())
    assert never == "autovacuum falls behind on outbox.event: 200,000 dead rows, never vacuumed"
    (last,) = server(dead_rows=300_000, vacuumed_at=noon).problems(Thresholds())
    assert last.endswith("last vacuumed 2026-01-02 12:00:00 UTC")


async def test_watch_goes_on_until_ctrl_c(dsn: str) -> None:
    with subprocess.Popen(  # noqa: ASYNC220  # starts at once; what takes long is waited for in a thread
        [sys.executable, "-m", "cli", "status", "--watch", "0.1", "--json"],
        env=os.environ | {"RECALCD_DATABASE_URL": dsn},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watch:
        assert watch.stdout is not None
        looks = [json.loads(await asyncio.to_thread(watch.stdout.readline)) for _ in range(3)]
        watch.send_signal(signal.SIGINT)
        _, stderr = await asyncio.to_thread(watch.communicate, timeout=30)
    assert [each["healthy"] for each in looks] == [False] * 3
    assert (watch.returncode, stderr.strip()) == (130, "")
