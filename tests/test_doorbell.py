"""What wakes a daemon: the armed bell, the poll behind it, and the listener's connection."""

import asyncio
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from engine import (
    GATE,
    asleep,
    done,
    enqueue,
    events_of,
    failures,
    impatient,
    make_ledger,
    make_topic,
    numbered,
    on_duty,
    sessions,
    terminate,
    until_empty,
)
from servers import Connect, Rings
from waiting import eventually, wait_until_blocked

import daemon.doorbell
from daemon import telemetry
from daemon.doorbell import Activity, Alarm, Doorbell
from daemon.errors import DatabaseUnavailable
from daemon.hints import Hints
from daemon.settings import Settings

LISTENER = "recalcd listener"


@pytest.fixture(autouse=True)
async def topic(db: asyncpg.Connection) -> None:
    await make_ledger(db)
    await make_topic(db, "t")


async def test_a_ring_that_nobody_waits_for_is_kept_once() -> None:
    alarm = Alarm()
    alarm.ring()
    alarm.ring()
    await asyncio.wait_for(alarm.wait(), 1)
    assert alarm._rings.empty()


async def test_a_bell_is_not_armed_while_a_worker_has_a_batch_in_hand(
    db: asyncpg.Connection, settings: Settings, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The events in hand are still to be seen: trying in vain, it would wait ever longer, and last when it matters."""
    tries: list[bool] = []
    fall_asleep = Doorbell._fall_asleep

    async def noted(doorbell: Doorbell, connection: Any) -> bool:
        tries.append(doorbell._activity.is_at_work)
        return await fall_asleep(doorbell, connection)

    monkeypatch.setattr(Doorbell, "_fall_asleep", noted)
    await make_topic(db, "t", f"perform pg_advisory_xact_lock_shared({GATE});")
    gate = await connect("gatekeeper")
    await gate.execute(f"select pg_advisory_lock({GATE})")
    async with on_duty(impatient(settings, linger_s=0.0, workers=1)) as crew:
        await asleep(db)
        tries.clear()
        await enqueue(db, "t", "k")

        async def has_dozed_long() -> bool:
            return crew._doorbell._doze_s >= crew._doorbell._settings.poll_only_interval_s

        await wait_until_blocked(db, "recalcd worker")
        await eventually(has_dozed_long)
        await gate.execute(f"select pg_advisory_unlock({GATE})")
        await asleep(db)
    assert tries
    assert not any(tries)


async def test_a_trickle_rings_one_by_one(db: asyncpg.Connection, settings: Settings, rings: Rings) -> None:
    """A worker at rest would have to look for each of these events instead, again and again."""
    async with on_duty(impatient(settings, linger_s=60)) as crew:

        async def is_at_rest() -> bool:
            return not crew._shared.activity.is_at_work

        await asleep(db)
        for key in numbered(20):
            await eventually(is_at_rest)
            await enqueue(db, "t", key)
            await until_empty(db)
    assert await done(db, "t") == numbered(20)
    assert await rings() == ["t"] * 20


def test_whoever_was_rung_lingers(settings: Settings) -> None:
    """Or the next look, and its second worker, would be in the way of the batch that it was rung for."""
    activity = Activity(linger_s=60)
    activity._stirred_at -= 3600
    Doorbell(settings, uuid4(), Alarm(), activity, Hints(1))._on_ring()
    assert activity.lingering_s() > 0


@pytest.mark.parametrize(
    ("bell", "quiet_s", "asleep_s", "pause_s"),
    [
        ("silent", 0.3, None, 0.005),
        ("armed", 0.0, None, 0.005),
        ("armed", 0.3, None, 0.3),
        ("guarded", 0.3, None, 0.3),
        ("armed", 0.7, 4.0, 4.0),
        ("armed", 0.7, None, 0.1),
        ("silent", 0.7, None, 0.1),
    ],
)
def test_polls_are_close_while_none_rings_and_ever_rarer_while_one_does(
    settings: Settings, bell: Any, quiet_s: float, asleep_s: float | None, pause_s: float
) -> None:
    activity = Activity(linger_s=0.5)
    activity.quiet_s = lambda: quiet_s  # type: ignore[method-assign]
    doorbell = Doorbell(settings, uuid4(), Alarm(), activity, Hints(1))
    doorbell._bell, doorbell._asleep_s = bell, asleep_s
    assert doorbell._pause_s() == pause_s


@pytest.mark.parametrize("ticks", range(4))
async def test_a_doze_that_ends_just_as_the_daemon_stops_does_not_swallow_the_stop(
    settings: Settings, ticks: int
) -> None:
    """As asyncio.wait_for does before Python 3.12: the doorbell went on, and the daemon waited for its end for ever."""
    doorbell = Doorbell(settings, uuid4(), Alarm(), Activity(1.0), Hints(0.25))
    doorbell._doze_s, rested = 60.0, asyncio.Event()
    dozing = asyncio.create_task(doorbell._doze(rested.wait()))
    await asyncio.sleep(0.001)
    rested.set()
    for _ in range(ticks):
        await asyncio.sleep(0)
    is_asked = dozing.cancel()
    await asyncio.wait([dozing])
    assert dozing.cancelled() == is_asked


async def test_a_ring_wakes_one_of_those_who_wait() -> None:
    alarm = Alarm()
    await alarm.wait()
    waiting = [asyncio.create_task(alarm.wait()) for _ in range(2)]
    await asyncio.sleep(0)
    alarm.ring()
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    assert sum(task.done() for task in waiting) == 1
    alarm.ring()
    await asyncio.wait_for(asyncio.gather(*waiting), 1)


async def test_an_idle_daemon_is_armed_and_wakes_for_one_write_long_before_the_poll(
    db: asyncpg.Connection, settings: Settings, rings: Rings
) -> None:
    async with on_duty(impatient(settings, poll_interval_s=3600)):
        await asleep(db)
        await enqueue(db, "t", "k")
        await until_empty(db)
    assert await rings() == ["t"]


async def test_two_daemons_sleep_under_one_lock_and_both_are_woken(
    db: asyncpg.Connection, settings: Settings, rings: Rings
) -> None:
    rare = impatient(settings, poll_interval_s=3600)
    async with on_duty(rare) as first, on_duty(rare) as second:

        async def are_asleep() -> bool:
            return first._doorbell.is_asleep and second._doorbell.is_asleep

        await eventually(are_asleep)
        await enqueue(db, "t", *numbered(500))
        await until_empty(db)
        await eventually(are_asleep)
    assert await rings() == ["t"]


async def test_when_the_armed_one_leaves_the_guarded_one_finds_out_by_its_poll(
    db: asyncpg.Connection, settings: Settings
) -> None:
    async with on_duty(impatient(settings, poll_interval_s=0.2, heartbeat_s=0.5)) as guarded:
        async with on_duty(impatient(settings)):
            await asleep(db, count=2)
        await enqueue(db, "t", "k")
        await until_empty(db)

        async def is_armed() -> bool:
            return guarded._doorbell._bell == "armed"

        await eventually(is_armed)


async def test_poll_means_without_any_listener(db: asyncpg.Connection, settings: Settings, rings: Rings) -> None:
    async with on_duty(impatient(settings, wake="poll")) as crew:
        await enqueue(db, "t", "k")
        await until_empty(db)
        assert await sessions(db, LISTENER) == 0
        assert not crew._doorbell.is_degraded
    assert await rings() == []


async def test_with_polling_a_two_phase_commit_is_served(db: asyncpg.Connection, settings: Settings) -> None:
    name = await db.fetchval("select current_database()")
    async with on_duty(impatient(settings, wake="poll")):
        await db.execute(f"begin; select outbox.enqueue('t', 'k'); prepare transaction '{name}'")
        await db.execute(f"commit prepared '{name}'")
        await until_empty(db)
    assert await done(db, "t") == ["k"]


async def test_a_listener_lost_before_its_first_echo_is_not_taken_for_a_deaf_one(
    db: asyncpg.Connection, settings: Settings, logged: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the daemon would blame a pooler, and do without the bell for a minute."""
    fatal = (
        "select count(pg_terminate_backend(pid)), $1::text, $2::text from pg_stat_activity "
        "where datname = current_database() and application_name = 'recalcd listener'"
    )

    async def is_lost() -> bool:
        return bool(events_of(logged, telemetry.LISTENER_LOST))

    with monkeypatch.context() as patch:
        patch.setattr(daemon.doorbell, "ECHO", fatal)
        async with on_duty(impatient(settings, heartbeat_timeout_s=3600, heartbeat_s=3600)):
            await eventually(is_lost)
            patch.undo()
            await asleep(db)
    assert not events_of(logged, telemetry.LISTENER_DEGRADED)


async def test_a_lost_listener_is_noticed_at_once_though_nothing_happens(
    db: asyncpg.Connection, settings: Settings, logged: list[Any]
) -> None:
    rare = impatient(settings, poll_interval_s=3600, heartbeat_s=3600)
    async with on_duty(rare):
        await asleep(db)
        await terminate(db, LISTENER)

        async def is_back() -> bool:
            return len(events_of(logged, telemetry.LISTENER_STARTED)) == 2

        await eventually(is_back)
        await asleep(db)
        await enqueue(db, "t", "k")
        await until_empty(db)
    assert len(events_of(logged, telemetry.LISTENER_LOST)) == 1


async def test_a_lost_listener_is_noticed_at_once_though_a_batch_is_in_hand(
    db: asyncpg.Connection, settings: Settings, logged: list[Any]
) -> None:
    await make_topic(db, "t", "perform pg_sleep(3600);", statement_timeout_s=3600)

    async def is_at_work() -> bool:
        return await db.fetchval("select count(*) > 0 from pg_stat_activity where wait_event = 'PgSleep'") is True

    async def is_back() -> bool:
        return len(events_of(logged, telemetry.LISTENER_STARTED)) == 2

    async with on_duty(impatient(settings, poll_interval_s=3600, heartbeat_s=3600, stop_grace_s=0.1)):
        await asleep(db)
        await enqueue(db, "t", "k")
        await eventually(is_at_work)
        await terminate(db, LISTENER)
        await eventually(is_back)


async def test_what_is_written_while_nobody_listens_is_found_when_the_listener_is_back(
    db: asyncpg.Connection, settings: Settings
) -> None:
    async with on_duty(impatient(settings, poll_interval_s=3600)):
        await asleep(db)
        await terminate(db, LISTENER)
        await enqueue(db, "t", "k")
        await until_empty(db)


async def test_a_connection_that_delivers_nothing_is_told_from_a_good_one_and_polling_serves(
    db: asyncpg.Connection, settings: Settings, logged: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction pooler takes LISTEN and delivers nothing, nor does this statement."""
    monkeypatch.setattr(daemon.doorbell, "ECHO", "select $1::text, $2::text")
    async with on_duty(impatient(settings, heartbeat_timeout_s=0.1)) as crew:

        async def is_told() -> bool:
            return bool(events_of(logged, telemetry.LISTENER_DEGRADED))

        await eventually(is_told)
        assert crew._doorbell.is_degraded
        await enqueue(db, "t", "k")
        await until_empty(db)


async def test_a_listener_that_goes_deaf_later_is_replaced(
    db: asyncpg.Connection, settings: Settings, logged: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf = "select $1::text, $2::text"
    beat = impatient(settings, heartbeat_s=0.2, heartbeat_timeout_s=0.1)
    async with on_duty(beat):
        await asleep(db)
        with monkeypatch.context() as patch:
            patch.setattr(daemon.doorbell, "ECHO", deaf)

            async def is_noticed() -> bool:
                return bool(events_of(logged, telemetry.LISTENER_LOST))

            await eventually(is_noticed)

        await asleep(db)
        await enqueue(db, "t", "k")
        await until_empty(db)


async def test_a_failure_that_falls_due_wakes_the_daemon_in_time(db: asyncpg.Connection, settings: Settings) -> None:
    """Sleep until the next attempt, not until the next poll."""
    await make_topic(db, "u", "if v_call = 1 then raise 'no'; end if;", retry_base_s=1)
    async with on_duty(impatient(settings, poll_interval_s=3600, workers=1)):
        await enqueue(db, "u", "k")

        async def is_mended() -> bool:
            return await done(db, "u") == ["k"]

        await eventually(is_mended)
    assert await failures(db) == {}


async def test_a_database_that_is_away_for_a_day_is_still_waited_for(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    class Enough(Exception):
        pass

    async def refuse(*_: object, **__: object) -> None:
        if len(pauses) == 3000:
            raise Enough
        raise DatabaseUnavailable("no")

    async def skip(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(daemon.doorbell, "open_session", refuse)
    monkeypatch.setattr(asyncio, "sleep", skip)
    bell = Doorbell(settings, uuid4(), Alarm(), Activity(0), Hints(1))
    with pytest.raises(Enough):
        await bell.listen()
    assert pauses[0] < 1
    assert settings.retry_max_s / 2 <= max(pauses) <= settings.retry_max_s
