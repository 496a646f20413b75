"""When writers are a crowd, and the bell is muted for them."""

import asyncio
import math
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any
from unittest.mock import AsyncMock, call
from uuid import uuid4

import asyncpg
import pytest
from engine import GATE, asleep, enqueue, impatient, make_ledger, make_topic, on_duty, until_empty
from servers import Connect, Rings
from waiting import eventually, wait_until_blocked

import daemon.doorbell
from daemon.database import drop
from daemon.doorbell import ARM, CROWD, IS_COMMIT_QUEUED, RUSH, Activity, Alarm, Doorbell
from daemon.embedded import embedded_postgres
from daemon.hints import Hints
from daemon.settings import Settings


@pytest.fixture
async def topic(db: asyncpg.Connection) -> None:
    await make_ledger(db)
    await make_topic(db, "t")


NOTIFY_FOR_EVER = "do $$ begin loop perform pg_notify('elsewhere', ''); commit; end loop; end $$"


@asynccontextmanager
async def writers_queued(connect: Connect) -> AsyncIterator[None]:
    """Have writers of another application wait for each other's NOTIFY while the block runs."""
    async with asyncio.TaskGroup() as group:
        writers = [await connect("writer elsewhere") for _ in range(3)]
        notifying = [group.create_task(writer.execute(NOTIFY_FOR_EVER)) for writer in writers]
        yield
        for task in notifying:
            task.cancel()


