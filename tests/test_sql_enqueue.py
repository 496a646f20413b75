"""outbox.enqueue, and the bell that it rings: outbox.ring, outbox.arm, outbox.disarm."""

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg
import pytest
from engine import enqueue, make_ledger, make_topic, numbered, pending, refused
from servers import Connect
from waiting import eventually

T = "t"
Send = Callable[[asyncpg.Connection, str | list[str] | None], Awaitable[None]]


@pytest.fixture(autouse=True)
async def topic(db: asyncpg.Connection) -> None:
    await make_ledger(db)
    await make_topic(db, T)


async def send_one(db: asyncpg.Connection, key: object, reason: str | None = None) -> None:
    await db.execute("select outbox.enqueue($1, $2::text, $3)", T, key, reason)


async def send_many(db: asyncpg.Connection, key: object, reason: str | None = None) -> None:
    await db.execute("select outbox.enqueue($1, $2::text[], $3)", T, ["before", key], reason)


@pytest.fixture
async def heard(connect: Connect) -> list[tuple[str, str]]:
    """Listen on the outbox's channel; the list grows as notifications arrive."""
    listener, heard = await connect("listener"), []
    for channel in ("outbox", "fence"):
        await listener.add_listener(
            channel, lambda _connection, _pid, channel, payload: heard.append((channel, payload))
        )
    return heard


async def test_a_key_becomes_one_event_with_its_reason(db: asyncpg.Connection) -> None:
    await db.execute("select outbox.enqueue('t', '7', 'feedback.recorded')")
    rows = await db.fetch("select topic, key, reason, traceparent, enqueued_at <= clock_timestamp() from outbox.event")
    assert [tuple(row) for row in rows] == [("t", "7", "feedback.recorded", None, True)]


async def test_an_array_becomes_one_event_a_key_in_its_order(db: asyncpg.Connection) -> None:
    await db.execute("select outbox.enqueue('t', array['9', '7', '9'], 'moved')")
    assert await pending(db) == ["9", "7", "9"]
    assert await db.fetchval("select count(*) from outbox.event where reason = 'moved'") == 3


async def test_an_empty_array_is_no_change_and_rings_nobody(db: asyncpg.Connection) -> None:
    await enqueue(db, T)
    assert await pending(db) == []


@pytest.mark.parametrize("send", [send_one, send_many])
async def test_a_key_that_can_not_be_is_refused(db: asyncpg.Connection, send: Send) -> None:
    for key in (None, "", "k" * 256):
        with refused("RC003", "null, empty or longer than 255", "Pass the id"):
            await send(db, key)
    assert await pending(db) == []


@pytest.mark.parametrize("send", [send_one, send_many])
async def test_any_other_text_is_a_key(db: asyncpg.Connection, send: Send) -> None:
    keys = ["k" * 255, "é" * 255, "🙂" * 255, "'; drop table x --", "\x01\n\t\\", " "]
    for key in keys:
        await send(db, key)
    assert [key for key in await pending(db) if key != "before"] == keys


async def test_a_null_array_is_refused(db: asyncpg.Connection) -> None:
    with refused("RC003"):
        await db.execute("select outbox.enqueue('t', null::text[])")


async def test_an_unknown_topic_is_refused_even_without_keys(db: asyncpg.Connection) -> None:
    for name in ("'tt'", "null", "''"):
        for keys in ("'7'::text", "array['7']", "'{}'::text[]"):
            with refused("RC002", "outbox.set_topic"):
                await db.execute(f"select outbox.enqueue({name}, {keys})")


async def test_a_reason_longer_than_200_characters_is_refused(db: asyncpg.Connection) -> None:
    await send_one(db, "7", "r" * 200)
    with refused("23514"):
        await send_one(db, "7", "r" * 201)


@pytest.mark.parametrize("send", [send_one, send_many])
async def test_the_trace_context_comes_from_the_setting(db: asyncpg.Connection, send: Send) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with db.transaction():
        await db.execute("select set_config('recalcd.traceparent', $1, true)", trace)
        await send(db, "traced")
    await send(db, "not traced")  # a setting that was local leaves '' behind, which is no trace
    rows = await db.fetch("select key, traceparent from outbox.event where key like '%traced'")
    assert {row["key"]: row["traceparent"] for row in rows} == {"traced": trace, "not traced": None}


@pytest.mark.parametrize("send", [send_one, send_many])
@pytest.mark.parametrize(
    "trace",
    [
        "x" * 201,
        "00-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-01",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\n",
    ],
)
async def test_a_trace_context_that_is_none_never_fails_the_write(
    db: asyncpg.Connection, send: Send, trace: str
) -> None:
    await db.execute("select set_config('recalcd.traceparent', $1, false)", trace)
    await send(db, "k")
    assert await db.fetchval("select traceparent is null from outbox.event where key = 'k'")


