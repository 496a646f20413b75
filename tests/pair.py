"""A primary and its streaming standby, and what a failover does to them."""

import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlencode

import asyncpg
from waiting import eventually

from daemon import embedded
from daemon.embedded import PORT, EmbeddedPostgres, create

SETTINGS = {"fsync": "off", "max_connections": 60}
"""The tests end servers, never the machine. Full page writes stay on: pg_rewind needs them."""


@dataclass
class Pair:
    """Two servers, of which one is the primary at a time."""

    first: EmbeddedPostgres
    second: EmbeddedPostgres

    def dsn(self, **options: str) -> str:
        """Return a URI that names both: to find out which is the primary is the client's part."""
        hosts = {"host": f"{self.first.home},{self.second.home}", "port": f"{PORT},{PORT}"}
        return f"postgresql://postgres@/postgres?{urlencode(hosts | options)}"


def make_standby(standby: EmbeddedPostgres, primary: EmbeddedPostgres) -> None:
    """Copy a running primary, and start following it."""
    if os.geteuid() == 0:
        embedded._give_to_nobody(standby.home, standby.data)
    run(primary, "pg_basebackup", f"--dbname={primary.dsn()}", f"--pgdata={standby.data}", "-R", "-c", "fast", "-N")
    standby.initialise()
    standby.start()


def rejoin(former: EmbeddedPostgres, primary: EmbeddedPostgres) -> None:
    """Let a stopped primary follow its successor: take back what only it has, and start it as a standby."""
    source = f"--source-server={primary.dsn()}"
    run(former, "pg_rewind", f"--target-pgdata={former.data}", source, "--write-recovery-conf", "--no-sync")
    former.start()


async def promote(standby: EmbeddedPostgres) -> None:
    """Make it the primary."""
    async with session(standby) as db:
        assert await db.fetchval("select pg_promote(true, 30)")


async def follows(primary: EmbeddedPostgres) -> None:
    """Wait until a standby streams from it and has all there is."""

    async def is_level() -> bool:
        query = "select exists (select from pg_stat_replication where replay_lsn = pg_current_wal_lsn())"
        async with session(primary) as db:
            return bool(await db.fetchval(query))

    await eventually(is_level, timeout_s=30)


async def cut_off(standby: EmbeddedPostgres) -> None:
    """Take its primary away from a standby, which goes on as it is."""
    async with session(standby) as db:
        await db.execute("alter system set primary_conninfo = ''")
        await db.execute("select pg_reload_conf()")

        async def receives_nothing() -> bool:
            return not await db.fetchval("select exists (select from pg_stat_wal_receiver)")

        await eventually(receives_nothing)


@asynccontextmanager
async def session(server: EmbeddedPostgres) -> AsyncIterator[asyncpg.Connection]:
    """Open a session on this server and no other."""
    opened = await asyncpg.connect(server.dsn(), timeout=10)
    try:
        yield opened
    finally:
        opened.terminate()


@asynccontextmanager
async def running_pair() -> AsyncIterator[Pair]:
    """Run both while the block runs; the first is the primary."""
    pair = Pair(create(settings=SETTINGS), create(settings=SETTINGS))
    try:
        pair.first.initialise()
        pair.first.start()
        make_standby(pair.second, pair.first)
        await follows(pair.first)
        yield pair
    finally:
        for server in (pair.second, pair.first):
            server.stop("immediate")
            shutil.rmtree(server.home)


def run(server: EmbeddedPostgres, program: str, *arguments: str) -> None:
    """Run a program of the server's installation as the server's user."""
    command = [str(server._bin_to_run / program), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, text=True, **server._surroundings)
    assert done.returncode == 0, done.stdout
