"""A real PgBouncer, started by hand on the loopback, in front of the test's server."""

import asyncio
import contextlib
import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import asyncpg
import pytest
from proxy import address_of
from waiting import eventually

POOL_SIZE = 4
PoolMode = Literal["transaction", "session"]


@dataclass(frozen=True)
class Pooler:
    """Where it listens, for the test's database."""

    dsn: str

    async def connect(self) -> asyncpg.Connection:
        """Connect as an application does that knows of the pooler."""
        return await asyncpg.connect(self.dsn, statement_cache_size=0)

    @contextlib.asynccontextmanager
    async def all_sessions(self) -> AsyncIterator[dict[int, asyncpg.Connection]]:
        """Hold every session of the pool, by its pid, in a transaction of a client of its own."""
        held = {}
        try:
            for _ in range(POOL_SIZE):
                client = await self.connect()
                await client.execute("begin")
                held[await client.fetchval("select pg_backend_pid()")] = client
            yield held
        finally:
            for client in held.values():
                await client.close()

    async def ask_all_sessions(self, query: str) -> set[object]:
        """Return what an array of the query holds in any of the sessions."""
        async with self.all_sessions() as held:
            return {each for client in held.values() for each in await client.fetchval(query)}


def program() -> str:
    """Return its path; skip the test where it is missing."""
    path = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if path is None:
        pytest.skip("PgBouncer is missing: apt-get install pgbouncer")
    return path


def tracks_prepared_statements() -> bool:
    """Whether it is 1.21 or later."""
    told = subprocess.run([program(), "--version"], capture_output=True, check=True, text=True).stdout
    found = re.search(r"PgBouncer (\d+)\.(\d+)", told)
    return found is not None and (int(found[1]), int(found[2])) >= (1, 21)


@contextlib.asynccontextmanager
async def pgbouncer(dsn: str, mode: PoolMode, **options: object) -> AsyncIterator[Pooler]:
    """Run it while the block runs."""
    place, port = urlsplit(dsn), _free_port()
    user = place.username or "postgres"
    server = await address_of(dsn)
    options = {"listen_port": port, "pool_mode": mode, "default_pool_size": POOL_SIZE} | options
    with _running(_servers(server), f'"{user}" "{place.password or ""}"', options) as process:

        async def listens() -> bool:
            assert process.poll() is None, "PgBouncer ended; it says why above"
            return await _is_open(port)

        await eventually(listens)
        yield Pooler(f"postgresql://{user}@127.0.0.1:{port}{place.path}?sslmode=disable")


@contextlib.contextmanager
def _running(servers: str, users: str, options: dict[str, object]) -> Iterator["subprocess.Popen[bytes]"]:
    """Not as root, which it refuses; so its files lie where nobody can read them."""
    with tempfile.TemporaryDirectory(prefix="recalcd-pgbouncer-") as folder:
        Path(folder).chmod(0o755)
        ini, auth = Path(folder, "pgbouncer.ini"), Path(folder, "users.txt")
        auth.write_text(users + "\n")
        ini.write_text(_configuration(servers, {"auth_file": auth} | options))
        identity: dict[str, Any] = {"user": pwd.getpwnam("nobody").pw_uid} if os.geteuid() == 0 else {}
        process = subprocess.Popen([program(), "--quiet", str(ini)], cwd="/", **identity)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(10)


def _servers(address: str | tuple[str, int]) -> str:
    if isinstance(address, tuple):
        return f"* = host={address[0]} port={address[1]}"
    folder, _, port = address.rpartition("/.s.PGSQL.")
    return f"* = host={folder} port={port}"


def _configuration(servers: str, options: dict[str, object]) -> str:
    always = {"listen_addr": "127.0.0.1", "unix_socket_dir": "", "auth_type": "trust", "max_client_conn": 200}
    settings = "\n".join(f"{name} = {value}" for name, value in (always | options).items())
    return f"[databases]\n{servers}\n[pgbouncer]\n{settings}\n"


async def _is_open(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