async def test_a_writer_needs_no_privilege_on_the_tables(db: asyncpg.Connection) -> None:
    role = await db.fetchval("select current_database() || '_writer'")
    await db.execute(f"create role {role} in role recalcd_writer")
    try:
        await db.execute(f"set role {role}")
        await send_one(db, "7")
        with refused("42501"):
            await pending(db)
    finally:
        await db.execute(f"reset role; drop owned by {role}; drop role {role}")
    assert await pending(db) == ["7"]


async def test_producers_never_wait_for_each_other(db: asyncpg.Connection, connect: Connect) -> None:
    other = await connect()
    async with db.transaction(), other.transaction(), asyncio.timeout(5):
        await send_one(db, "7")
        await send_one(other, "7")


async def test_a_rolled_back_writer_leaves_no_event_and_rings_nobody(
    db: asyncpg.Connection, connect: Connect, heard: list[tuple[str, str]]
) -> None:
    sleeper = await connect()
    assert await sleeper.fetchval("select outbox.arm()") == "armed"
    transaction = db.transaction()
    await transaction.start()
    await send_one(db, "7")
    await transaction.rollback()
    await fence(db, heard)
    assert heard == [("fence", "")]
    assert await pending(db) == []


async def fence(db: asyncpg.Connection, heard: list[tuple[str, str]]) -> None:
    """Wait until everything that was sent before has been heard."""
    await db.execute("notify fence")

    async def has_passed() -> bool:
        return ("fence", "") in heard

    await eventually(has_passed)


@pytest.mark.parametrize("send", [send_one, send_many])
async def test_a_writer_rings_only_while_a_daemon_is_armed(
    db: asyncpg.Connection, connect: Connect, heard: list[tuple[str, str]], send: Send
) -> None:
    sleeper = await connect()
    await send(db, "awake")
    await sleeper.execute("select outbox.arm()")
    await send(db, "armed")
    assert await sleeper.fetchval("select outbox.disarm()")
    await send(db, "awake again")
    await fence(db, heard)
    assert heard == [("outbox", T), ("fence", "")]


async def test_an_event_inserted_by_hand_is_rung_for_by_hand(
    db: asyncpg.Connection, connect: Connect, heard: list[tuple[str, str]]
) -> None:
    await (await connect()).execute("select outbox.arm()")
    await db.execute("insert into outbox.event (topic, key) values ('t', '7'); select outbox.ring()")
    await fence(db, heard)
    assert heard == [("outbox", ""), ("fence", "")]


async def test_nobody_falls_asleep_while_a_silent_writer_is_in_flight(db: asyncpg.Connection, connect: Connect) -> None:
    sleeper = await connect()
    async with db.transaction():
        await send_one(db, "7")
        assert await sleeper.fetchval("select outbox.arm()") == "busy"
    assert await sleeper.fetchval("select outbox.arm()") == "armed"


async def test_a_rolled_back_savepoint_takes_its_event_along_but_never_the_protection(
    db: asyncpg.Connection, connect: Connect
) -> None:
    sleeper = await connect()
    async with db.transaction():
        await send_one(db, "kept")
        await db.execute("savepoint s")
        await send_one(db, "undone")
        await db.execute("rollback to savepoint s")
        assert await sleeper.fetchval("select outbox.arm()") == "busy"
    assert await pending(db) == ["kept"]


async def test_a_second_sleeper_is_guarded_by_the_first_while_that_one_lives(connect: Connect) -> None:
    first, second, third = await connect(), await connect(), await connect()
    assert await first.fetchval("select outbox.arm()") == "armed"
    assert await second.fetchval("select outbox.arm()") == "guarded"
    await first.close()

    async def arms() -> bool:
        return bool(await third.fetchval("select outbox.arm() = 'armed'"))

    await eventually(arms)  # a backend goes a moment after its client


async def test_the_bell_of_another_database_is_another_bell(
    connect: Connect, empty_dsn: str, db: asyncpg.Connection
) -> None:
    stranger = await asyncpg.connect(empty_dsn)
    try:
        await stranger.execute("select pg_advisory_lock(29283, 1)")
        async with db.transaction():
            await send_one(db, "7")
            assert await (await connect()).fetchval("select outbox.arm()") == "busy"
    finally:
        await stranger.close()


async def test_to_disarm_without_being_armed_changes_nothing(connect: Connect) -> None:
    first, second = await connect(), await connect()
    await first.execute("select outbox.arm()")
    assert not await second.fetchval("select outbox.disarm()")
    assert await second.fetchval("select outbox.arm()") == "guarded"


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_the_bell_is_no_matter_of_snapshots(
    db: asyncpg.Connection, connect: Connect, heard: list[tuple[str, str]], isolation: str
) -> None:
    async with db.transaction(isolation=isolation):  # type: ignore[arg-type]  # a literal, parametrised
        await db.fetch("select")  # takes the snapshot
        await (await connect()).execute("select outbox.arm()")
        await enqueue(db, T, *numbered(3))
    await fence(db, heard)
    assert heard == [("outbox", T), ("fence", "")]
