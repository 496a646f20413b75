"""What a run finds: a Postgres that may be crashed, and in it a database whose cached rows can be checked."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import asyncpg
from crash_process import Launcher, launching
from engine import GATE, LEDGER, drifted, make_ledger
from oracle import drift
from school import School, found
from servers import TestServer
from waiting import eventually

from daemon.database import close
from daemon.embedded import EmbeddedPostgres, embedded_postgres

SERVER_SETTINGS = {
    "fsync": "off",  # Postgres is crashed, never the machine
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "max_wal_senders": 0,
    "max_connections": 40,
    "autovacuum_naptime": "5s",  # rows come and go by the thousand
}
INNOCENT = ("a", "b", "d", "e", "f")
GUILTY = "c"
"""The key whose recalculation fails, where one does."""
KEYS = tuple(sorted((*INNOCENT, GUILTY)))

_AT_GATE = "perform ledger.stop_at_gate();"
_CALLED = f"perform nextval('ledger.call_count'); {_AT_GATE} perform ledger.make_trouble(p_keys);"
_FORGET = """
delete from outbox.event; delete from outbox.failure; delete from outbox.suspect; delete from outbox.drift;
delete from outbox.audit; delete from outbox.batch; delete from outbox.job_key; delete from outbox.job;
delete from outbox.daemon; update outbox.topic set batch_keys = 500, paused_at = null, paused_reason = null;
"""


class Subject(Protocol):
    """A topic, its source and its cached rows."""

    topic: str
    has_gate: bool
    """Whether its procedure can be stopped inside a call."""

    async def make(self, db: asyncpg.Connection) -> None:
        """Make it in a migrated database."""

    async def reset(self, db: asyncpg.Connection) -> None:
        """Make the cached rows true."""

    async def write(self, db: asyncpg.Connection) -> None:
        """Change every key, as an application does: with its events."""

    async def forget_to_write(self, db: asyncpg.Connection) -> None:
        """Change every key, but leave out the events: what is cached is stale, and only a recalculation mends it."""

    async def stale(self, db: asyncpg.Connection) -> list[str]:
        """Return what is cached and not true, by an account independent of the procedure."""

    async def ends_sessions(self, db: asyncpg.Connection) -> bool:
        """Tell whether its procedure ends its own backend, so that nobody may be there to be ended from outside."""


class Ledger:
    """Accounts whose procedure stops at a gate, and fails, or ends its own backend, for keys in ledger.trouble."""

    topic = LEDGER
    has_gate = True

    async def make(self, db: asyncpg.Connection) -> None:
        await make_ledger(db, (_AT_GATE, _CALLED))
        await db.execute(f"""
            create table ledger.trouble (account text primary key, kind text not null);
            create function ledger.make_trouble(p_keys text[]) returns void language plpgsql as $$
            declare
                v_kind text := (select t.kind from ledger.trouble as t where t.account = any (p_keys) limit 1);
            begin
                case v_kind
                    when 'raise' then raise exception 'no' using errcode = '22012';
                    when 'gone' then raise exception 'no such routine' using errcode = 'RC004';
                    when 'end' then perform pg_terminate_backend(pg_backend_pid());
                    else null;
                end case;
            end $$;
            create function ledger.list_keys(p_after text, p_limit integer) returns setof text language sql stable as $$
                select distinct e.account from ledger.entry as e where e.account > coalesce(p_after, '')
                order by 1 limit p_limit
            $$;
            select outbox.set_topic('{LEDGER}', p_list_keys => 'ledger.list_keys');
            do $$ begin execute format('alter database %I set ledger.gate = on', current_database()); end $$;
        """)

    async def reset(self, db: asyncpg.Connection) -> None:
        await db.execute("delete from ledger.entry; delete from ledger.balance; delete from ledger.trouble")
        await db.execute("insert into ledger.entry (account, amount) select unnest($1::text[]), 1", KEYS)
        await db.execute("insert into ledger.balance select account, amount, 1 from ledger.entry")

    async def write(self, db: asyncpg.Connection) -> None:
        await db.execute("select ledger.record(k, 2) from unnest($1::text[]) as k", KEYS)

    async def forget_to_write(self, db: asyncpg.Connection) -> None:
        await db.execute("insert into ledger.entry (account, amount) select unnest($1::text[]), 3", KEYS)

    async def stale(self, db: asyncpg.Connection) -> list[str]:
        return await drifted(db)

    async def ends_sessions(self, db: asyncpg.Connection) -> bool:
        return bool(await db.fetchval("select exists (select from ledger.trouble where kind = 'end')"))


@dataclass
class Reports:
    """The report application that ships with recalcd, with three pupils."""

    topic: str = "reports.student"
    has_gate: bool = False
    _school: School | None = None
    _assignment: Any = None

    async def make(self, db: asyncpg.Connection) -> None:
        self._school = await found(db, pupils=3, groups=1, units=1, cohorts=1)
        self._assignment = await self._school.assign()

    async def reset(self, db: asyncpg.Connection) -> None:
        assert self._school
        self._school.db = db  # after a crash, another one
        await self._school.recalculate()

    async def write(self, db: asyncpg.Connection) -> None:
        assert self._school
        for number, pupil in enumerate(self._school.pupils):
            score = "select school.record_feedback($1, $2, $3, 'well done')"
            await db.execute(score, self._assignment, pupil, (50 + number) / 100)

    async def forget_to_write(self, db: asyncpg.Connection) -> None:
        assert self._school
        await self.write(db)
        await db.execute("delete from outbox.event")
        await db.execute("update school.feedback set score = 1 - score")

    async def stale(self, db: asyncpg.Connection) -> list[str]:
        return await drift(db)

    async def ends_sessions(self, _db: asyncpg.Connection) -> bool:
        return False


@dataclass
class World:
    """One database on a server that may be crashed, and what can be done to both."""

    server: EmbeddedPostgres
    launcher: Launcher
    databases: TestServer
    database: str
    subject: Subject
    told: Counter[str] = field(default_factory=Counter)
    """How often readers were notified of each key, since the last reset."""
    catalogs: dict[str, str] = field(default_factory=dict)
    """What the catalog was, for each state of the books that a migration passed undisturbed; both as digests."""
    _db: asyncpg.Connection | None = None
    _is_gate_closed: bool = False

    @property
    def dsn(self) -> str:
        return self.server.dsn(self.database)

    @property
    def db(self) -> asyncpg.Connection:
        """The test's own connection; another one after a crash."""
        assert self._db is not None
        return self._db

    async def connect(self) -> None:
        """Connect, and listen to what readers are told."""
        self._db = await asyncpg.connect(self.dsn, server_settings={"application_name": "test"})
        await self._db.add_listener("recalculated", self._hear)

    async def disconnect(self) -> None:
        """Close the connection, if the server left it open."""
        await close(self.db)

    async def renew(self, template: str) -> None:
        """Begin again, with a copy of another database."""
        await self.disconnect()
        await self.databases.replace(self.database, template)
        await self.connect()

    def _hear(self, *notification: Any) -> None:
        self.told.update(json.loads(notification[-1])["keys"])

    async def reset(self) -> None:
        """Forget what earlier runs left; all is true and nothing is pending."""
        await self.db.execute(_FORGET)
        await self.subject.reset(self.db)
        self.told.clear()

    async def run(self, *command: str, **environment: str) -> int:
        """Run a command to its end, undisturbed; return its exit code."""
        running = await self.launcher.start(command, self.environment(**environment), watched=False)
        async for stop in running.stops():
            raise AssertionError(f"unwatched, but it stopped at {stop}")
        return running.exit_code

    def environment(self, **more: str) -> dict[str, str]:
        """Return the settings of a run: one worker, and no lingering, so that its points come in one order."""
        settings = {"database_url": self.dsn, "workers": "1", "linger_s": "0", "retry_max_s": "0.05"} | more
        return {f"RECALCD_{name.upper()}": value for name, value in settings.items()}

    async def close_gate(self) -> None:
        """Stop the ledger's procedure inside its next call."""
        await self.db.execute("select pg_advisory_lock($1)", GATE)
        self._is_gate_closed = True

    async def open_gate(self) -> None:
        """Let it go on."""
        if self._is_gate_closed:
            self._is_gate_closed = False
            await self.db.execute("select pg_advisory_unlock($1)", GATE)

    async def call_count(self) -> int:
        """Count the calls of the ledger's procedure, whatever became of them."""
        count: int = await self.db.fetchval("select last_value + is_called::integer from ledger.call_count")
        return count

    async def until_at_gate(self, backend_pid: int) -> None:
        """Wait until that backend stands at the gate; or is done: this time there was nothing to call."""

        async def stands() -> bool:
            query = (
                "select exists (select from pg_locks where pid = $1 and locktype = 'advisory' and not granted)"
                " or exists (select from pg_stat_activity where pid = $1 and state = 'idle')"
            )
            return bool(await self.db.fetchval(query, backend_pid))

        await eventually(stands)

    async def terminate(self, backend_pid: int) -> None:
        """End a backend as an administrator would, and wait until it is gone; a key may have been faster."""
        if not await self.db.fetchval("select pg_terminate_backend($1, 10000)", backend_pid):
            assert await self.subject.ends_sessions(self.db), "it would not go, or was gone already"
            is_there = "select exists (select from pg_stat_activity where pid = $1)"
            assert not await self.db.fetchval(is_there, backend_pid), "it would not go"

    async def crash(self) -> None:
        """Stop Postgres as a power cut does, and start it again."""
        self.server.stop("immediate")
        self.server.start()
        await self.disconnect()
        await self.connect()

    async def until_alone(self) -> None:
        """Wait until no session of ours is left, and with them every key lock: the next daemon would wait for it."""

        async def is_alone() -> bool:
            query = (
                "select count(*) = 0 from pg_stat_activity "
                "where datname = current_database() and application_name like 'recalcd %'"
            )
            return bool(await self.db.fetchval(query))

        await eventually(is_alone)
        held = await self.db.fetchval(
            "select count(*) from pg_locks where locktype = 'advisory' and pid <> pg_backend_pid() "
            "and database = (select oid from pg_database where datname = current_database())"
        )
        assert held == 0, "a dead daemon holds a lock"


@dataclass
class Site:
    """Where worlds are made: one server and one launcher."""

    server: EmbeddedPostgres
    launcher: Launcher
    databases: TestServer

    @asynccontextmanager
    async def world(self, subject: Subject) -> AsyncIterator[World]:
        """Yield a new database with this subject in it."""
        async with self.databases.database("crash") as dsn:
            world = World(self.server, self.launcher, self.databases, dsn.split("/")[3].split("?")[0], subject)
            await world.connect()
            await subject.make(world.db)
            limits = "max_attempts = 1, retry_base_s = 3600, retry_max_s = 3600"
            await world.db.execute(f"update outbox.topic set {limits}")
            await world.db.execute("select outbox.make_partitions(7)")
            try:
                yield world
            finally:
                await world.disconnect()


@contextmanager
def breaking_ground(output: Path) -> Iterator[Site]:
    """Start a server of our own, and a launcher whose runs write to `output`."""
    with embedded_postgres(settings=SERVER_SETTINGS) as server, launching(output) as launcher:
        databases = TestServer(server.dsn(), "crash_template")
        asyncio.run(databases.migrate_template())
        yield Site(server, launcher, databases)
