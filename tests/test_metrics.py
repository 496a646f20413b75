"""The metrics: what a scrape of the real daemon says is what the database says; and without them nothing is paid."""

import signal
import socket
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from engine import (
    LEDGER,
    enqueue,
    events_of,
    failures,
    impatient,
    make_ledger,
    make_topic,
    on_duty,
    record,
    terminate,
    until_empty,
)
from process import Daemon, daemon, recovered
from prometheus_client import generate_latest
from promtool import need_promtool, promtool
from scrape import Scrape, parse, scrape, taken_port
from servers import Connect
from waiting import eventually

from daemon import __version__, measurement, telemetry
from daemon.measurement import measure
from daemon.metrics import Metrics
from daemon.settings import Settings
from daemon.status import read_status

ANY_PORT = {"RECALCD_METRICS_LISTEN": "127.0.0.1:0"}
FAIL = "raise exception 'no' using errcode = 'P0001';"


@pytest.fixture(autouse=True)
async def ledger(db: asyncpg.Connection) -> None:
    await make_ledger(db)


async def served(process: Daemon, count: int = 1) -> int:
    """Return the port that the daemon listens on for Prometheus."""
    return int((await process.until_told(telemetry.METRICS_SERVED, count=count))[-1]["port"])


# --- the real daemon ---


@pytest.mark.own_server
async def test_a_scrape_of_the_daemon_says_what_the_database_says(
    dsn: str, db: asyncpg.Connection, tmp_path: Path
) -> None:
    await make_topic(db, "halted")
    await make_topic(db, "bad", FAIL, max_attempts=1)
    await enqueue(db, "halted", "a", "b", "b")
    await db.execute("select outbox.pause_topic('halted', 'for the test')")
    await db.execute("insert into outbox.drift (topic, key) values ($1, 'lonely')", LEDGER)
    for amount in range(1, 11):
        await record(db, f"account {amount % 3}", amount)
    await enqueue(db, "bad", "poison")
    one_worker = {"RECALCD_WORKERS": "1"}  # two may both come upon the bad key
    async with daemon(dsn, tmp_path / "log", ANY_PORT | one_worker) as process:
        port = await served(process)

        async def pending() -> dict[str, float]:
            return (await scrape(port)).of_topics("recalcd_topic_pending_events")

        pending_at_start = await eventually(pending)  # long before the housekeeper counts again
        await until_empty(db, LEDGER)
        await process.until_told(telemetry.KEY_DIED)
        listening = {"state": "listening"}

        async def is_listening() -> bool:
            return (await scrape(port)).value("recalcd_listener_state", **listening) == 1

        await eventually(is_listening)
        found = await scrape(port)
    rows = await db.fetch(
        "select sum(event_count) as events, count(*) as batches, sum(cardinality(keys)) as keys, "
        "sum(cardinality(changed_keys)) as changed_keys from outbox.batch where topic = $1",
        LEDGER,
    )
    told = {name: found.of_topics(f"recalcd_{name}_total")[LEDGER] for name in dict(rows[0])}
    assert told == dict(rows[0])
    assert told["events"] == 10
    assert found.of_topics("recalcd_freshness_seconds_count")[LEDGER] == told["batches"]
    assert found.of_topics("recalcd_recalculation_seconds_count")[LEDGER] == told["batches"]
    zero = {LEDGER: 0, "halted": 0, "bad": 0, "reports.student": 0}
    assert pending_at_start == zero | {LEDGER: 10, "halted": 3, "bad": 1}
    assert found.of_topics("recalcd_topic_drifted_keys") == zero | {LEDGER: 1}
    assert found.of_topics("recalcd_topic_paused") == zero | {"halted": 1}
    assert found.of_topics("recalcd_key_failures_total") == zero | {"bad": 1}
    assert found.of_topics("recalcd_key_deaths_total") == zero | {"bad": 1}
    assert found.of_topics("recalcd_recalculation_errors_total") == zero | {"bad": 1}
    assert found.value("recalcd_build_info", version=__version__) == 1
    assert found.value("process_resident_memory_bytes") > 10_000_000


@pytest.mark.own_server
async def test_a_port_that_is_taken_stops_no_recalculation(dsn: str, db: asyncpg.Connection, tmp_path: Path) -> None:
    with taken_port() as port:
        async with daemon(dsn, tmp_path / "log", {"RECALCD_METRICS_LISTEN": f"{port}"}) as process:
            (told,) = await process.until_told(telemetry.METRICS_UNAVAILABLE)
            assert told["level"] == "error"
            assert (told["address"], told["port"]) == ("127.0.0.1", port)
            await record(db, "one")
            await recovered(db)


