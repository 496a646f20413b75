"""The promise: once no event of a key is visible, its cached rows are what a recalculation would produce now.

Writers and daemons run at the same time, on few keys, and a witness audits snapshots all the while. What goes on is
drawn by chance, from the seed in the test's name.
"""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import asyncpg
import pytest
from engine import LEDGER, audit, enqueue, failures, impatient, make_ledger, on_duty, record, terminate, until_empty
from histories import ARGUMENTS, write
from oracle import drift
from school import School, found
from servers import Connect, as_daemon
from waiting import eventually

from daemon.settings import Settings

ACCOUNTS = ["a", "b", "c", "d", "e"]
DAWDLE = """
    do $$ begin execute format('alter database %I set ledger.gate = dawdle', current_database()); end $$
"""


async def write_for_a_while(
    db: asyncpg.Connection, chance: random.Random, *, most: int = 150, enough: asyncio.Event | None = None
) -> None:
    """Write as applications do: one account or several, committed late or never, taken back, or for no reason."""
    for _ in range(most):
        if enough and enough.is_set():
            return
        transaction = db.transaction(isolation=chance.choice(["read_committed", "read_committed", "repeatable_read"]))
        await transaction.start()
        try:
            await act(db, chance)
        except asyncpg.SerializationError:  # another writer was quicker; an application would try again
            await transaction.rollback()
            continue
        if chance.random() < 0.3:
            await db.execute("select pg_sleep(random() / 100)")  # so that ids commit out of order
        await (transaction.rollback() if chance.random() < 0.1 else transaction.commit())


async def act(db: asyncpg.Connection, chance: random.Random) -> None:
    match chance.randrange(8):
        case 0:
            for account in chance.sample(ACCOUNTS, 3):
                await record(db, account, chance.choice([-1, 1]))
        case 1:
            account = chance.choice(ACCOUNTS)
            await db.execute("delete from ledger.entry where account = $1", account)
            await enqueue(db, LEDGER, account)
        case 2:
            await enqueue(db, LEDGER, *ACCOUNTS)
        case _:
            await record(db, chance.choice(ACCOUNTS), chance.choice([-1, 1]))


async def call_directly(db: asyncpg.Connection, chance: random.Random) -> None:
    """Recalculate past the daemons, as somebody in psql may."""
    while True:
        keys = chance.sample(ACCOUNTS, chance.randrange(1, 4))
        with contextlib.suppress(asyncpg.LockNotAvailableError):
            await db.execute("call ledger.recalculate($1)", keys)
        await asyncio.sleep(chance.random() / 20)


async def keep_auditing(db: asyncpg.Connection) -> None:
    while True:
        assert await audit(db) == []


@contextlib.asynccontextmanager
async def background(*works: object) -> AsyncIterator[None]:
    """Do these all the while; what fails there, fails the test."""
    tasks = [asyncio.ensure_future(work) for work in works]  # type: ignore[call-overload]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@pytest.fixture
async def ledger(db: asyncpg.Connection) -> asyncpg.Connection:
    await make_ledger(db)
    await db.execute(DAWDLE)
    return db


@pytest.mark.parametrize("seed", range(3))
async def test_several_writers_and_daemons_on_few_keys_leave_true_balances(
    ledger: asyncpg.Connection, connect: Connect, settings: Settings, seed: int
) -> None:
    chance = random.Random(seed)
    prompt = impatient(settings, poll_interval_s=0.5, batch_target_s=0.02)
    async with (
        on_duty(prompt),
        on_duty(prompt),
        background(keep_auditing(await connect()), call_directly(await connect(), random.Random(seed))),
    ):
        async with asyncio.TaskGroup() as writers:
            for _ in range(4):
                writers.create_task(write_for_a_while(await connect(), random.Random(chance.random())))
        await until_empty(ledger)
    assert await audit(ledger) == []
    assert await failures(ledger) == {}


async def test_backends_that_are_killed_all_the_time_cost_no_event(
    ledger: asyncpg.Connection, connect: Connect, settings: Settings
) -> None:
    chance = random.Random(7)
    prompt = impatient(settings, poll_interval_s=0.5)

    async def keep_killing(db: asyncpg.Connection) -> None:
        while True:
            await terminate(db, chance.choice(["recalcd worker", "recalcd listener", "recalcd housekeeper"]))
            await asyncio.sleep(chance.random() / 5)

    async with on_duty(prompt), background(keep_auditing(await connect())):
        async with background(keep_killing(await connect())), asyncio.TaskGroup() as writers:
            for seed in range(3):
                writers.create_task(write_for_a_while(await connect(), random.Random(seed)))
        await until_empty(ledger)
    assert await audit(ledger) == []
    assert {row["state"] for row in (await failures(ledger)).values()} <= {"retrying"}


@contextlib.contextmanager
def process(dsn: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `recalcd run` while the block runs."""
    environment = os.environ | {"RECALCD_DATABASE_URL": as_daemon(dsn), "RECALCD_POLL_INTERVAL_S": "0.5"}
    with log.open("ab") as stderr:
        started = subprocess.Popen([sys.executable, "-m", "cli", "run"], env=environment, stderr=stderr)
    try:
        yield started
    finally:
        started.kill()
        started.wait()


async def test_daemons_that_are_killed_at_work_are_succeeded_without_a_loss(
    ledger: asyncpg.Connection, connect: Connect, dsn: str, tmp_path: Path
) -> None:
    async def newest_is_at_work(count: int) -> bool:
        """Of so many daemons. The backends of one that was killed may live a little longer."""
        query = """
            select count(*) = $1 and exists (
                select from pg_stat_activity as a
                where a.backend_start > max(d.started_at) and a.application_name = 'recalcd worker'
                  and a.state <> 'idle' and a.datname = current_database()
            )
            from outbox.daemon as d
        """
        return bool(await ledger.fetchval(query, count))

    async def is_noticed() -> bool:
        return bool(await ledger.fetchval("select count(*) = 2 from outbox.daemon where state = 'vanished'"))

    log, enough = tmp_path / "daemon.log", asyncio.Event()
    async with background(keep_auditing(await connect())):
        writing = asyncio.create_task(write_for_a_while(await connect(), random.Random(1), most=9999, enough=enough))
        for count in (1, 2):
            with process(dsn, log):
                await eventually(partial(newest_is_at_work, count), timeout_s=30)
        with process(dsn, log) as last:
            await eventually(is_noticed, timeout_s=30)
            enough.set()
            await writing
            await until_empty(ledger)
            last.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(last.wait, 20) == 0
    assert await audit(ledger) == []
    assert await failures(ledger) == {}
    states = await ledger.fetch("select state, count(*) from outbox.daemon group by state")
    assert {row["state"]: row["count"] for row in states} == {"vanished": 2, "stopped": 1}


async def test_the_report_application_keeps_the_promise_too(
    db: asyncpg.Connection, connect: Connect, settings: Settings
) -> None:
    school = await found(db, pupils=4)

    async def writer(seed: int) -> None:
        chance = random.Random(seed)
        own = School(await connect())
        for _ in range(50):
            await write(own, chance.randrange, [*ARGUMENTS, *["record_feedback"] * 10])

    prompt = impatient(settings, poll_interval_s=0.5)
    async with on_duty(prompt), on_duty(prompt):
        async with asyncio.TaskGroup() as writers:
            for seed in range(4):
                writers.create_task(writer(seed))
        await until_empty(school.db)
    assert await drift(db) == []
    assert await failures(db) == {}