@pytest.mark.usefixtures("topic")
async def test_a_crowd_is_let_be_silent_while_the_work_lasts(
    db: asyncpg.Connection, settings: Settings, connect: Connect, rings: Rings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon at work finds their events by itself, and writers would only line up to notify."""
    monkeypatch.setattr(daemon.doorbell, "RUSH", sys.maxsize)  # so that nothing but a glance can tell
    await make_topic(db, "t", f"perform pg_advisory_xact_lock_shared({GATE});")
    gate = await connect("gatekeeper")
    await gate.execute(f"select pg_advisory_lock({GATE})")

    async def is_silent() -> bool:
        await enqueue(db, "t", "k")
        return bool(await db.fetchval("select pg_try_advisory_xact_lock_shared(29283, 1)"))

    async with on_duty(impatient(settings, workers=1)):
        await asleep(db)
        await enqueue(db, "t", "k")
        await wait_until_blocked(db, "recalcd worker")
        async with writers_queued(connect):
            await eventually(is_silent)
        count = len(await rings())
        assert count > CROWD
        await enqueue(db, "t", "silently")
        await gate.execute(f"select pg_advisory_unlock({GATE})")
        await until_empty(db)
        assert len(await rings()) == count
        await asleep(db)
        await enqueue(db, "t", "again")
        await until_empty(db)
    assert await rings() == ["t"] * (count + 1)


async def test_one_who_notifies_alone_is_not_taken_for_a_crowd() -> None:
    with embedded_postgres(settings={"fsync": "off"}) as server:
        connections = db, alone, *others = [await asyncpg.connect(server.dsn()) for _ in range(4)]

        async def is_queued() -> bool:
            return bool(await db.fetchval(IS_COMMIT_QUEUED))

        async with asyncio.TaskGroup() as group:
            notifying = [group.create_task(alone.execute(NOTIFY_FOR_EVER))]
            assert not any([await is_queued() for _ in range(100)])
            notifying += [group.create_task(other.execute(NOTIFY_FOR_EVER)) for other in others]
            await eventually(is_queued)
            for task in notifying:
                task.cancel()
        for connection in connections:
            await connection.close()


@pytest.mark.parametrize(
    ("queued", "is_crowd"),
    [
        ([True] * CROWD, True),
        ([True] * (CROWD - 1) + [False, True], False),
        ([False] * CROWD + [True] * CROWD, True),
        ([True, False] * CROWD, False),
        ([True, True, False] * CROWD, True),
    ],
)
async def test_a_crowd_is_many_more_glances_that_see_writers_wait_than_that_see_none(
    settings: Settings, queued: list[bool], is_crowd: bool
) -> None:
    doorbell = Doorbell(settings, uuid4(), Alarm(), Activity(linger_s=0), Hints(1))
    connection = AsyncMock()
    connection.fetchval.side_effect = queued
    seen = [await doorbell._is_crowd(connection) for _ in queued]
    assert any(seen) == is_crowd


@pytest.mark.parametrize(
    ("bell", "wake", "is_at_work", "glances"),
    [
        ("armed", "doorbell", True, True),
        ("armed", "doorbell", False, False),
        ("armed", "always", True, False),
        ("guarded", "doorbell", True, False),
    ],
    ids=["at work", "at rest", "never to be muted", "not ours to mute"],
)
def test_a_ring_is_reason_for_a_glance_at_the_writers(
    settings: Settings, bell: Any, wake: str, is_at_work: bool, glances: bool
) -> None:
    activity = Activity(linger_s=0)
    doorbell = Doorbell(impatient(settings, wake=wake), uuid4(), Alarm(), activity, Hints(1))
    doorbell._bell = bell
    with activity.batch_in_hand() if is_at_work else nullcontext():
        doorbell._on_ring()
    assert doorbell._suspected.is_set() == glances


@pytest.mark.parametrize(
    ("at_work", "is_crowd"),
    [
        ([True] * RUSH, True),
        ([True] * (RUSH - 1) + [False, True], False),
        ([True, False] * RUSH, False),
    ],
)
async def test_so_are_many_rings_on_end_that_find_a_batch_in_hand(
    settings: Settings, at_work: list[bool], is_crowd: bool
) -> None:
    """One writer that writes as fast as it can waits for nobody; its rings tell the daemon nothing new."""
    activity = Activity(linger_s=0)
    doorbell = Doorbell(settings, uuid4(), Alarm(), activity, Hints(1))
    doorbell._bell = "armed"
    for is_at_work in at_work:
        with activity.batch_in_hand() if is_at_work else nullcontext():
            doorbell._on_ring()
    assert await doorbell._is_crowd(AsyncMock(fetchval=AsyncMock(return_value=False))) == is_crowd


async def test_one_glance_is_not_right_behind_the_other(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon.doorbell, "GLANCE_S", 3600)
    activity = Activity(linger_s=0)
    doorbell = Doorbell(settings, uuid4(), Alarm(), activity, Hints(1))
    doorbell._bell = "armed"
    await doorbell._is_crowd(AsyncMock())
    with activity.batch_in_hand():
        doorbell._on_ring()
    assert not doorbell._suspected.is_set()


@pytest.mark.usefixtures("topic")
async def test_who_was_suspected_before_the_session_was_lost_is_not_any_more(
    db: asyncpg.Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the next session would mute a bell that it has not armed."""
    is_crowd = AsyncMock(return_value=False)
    monkeypatch.setattr(Doorbell, "_is_crowd", is_crowd)
    async with on_duty(impatient(settings)) as crew:
        await asleep(db)
        doorbell = crew._doorbell
        lost = doorbell._listener
        assert lost is not None
        doorbell._suspected.set()
        drop(lost.connection)

        async def is_asleep_again() -> bool:
            return doorbell._listener is not lost and doorbell.is_asleep

        await eventually(is_asleep_again)
        found = doorbell._listener
        assert found is not None
    assert call(found.connection) not in is_crowd.mock_calls  # of the lost one it may have been asked in time


async def test_a_crowd_that_stays_is_tried_ever_less_often_and_forgotten_once_it_is_gone(settings: Settings) -> None:
    settings = settings.model_copy(update={"heartbeat_s": 10.0})
    doorbell = Doorbell(settings, uuid4(), Alarm(), Activity(linger_s=60), Hints(1))
    mutes = []
    for _ in range(6):
        await doorbell._mute(AsyncMock(is_closed=lambda: False), 0.0)
        mutes.append(doorbell._mute_s)
    doorbell._unmuted_at -= settings.heartbeat_s
    await doorbell._mute(AsyncMock(is_closed=lambda: False), 0.0)
    assert [*mutes, doorbell._mute_s] == [0.25, 1, 4, *[settings.heartbeat_s] * 3, 0.25]


async def test_after_a_mute_writers_may_ring_before_it_is_known_that_there_is_nothing_to_do(settings: Settings) -> None:
    """The look below the marks takes long beside a forgotten transaction; a worker looks above them."""
    alarm, connection = Alarm(), AsyncMock(is_closed=lambda: False)
    connection.fetchval.return_value = "armed"
    doorbell = Doorbell(settings, uuid4(), alarm, Activity(linger_s=60), Hints(1))
    await alarm.wait()
    watching = asyncio.create_task(doorbell._watch(connection, math.inf))
    await asyncio.wait_for(alarm.wait(), 10)
    watching.cancel()
    connection.fetchval.assert_awaited_once_with(ARM)
    connection.fetch.assert_not_called()


@pytest.mark.usefixtures("topic", "any_ring_is_a_crowd")
async def test_a_trickle_gets_its_bell_back_though_there_is_always_work(
    db: asyncpg.Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or one crowd would leave it to the polls for as long as it trickles."""
    monkeypatch.setattr(daemon.doorbell, "MUTE_S", 0.05)
    mutes: list[float] = []
    mute = Doorbell._mute

    async def noted(doorbell: Doorbell, *arguments: Any) -> None:
        mutes.append(doorbell._activity.lingering_s())
        await mute(doorbell, *arguments)

    monkeypatch.setattr(Doorbell, "_mute", noted)
    async with on_duty(impatient(settings, linger_s=60)):
        while len(mutes) < 3:
            await enqueue(db, "t", "k")
            await until_empty(db)
    assert all(lingering_s > 0 for lingering_s in mutes)
