"""Where a soak plays: a server that may crash, a proxy before it, two applications, and a topic with poison."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import asyncpg
from engine import DAEMON_MAY, make_ledger
from proxy import Proxy, proxy_to
from servers import add_daemon_login

from daemon import migrations, sample_school
from daemon.embedded import EmbeddedPostgres, embedded_postgres
from soak.figures import Span

DATABASE = "soak"
SERVER_SETTINGS = {
    "fsync": "off",  # the soak ends servers, never the machine
    "full_page_writes": "off",
    "max_connections": 60,
    "track_commit_timestamp": "on",
    "log_min_messages": "fatal",
}
DAEMON_SETTINGS = {
    "poll_interval_s": 1,
    "heartbeat_s": 1,
    "heartbeat_timeout_s": 1,
    "connect_timeout_s": 1,
    "retry_max_s": 1,
    "stop_grace_s": 5,
}
"""Short, so that recovering from one fault is over before the next one, mostly. All else is as shipped."""

RECOVERY_S = 6.0
"""In which all is caught up after a fault: its loss is noticed (heartbeat_s, heartbeat_timeout_s), the next try waits
(retry_max_s) and connects (connect_timeout_s), the poll finds what nobody rang for (poll_interval_s); and a second."""

PUPILS, FEEDBACK = 60, 1200
ACCOUNTS = [f"account {number:02}" for number in range(40)]
FRAGILE = "fragile.value"
FRAGILE_KEYS = [f"fragile {number:02}" for number in range(20)]

_FRAGILE_SQL = f"""
create schema fragile;
{DAEMON_MAY.format("fragile")}
create table fragile.source (key text primary key, value bigint not null);
create table fragile.cache (key text primary key, value bigint not null);
create table fragile.poison (key text primary key, kind text not null);
create procedure fragile.recalculate(in p_keys text[], inout p_changed_keys text[] default null) language plpgsql as $$
begin
    perform outbox.lock_keys('{FRAGILE}', p_keys);
    case (select p.kind from fragile.poison as p where p.key = any (p_keys) order by p.key limit 1)
        when 'raises' then raise exception 'poisoned';
        when 'times out' then perform pg_sleep(60);
        when 'kills its backend' then perform pg_terminate_backend(pg_backend_pid());
        else null;
    end case;
    with written as (
        insert into fragile.cache as c (key, value)
        select s.key, s.value from fragile.source as s where s.key = any (p_keys)
        on conflict (key) do update set value = excluded.value where c.value <> excluded.value
        returning c.key
    )
    select coalesce(array_agg(w.key), '{{}}') into p_changed_keys from written as w;
end $$;
select outbox.set_topic('{FRAGILE}', 'fragile.recalculate', p_max_attempts => 3, p_retry_base_s => 1,
    p_retry_max_s => 2, p_statement_timeout_s => 1);
"""


@dataclass
class Stage:
    """What everybody needs to know, and what everybody notes."""

    server: EmbeddedPostgres
    proxy: Proxy
    seed: int
    started: float = field(default_factory=time.monotonic)
    problems: list[str] = field(default_factory=list)
    """Everything that is off, in sentences."""
    windows: list[Span] = field(default_factory=list)
    """When late recalculations are excused: from a fault until RECOVERY_S after its end."""
    open_faults: list[str] = field(default_factory=list)
    """Names of the faults that are under way."""
    epoch: float = field(default_factory=time.time)
    """The start, in seconds since 1970, as the server's clock says, too."""
    is_calm: bool = False
    """No fault may begin: those that did are given time to be recovered from."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def dsn(self) -> str:
        """The database, not by way of the proxy."""
        return self.server.dsn(DATABASE)

    def problem(self, sentence: str) -> None:
        """Note what is off."""
        self.problems.append(f"at {self.now:.0f} s: {sentence}")

    @asynccontextmanager
    async def session(self, application_name: str) -> AsyncIterator[asyncpg.Connection]:
        """Open a session past the proxy."""
        opened = await asyncpg.connect(self.dsn, timeout=5, server_settings={"application_name": application_name})
        try:
            yield opened
        finally:
            opened.terminate()


@asynccontextmanager
async def stage(seed: int) -> AsyncIterator[Stage]:
    """Set everything up; take it down again when the block ends."""
    with embedded_postgres(settings=SERVER_SETTINGS) as server:
        admin = await asyncpg.connect(server.dsn())
        await admin.execute(f"create database {DATABASE}")
        await admin.close()
        await _furnish(server.dsn(DATABASE))
        async with proxy_to(server.dsn(DATABASE)) as proxy:
            yield Stage(server, proxy, seed)


async def _furnish(dsn: str) -> None:
    db = await asyncpg.connect(dsn)
    await migrations.up(db)
    await add_daemon_login(db)
    await sample_school.load(db, students=PUPILS, groups=4, timeframes=3, units=6, feedback=FEEDBACK)
    await make_ledger(db)
    await db.execute(_FRAGILE_SQL)
    await db.executemany("insert into fragile.source (key, value) values ($1, 0)", [(key,) for key in FRAGILE_KEYS])
    await db.execute("select outbox.enqueue($1, $2::text[])", FRAGILE, FRAGILE_KEYS)
    await db.execute(
        "select outbox.enqueue('reports.student', array(select s.student_id::text from school.student as s))"
    )
    await db.close()