@pytest.mark.own_server
async def test_a_reload_moves_the_endpoint_and_goes_on_counting(
    dsn: str, db: asyncpg.Connection, tmp_path: Path
) -> None:
    file = tmp_path / "recalcd.env"
    file.write_text("RECALCD_METRICS_LISTEN=127.0.0.1:0\n")
    async with daemon(dsn, tmp_path / "log", {"RECALCD_ENV_FILE": str(file)}) as process:
        first = await served(process)
        await record(db, "one")
        await recovered(db)
        file.write_text("RECALCD_METRICS_LISTEN=0\n" * 2 + "RECALCD_METRICS_LISTEN=[::1]:0\n" * socket.has_ipv6)
        process.process.send_signal(signal.SIGHUP)
        second = await served(process, count=2)
        await record(db, "two")
        await recovered(db)

        async def has_counted() -> bool:
            return (await scrape(second, "[::1]")).of_topics("recalcd_events_total").get(LEDGER) == 2

        await eventually(has_counted)
        with pytest.raises(OSError, match="refused"):
            await scrape(first)
        file.write_text("")
        process.process.send_signal(signal.SIGHUP)
        await process.until_told(telemetry.SETTINGS_RELOADED, count=2)
        with pytest.raises(OSError, match="refused"):
            await scrape(second, "[::1]")


@pytest.mark.own_server
async def test_promtool_finds_nothing_to_improve(dsn: str, tmp_path: Path) -> None:
    need_promtool()
    async with daemon(dsn, tmp_path / "log", ANY_PORT) as process:
        found = await scrape(await served(process))
    ours = "\n".join(line for line in found.text.splitlines() if "recalcd_" in line) + "\n"
    assert promtool("check", "metrics", given=ours) == (0, "")


# --- what is read of the database ---


async def told_by(metrics: Metrics) -> Scrape:
    return parse(generate_latest(metrics.registry).decode())


async def test_the_gauges_agree_with_status(db: asyncpg.Connection) -> None:
    await make_topic(db, "t", max_attempts=1)
    await enqueue(db, "t", "failing", "b", "b")
    await db.execute(
        "update outbox.event set enqueued_at = clock_timestamp() - interval '1 hour' where key = 'failing'"
    )
    await db.execute("update outbox.event set enqueued_at = clock_timestamp() - interval '5 minutes' where key = 'b'")
    await db.execute("""
        insert into outbox.failure (topic, key, state, attempts, event_count, next_attempt_at, sqlstate, message)
        values ('t', 'failing', 'retrying', 1, 1, clock_timestamp() + interval '1 hour', 'P0001', 'no'),
               ('t', 'gone', 'dead', 1, 1, clock_timestamp(), 'P0001', 'no')
    """)
    metrics = Metrics()
    await metrics.read(db)
    found, status = await told_by(metrics), {each.topic: each for each in (await read_status(db)).topics}
    for name in ("pending_events", "retrying_keys", "dead_keys"):
        assert found.of_topics(f"recalcd_topic_{name}") == {
            topic: getattr(each, name) for topic, each in status.items()
        }
    oldest = found.of_topics("recalcd_topic_oldest_claimable_seconds")
    assert oldest[LEDGER] == 0
    assert oldest["t"] == pytest.approx(status["t"].oldest_claimable_s, abs=30)
    assert oldest["t"] == pytest.approx(300, abs=60)  # not the hour of the key in backoff
    assert found.value("recalcd_measured_timestamp_seconds") == pytest.approx(time.time(), abs=60)
    assert 0 <= found.value("recalcd_notify_queue_usage_ratio") < 1


async def test_what_is_counted_has_a_bound(db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "MOST_COUNTED", 2)
    await enqueue(db, LEDGER, "a", "b", "c")
    found = {each.topic: each.pending_events for each in (await measure(db)).topics}
    assert found == {LEDGER: 2, "reports.student": 0}


async def test_the_age_of_the_horizon_is_that_of_whoever_holds_it(db: asyncpg.Connection, connect: Connect) -> None:
    holder = await connect()
    async with holder.transaction(isolation="repeatable_read"):
        began = await holder.fetchval("select now()")
        metrics = Metrics()
        await metrics.read(db)
    found = await told_by(metrics)
    assert found.value("recalcd_horizon_age_seconds") >= 0
    assert found.value("recalcd_horizon_age_seconds") <= (datetime.now(UTC) - began).total_seconds() + 1


