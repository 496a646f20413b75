"""Where benchmarks run: a durable server, databases on it, and the two workloads."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count

import asyncpg

from daemon import migrations, sample_school
from daemon.embedded import EmbeddedPostgres, program

SERVER_SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",  # a checkpoint in the middle of one round and not of the next would be luck
    "checkpoint_timeout": "1h",
    "track_commit_timestamp": "on",  # the clock of every freshness measured here
    "autovacuum_naptime": "5s",
}
"""Durable; all else as shipped."""

ASLEEP = """
select exists (
    select from pg_locks as l
    where l.locktype = 'advisory' and l.classid = 29283 and l.objid = 1 and l.mode = 'ExclusiveLock' and l.granted
      and l.database = (select d.oid from pg_database as d where d.datname = current_database())
) and not exists (select from outbox.batch as b where b.finished_at > clock_timestamp() - interval '0.6 s')
"""
"""Armed, and nothing was done for longer than a daemon lingers."""

LISTENERS = """
select count(*) from pg_stat_activity as a
where a.datname = current_database() and a.application_name = 'recalcd listener'
"""

NOTHING = """
create schema bench;
create procedure bench.nothing(in p_keys text[], inout p_changed_keys text[] default null) language plpgsql
as $$ begin p_changed_keys := '{}'; end $$;
create procedure bench.everything(in p_keys text[], inout p_changed_keys text[] default null) language plpgsql
as $$ begin p_changed_keys := p_keys; end $$;
"""
"""Two procedures that do no work: one says that no key changed, the other that all did."""

_numbers = count(1)


@dataclass(frozen=True)
class Bench:
    """What every benchmark is given."""

    server: EmbeddedPostgres
    rounds: int
    scale: float
    """Of all sizes; 1 is what the targets speak of."""
    beside: tuple[str, ...] = ()
    """Words of the names of the rivals to measure; none: all."""

    def scaled(self, size: int, *, least: int = 1) -> int:
        """Return a size as this run has it."""
        return max(least, round(size * self.scale))

    @asynccontextmanager
    async def database(self, template: str = "template1") -> AsyncIterator[str]:
        """Make a migrated database with the idle procedures, or copy one; yield its name; drop it with all in it."""
        name = f"bench_{next(_numbers)}"
        await self._administer(f"create database {name} template {template}")
        try:
            if template == "template1":
                async with self.connection(name) as connection:
                    await migrations.up(connection)
                    await connection.execute(NOTHING)
            yield name
        finally:
            await self._administer(f"drop database {name} with (force)")

    @asynccontextmanager
    async def connection(self, database: str) -> AsyncIterator[asyncpg.Connection]:
        """Connect for a while."""
        connection = await asyncpg.connect(self.server.dsn(database), server_settings={"application_name": "bench"})
        try:
            yield connection
        finally:
            await connection.close()

    async def _administer(self, command: str) -> None:
        async with self.connection("postgres") as connection:
            await connection.execute(command)

    async def psql(self, database: str, script: str) -> str:
        """Run a script in psql; return what it prints."""
        command = [str(program("psql")), "--no-psqlrc", "-qAt", "--set=ON_ERROR_STOP=1", self.server.dsn(database)]
        done = await asyncio.to_thread(
            subprocess.run, command, input=script, capture_output=True, check=True, text=True
        )
        return done.stdout


async def settle_down(connection: asyncpg.Connection, *tables: str) -> None:
    """Begin a round as every other: dead rows gone, rows counted, nothing left for a checkpoint to write."""
    for table in tables:
        await connection.execute(f"vacuum (analyze) {table}")
    await connection.execute("checkpoint")


async def forget_history(connection: asyncpg.Connection) -> None:
    """Forget the batches and the daemons of earlier rounds."""
    await connection.execute("truncate outbox.batch, outbox.daemon")


async def asleep(connection: asyncpg.Connection) -> None:
    """Wait until a daemon of the database sleeps."""
    while not await connection.fetchval(ASLEEP):  # noqa: ASYNC110  # what is waited for happens in the database
        await asyncio.sleep(0.005)


async def listening(connection: asyncpg.Connection, daemons: int) -> None:
    """Wait until so many daemons of the database have started."""
    while await connection.fetchval(LISTENERS) < daemons:  # noqa: ASYNC110  # what is waited for happens in the database
        await asyncio.sleep(0.02)


async def drained(connection: asyncpg.Connection) -> None:
    """Wait until no event is left of a topic that is not paused."""
    while (await connection.fetchrow("select l.ready from outbox.look() as l"))["ready"]:  # type: ignore[index]  # noqa: ASYNC110
        await asyncio.sleep(0.02)


async def add_backlog(connection: asyncpg.Connection, topic: str, *, events: int, keys: int) -> None:
    """Add events of keys drawn at random, the same ones each time, shaped like the ids of pupils."""
    for first in range(1, events + 1, 100_000):
        await connection.execute(
            "insert into outbox.event (topic, key, reason)"
            " select $1, md5((hashint4(i) & 2147483647) % $4 || $1)::uuid::text, 'bench'"
            " from generate_series($2::integer, $3::integer) as i",
            topic,
            first,
            min(first + 99_999, events),
            keys,
        )


async def add_each(connection: asyncpg.Connection, topic: str, keys: int) -> None:
    """Add one event a key."""
    await connection.execute(
        "insert into outbox.event (topic, key, reason)"
        " select $1, md5(i || $1)::uuid::text, 'bench' from generate_series(1, $2::integer) as i",
        topic,
        keys,
    )


async def load_school(connection: asyncpg.Connection, students: int, each: int = 40) -> None:
    """Load a school of the sample's proportions, with so many pieces of feedback a pupil, and hydrate its reports."""
    groups = max(1, students // 33)
    # Its rows refer to each other rightly: checking every foreign key would take most of a large school's time.
    await connection.execute("set session_replication_role = replica")
    await sample_school.load(
        connection, students=students, groups=groups, timeframes=3, units=40, feedback=each * students
    )
    await connection.execute("reset session_replication_role")
    await connection.execute("call reports.backfill_student_rollups()")
    await settle_down(connection, *SCHOOL_TABLES)


SCHOOL_TABLES = (
    "school.feedback",
    "reports.report_student_rollups",
    "reports.report_student_unit_rollups",
    "outbox.event",
)
