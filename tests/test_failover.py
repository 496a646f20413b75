"""A primary goes, its standby takes over, and whoever has both hosts in its URI finds it: daemons and writers.

Replication is asynchronous unless told otherwise, so a crash may lose writes that were acknowledged, and their events
with them; what the new primary has, is what the cache is held to.
"""

import asyncio
import contextlib
import random
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from asyncpg.connect_utils import SessionAttribute
from daemons import daemon_process
from engine import asleep, audit, drifted, failures, make_ledger, record, sessions, until_empty
from pair import Pair, cut_off, follows, promote, rejoin, running_pair, session
from servers import add_daemon_login
from waiting import eventually

from daemon import migrations
from daemon.database import DATABASE_ERRORS
from daemon.embedded import EmbeddedPostgres

pytestmark = pytest.mark.own_server

SETTINGS = {"retry_max_s": 1, "connect_timeout_s": 2, "heartbeat_s": 1, "heartbeat_timeout_s": 1, "poll_interval_s": 60}
"""The poll is so rare that only a ring, or having lost a connection, can explain that a daemon looks."""

FIND_S = 2 * 2 + 1 + 10
"""In which a daemon finds the new primary: connect_timeout_s for each host, retry_max_s, and a busy machine."""

ACCOUNTS = [f"account {number}" for number in range(12)]
SESSIONS = ["recalcd worker", "recalcd listener", "recalcd housekeeper"]


@dataclass
class Writer:
    """An application: writes entries, each of another amount, and remembers which were acknowledged."""

    dsn: str
    number: int
    pause_s: float = 0.01
    acknowledged: set[int] = field(default_factory=set)
    _amount: int = 0

    async def run(self) -> None:
        """Write for ever; reconnect to whichever host takes writes."""
        chance = random.Random(self.number)
        while True:
            with contextlib.suppress(*DATABASE_ERRORS):
                await self._write(chance)
            await asyncio.sleep(0.1)

    async def _write(self, chance: random.Random) -> None:
        db = await asyncpg.connect(self.dsn, timeout=2, target_session_attrs=SessionAttribute.read_write)
        try:
            while True:
                self._amount += 1
                amount = self.number * 1_000_000 + self._amount
                await record(db, chance.choice(ACCOUNTS), amount)
                self.acknowledged.add(amount)
                await asyncio.sleep(self.pause_s)
        finally:
            db.terminate()


class Writers:
    """Several at once."""

    def __init__(self, dsn: str, count: int = 3) -> None:
        self._writers = [Writer(dsn, number) for number in range(1, count + 1)]
        self._tasks = [asyncio.create_task(writer.run()) for writer in self._writers]

    @property
    def acknowledged(self) -> set[int]:
        return set[int]().union(*(writer.acknowledged for writer in self._writers))

    async def progress(self, count: int = 20, timeout_s: float = FIND_S) -> None:
        """Wait until each of them has that many more writes acknowledged."""
        before = [len(writer.acknowledged) for writer in self._writers]

        async def all_wrote() -> bool:
            now = [len(writer.acknowledged) for writer in self._writers]
            return all(later >= earlier + count for earlier, later in zip(before, now, strict=True))

        await eventually(all_wrote, timeout_s)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                task.result()


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """Run a primary with the ledger, and its standby."""
    async with running_pair() as pair:
        async with session(pair.first) as db:
            await migrations.up(db)
            await add_daemon_login(db)
            await make_ledger(db)
            await db.execute("alter system set wal_keep_size = '512MB'")  # for pg_rewind, by way of the file it reads
        await follows(pair.first)
        yield pair


@pytest.fixture
async def writers() -> AsyncIterator[Callable[..., Writers]]:
    """Start writers; they are stopped after the test."""
    started: list[Writers] = []

    def start(*arguments: Any) -> Writers:
        started.append(Writers(*arguments))
        return started[-1]

    yield start
    for each in started:
        await each.stop()


async def written(db: asyncpg.Connection) -> set[int]:
    """Return the amounts that a server has."""
    return {row["amount"] for row in await db.fetch("select amount from ledger.entry")}


async def sessions_of_daemons(server: EmbeddedPostgres) -> int:
    async with session(server) as db:
        return sum([await sessions(db, name) for name in SESSIONS])


async def all_is_true(server: EmbeddedPostgres) -> set[int]:
    """Wait until nothing is pending; see that all is reflected and nobody was charged. Returns what was written."""
    async with session(server) as db:
        await until_empty(db)
        assert await drifted(db) == []
        assert await failures(db) == {}
        return await written(db)


async def a_ring_wakes_them(server: EmbeddedPostgres, count: int) -> None:
    """See that so many daemons listen there, armed, and that a write is reflected long before any poll."""
    async with session(server) as db:
        async with asyncio.timeout(FIND_S):
            await asleep(db, count)
        await record(db, "a ring")

        async def is_reflected() -> bool:
            return await drifted(db) == []

        await eventually(is_reflected, timeout_s=SETTINGS["poll_interval_s"] / 6)


