"""The PostgreSQL of a test run: one server, and in it one migrated database that every test gets a copy of."""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import count
from urllib.parse import urlsplit

import asyncpg

from daemon import migrations
from daemon.embedded import INSTALLATIONS, embedded_postgres

Connect = Callable[..., Awaitable[asyncpg.Connection]]
"""What the fixture `connect` is."""

Rings = Callable[[], Awaitable[list[str]]]
"""What the fixture `rings` is: returns the topics that were rung for up to now."""

Psql = Callable[..., str]
"""What the fixture `psql` is."""

SETTINGS = {
    "fsync": "off",  # the tests end servers, never the machine
    "full_page_writes": "off",
    "max_connections": 200,
    "max_prepared_transactions": 10,
    "track_commit_timestamp": "on",
}
"""All else is as shipped, synchronous commits included."""

PLACES = (*(str(version) for version in INSTALLATIONS), "docker")
"""What `--pg` may name, besides a URI."""

_numbers = count(1)


_RUN = re.compile(r"recalcd_test_[0-9a-f]{12}")
"""What the databases of a run are called, and some more."""


def _daemon_login(database: str) -> str:
    """Name the login of the daemons in this database: one for each run, since a server may be shared."""
    match = _RUN.match(database)
    return f"{match[0] if match else 'recalcd_test'}_daemon"


async def add_daemon_login(connection: asyncpg.Connection) -> None:
    """Make the login that daemons have in the tests: it may do what recalcd_daemon may, and no more."""
    login = _daemon_login(await connection.fetchval("select current_database()"))
    await connection.execute(f"create role {login} login password '{login}' in role recalcd_daemon")


def as_daemon(dsn: str) -> str:
    """Return the DSN by which a daemon reaches the same database."""
    place = urlsplit(dsn)
    login = _daemon_login(place.path[1:])
    return place._replace(netloc=f"{login}:{login}@{place.netloc.rpartition('@')[2]}").geturl()


@dataclass(frozen=True)
class TestServer:
    """Where the databases of a run are, and which one they are copied from."""

    __test__ = False

    admin_dsn: str
    template: str

    def dsn(self, database: str) -> str:
        return urlsplit(self.admin_dsn)._replace(path=f"/{database}").geturl()

    @asynccontextmanager
    async def database(self, worker: str, *, template: str | None = None) -> AsyncIterator[str]:
        """Copy a database, the migrated one unless told otherwise; yield the copy's DSN, and drop it with all in it."""
        name = f"{self.template}_{worker}_{next(_numbers)}"
        await self._copy(template or self.template, name)
        try:
            yield self.dsn(name)
        finally:
            await self._administer(f"drop database {name} with (force)")

    async def replace(self, name: str, template: str) -> None:
        """Put a copy of another database in the place of this one."""
        await self._administer(f"drop database {name} with (force)")
        await self._copy(template, name)

    async def _copy(self, template: str, name: str) -> None:
        # Copying files beats copying blocks four to one on a server that need not wait for its disk.
        await self._administer(f"create database {name} template {template} strategy file_copy")

    async def migrate_template(self) -> None:
        await self._administer(f"create database {self.template}")
        connection = await asyncpg.connect(self.dsn(self.template))
        try:
            await migrations.up(connection)
            await add_daemon_login(connection)
        finally:
            await connection.close()

    async def drop_template(self) -> None:
        await self._administer(f"drop database if exists {self.template} with (force)")
        await self._administer(f"drop role if exists {_daemon_login(self.template)}")

    async def _administer(self, command: str) -> None:
        connection = await asyncpg.connect(self.admin_dsn)
        try:
            await connection.execute(command)
        finally:
            await connection.close()


@contextmanager
def running(where: str, image: str) -> Iterator[TestServer]:
    """Provide a server while the block runs: an embedded one by version, `docker`, or whatever a URL leads to."""
    with _dsn(where, image) as dsn:
        server = TestServer(dsn, f"recalcd_test_{secrets.token_hex(6)}")
        try:
            asyncio.run(server.migrate_template())
            yield server
        finally:
            asyncio.run(server.drop_template())


@contextmanager
def _dsn(where: str, image: str) -> Iterator[str]:
    if where.isdecimal():
        with embedded_postgres(version=int(where), settings=SETTINGS) as server:
            yield server.dsn()
    elif where == "docker":
        with _docker(image) as dsn:
            yield dsn
    else:
        yield where


@contextmanager
def _docker(image: str) -> Iterator[str]:
    from testcontainers.community.postgres import PostgresContainer  # noqa: PLC0415  # only here, and slow to import

    container = PostgresContainer(image, driver=None)
    container.with_command(["postgres", *(f"--{name}={value}" for name, value in SETTINGS.items())])
    with container:
        yield container.get_connection_url()