async def test_a_measurement_that_takes_too_long_ends_nothing(
    db: asyncpg.Connection, settings: Settings, connect: Connect, monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    monkeypatch.setattr(measurement, "TIMEOUT_MS", 50)
    blocker, metrics = await connect(), Metrics()
    await metrics.read(db)
    before = metrics.measurement
    async with blocker.transaction():
        await blocker.execute("lock table outbox.drift in access exclusive mode")  # no worker needs it to claim
        await metrics.read(db)
        assert metrics.measurement is before
        async with on_duty(impatient(settings), metrics=metrics):  # starts all the same
            pass
    told = events_of(logged, telemetry.METRICS_FAILED)
    assert {each["sqlstate"] for each in told} == {"57014"}


async def test_a_topic_that_is_removed_is_no_longer_told(db: asyncpg.Connection) -> None:
    await make_topic(db, "t")
    metrics = Metrics()
    await metrics.read(db)
    assert set((await told_by(metrics)).of_topics("recalcd_topic_dead_keys")) == {LEDGER, "t", "reports.student"}
    await db.execute("select outbox.remove_topic('t', true)")
    await metrics.read(db)
    assert set((await told_by(metrics)).of_topics("recalcd_topic_dead_keys")) == {LEDGER, "reports.student"}


# --- what a daemon counts ---


@pytest.fixture
async def metrics(settings: Settings) -> AsyncIterator[Metrics]:
    """Run a daemon in this process, with metrics and everything that feeds them."""
    metrics = Metrics()
    telemetry.configure(settings.model_copy(update={"log_level": "error"}), metrics)
    async with on_duty(impatient(settings, workers=1), metrics=metrics):  # two may both do the good keys of a bad batch
        yield metrics
    telemetry.configure(settings)


async def test_freshness_is_from_the_write_to_the_commit(db: asyncpg.Connection, metrics: Metrics) -> None:
    await make_topic(db, "slow", "perform pg_sleep(0.3);")
    await db.execute("""
        insert into outbox.event (topic, key, enqueued_at)
        values ('slow', 'k', clock_timestamp() - interval '20 seconds'), ('slow', 'k', clock_timestamp())
    """)
    await db.execute("select outbox.ring('slow')")
    await until_empty(db, "slow")

    async def told() -> float:
        return float((await told_by(metrics)).of_topics("recalcd_freshness_seconds_sum").get("slow", 0))

    assert 20.3 <= await eventually(told) < 50
    found = await told_by(metrics)
    assert found.of_topics("recalcd_freshness_seconds_count")["slow"] == 1  # one batch, its oldest event
    assert 0.3 <= found.of_topics("recalcd_recalculation_seconds_sum")["slow"] < 30


async def test_a_lost_listener_is_told_and_so_is_its_return(
    db: asyncpg.Connection, connect: Connect, metrics: Metrics
) -> None:
    def is_in(state: str) -> Any:
        async def is_it() -> bool:
            return (await told_by(metrics)).value("recalcd_listener_state", state=state) == 1

        return is_it

    await eventually(is_in("listening"))
    elsewhere, name = await connect(database="postgres"), await db.fetchval("select current_database()")
    await elsewhere.execute(f"alter database {name} allow_connections false")
    await terminate(db, "recalcd listener")
    await eventually(is_in("degraded"))
    assert (await told_by(metrics)).value("recalcd_listener_state", state="listening") == 0
    await elsewhere.execute(f"alter database {name} allow_connections true")
    await eventually(is_in("listening"))


async def test_without_a_listener_its_state_is_off(settings: Settings) -> None:
    metrics = Metrics()
    async with on_duty(impatient(settings, wake="poll"), metrics=metrics):
        assert (await told_by(metrics)).value("recalcd_listener_state", state="off") == 1


async def test_good_keys_of_a_bad_batch_count_and_the_bad_one_too(db: asyncpg.Connection, metrics: Metrics) -> None:
    await make_topic(db, "mixed", "if 'bad' = any (p_keys) then raise exception 'no'; end if;", max_attempts=2)
    await enqueue(db, "mixed", "a", "b", "c", "bad")

    async def is_failed() -> bool:
        return set(await failures(db)) == {"bad"}

    await eventually(is_failed)
    await until_empty(db, "mixed")

    async def told() -> bool:
        found = await told_by(metrics)
        return found.of_topics("recalcd_keys_total").get("mixed") == 3

    await eventually(told)
    found = await told_by(metrics)
    assert found.of_topics("recalcd_events_total")["mixed"] == 3
    assert found.of_topics("recalcd_key_failures_total")["mixed"] == 1
    assert found.of_topics("recalcd_key_deaths_total")["mixed"] == 0
    assert found.of_topics("recalcd_recalculation_errors_total")["mixed"] >= 2  # whole, in halves, alone


async def test_no_label_holds_a_key_and_every_help_text_says_how_to_aggregate(
    db: asyncpg.Connection, metrics: Metrics
) -> None:
    await record(db, "SECRET-KEY")
    await until_empty(db)
    found = await told_by(metrics)
    assert "SECRET-KEY" not in found.text
    ours = [each for each in found.samples if each.name.startswith("recalcd_")]
    assert {label for each in ours for label in each.labels} <= {"topic", "state", "version", "le"}
    for name, family in found.families.items():
        assert family.documentation
        is_of_all = name.startswith(("recalcd_topic_", "recalcd_horizon_", "recalcd_notify_", "recalcd_outbox_"))
        assert ("use max(), not sum()" in family.documentation) == is_of_all, name