async def test_after_a_crash_and_after_a_planned_switch_everybody_works_on_the_new_primary(
    pair: Pair, writers: Callable[..., Writers], tmp_path: Path
) -> None:
    dsn = pair.dsn(target_session_attrs="read-write")
    log = tmp_path / "daemon.log"
    with daemon_process(dsn, log, **SETTINGS) as one, daemon_process(dsn, log, **SETTINGS) as other:
        at_work = writers(dsn)
        await at_work.progress(timeout_s=30)
        before = at_work.acknowledged

        pair.first.stop("immediate")
        await promote(pair.second)
        await at_work.progress()
        await at_work.stop()
        kept = await all_is_true(pair.second)
        print(f"{len(before - kept)} of {len(before)} writes acknowledged before the crash are lost")
        await a_ring_wakes_them(pair.second, count=2)

        rejoin(pair.first, pair.second)
        await follows(pair.second)
        again = writers(dsn)
        await again.progress()
        assert await sessions_of_daemons(pair.first) == 0, "somebody works against a standby"
        pair.second.stop("fast")  # sends all it has to its standby first
        await promote(pair.first)
        await again.progress()
        await again.stop()
        assert again.acknowledged <= await all_is_true(pair.first)
        await a_ring_wakes_them(pair.first, count=2)
        async with session(pair.first) as db:
            assert await db.fetchval("select count(*) from outbox.batch where started_at > pg_postmaster_start_time()")
        for daemon in (one, other):
            daemon.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(daemon.wait, 20) == 0


async def test_what_the_standby_did_not_get_is_lost_whole_and_the_rest_is_true(
    pair: Pair, writers: Callable[..., Writers], tmp_path: Path
) -> None:
    """Entry, event and cached balance are lost together: the new primary is only older, never inconsistent."""
    with daemon_process(pair.dsn(), tmp_path / "daemon.log", **SETTINGS):
        at_work = writers(pair.dsn())
        await at_work.progress(timeout_s=30)
        await cut_off(pair.second)
        before = at_work.acknowledged
        await at_work.progress()
        await at_work.stop()
        unseen = at_work.acknowledged - before
        pair.first.stop("immediate")
        await promote(pair.second)
        async with session(pair.second) as db:
            assert await audit(db) == []
            await record(db, ACCOUNTS[0], 7)
        kept = await all_is_true(pair.second)
        assert unseen
        assert len(unseen & kept) <= 3, "one of each writer may have been under way"
        assert 7 in kept


async def test_with_synchronous_replication_every_acknowledged_write_is_there(
    pair: Pair, writers: Callable[..., Writers], tmp_path: Path
) -> None:
    async with session(pair.first) as db:
        await db.execute("alter system set synchronous_standby_names = '*'")
        await db.execute("select pg_reload_conf()")
        with daemon_process(pair.dsn(), tmp_path / "daemon.log", **SETTINGS):
            at_work = writers(pair.dsn())
            await at_work.progress(timeout_s=30)
            await cut_off(pair.second)

            async def writers_wait() -> bool:
                query = "select count(*) >= 3 from pg_stat_activity where wait_event = 'SyncRep'"
                return bool(await db.fetchval(query))

            await eventually(writers_wait)
            pair.first.stop("immediate")
            await promote(pair.second)
            await at_work.progress()
            await at_work.stop()
            assert at_work.acknowledged <= await all_is_true(pair.second)
            await a_ring_wakes_them(pair.second, count=1)


async def test_a_primary_that_is_made_read_only_without_a_restart_is_left(pair: Pair, tmp_path: Path) -> None:
    """As some failover tools fence: its sessions stay, and would wait there for ever."""
    with daemon_process(pair.dsn(), tmp_path / "daemon.log", **SETTINGS):
        await a_ring_wakes_them(pair.first, count=1)
        await follows(pair.first)
        async with session(pair.first) as db:
            await db.execute("alter system set default_transaction_read_only = on")
            await db.execute("select pg_reload_conf()")
        await promote(pair.second)
        await a_ring_wakes_them(pair.second, count=1)
        assert await sessions_of_daemons(pair.first) <= 1, "only the housekeeper, until its next round, may be left"


async def test_a_daemon_passes_over_a_standby_that_is_named_first_or_by_a_name_that_is_late(
    pair: Pair, tmp_path: Path
) -> None:
    """The DNS of a failover is late: a daemon must neither work on the standby, nor give up, nor keep the address."""
    log = tmp_path / "daemon.log"
    with daemon_process(Pair(pair.second, pair.first).dsn(), log, **SETTINGS):
        await a_ring_wakes_them(pair.first, count=1)
        assert await sessions_of_daemons(pair.second) == 0

    name = pair.first.home / "name"
    name.symlink_to(pair.second.home)
    dsn = pair.first.dsn().replace(pair.first.home.name, f"{pair.first.home.name}%2Fname")
    with daemon_process(dsn, log, **SETTINGS):

        async def was_refused() -> bool:
            return "is read-only (a standby" in log.read_text()

        await eventually(was_refused, timeout_s=30)
        name.unlink()
        name.symlink_to(pair.first.home)
        await a_ring_wakes_them(pair.first, count=1)
