"""Which servers a connection is tried on, and for how long; and what tells a session that its server was demoted."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import asyncpg
import pytest
from pydantic import SecretStr
from servers import Connect

from daemon.database import CONNECTION_ERRORS, can_write, connect, drop, each_host
from daemon.errors import DatabaseUnavailable
from daemon.settings import Settings

NOWHERE = ("127.0.0.1", 1)
"""Nobody serves tcpmux."""


def behind(host: tuple[str, int], dsn: str) -> str:
    """Return the URI with another host before its own."""
    address, port = host
    parts = urlsplit(dsn)
    user, at, hosts = parts.netloc.rpartition("@")
    if hosts:
        return parts._replace(netloc=f"{user}{at}{address}:{port},{hosts}").geturl()
    query = dict(parse_qsl(parts.query))
    both = query | {"host": f"{address},{query['host']}", "port": f"{port},{query['port']}"}
    return parts._replace(query=urlencode(both)).geturl()


@pytest.fixture
async def hung() -> AsyncIterator[tuple[str, int]]:
    """Provide a host that takes connections, and never says a word."""
    held: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: held.append(writer), "127.0.0.1", 0)
    yield server.sockets[0].getsockname()
    for writer in held:
        writer.close()
    server.close()


@pytest.mark.parametrize(
    ("dsn", "each"),
    [
        ("postgresql://u:p@one/db", ["postgresql://u:p@one/db"]),
        ("postgresql://u@/db?host=%2Frun&port=6432", ["postgresql://u@/db?host=%2Frun&port=6432"]),
        ("postgresql://u@one:5,[::1]:6/db?sslmode=require", [
            "postgresql://u@one:5/db?sslmode=require", "postgresql://u@[::1]:6/db?sslmode=require",
        ]),
        ("postgresql://u@/db?host=/a,/b&port=5,6", [
            "postgresql://u@/db?host=%2Fa&port=5", "postgresql://u@/db?host=%2Fb&port=6",
        ]),
        ("postgresql://u@/db?host=/a,/b&port=5", [
            "postgresql://u@/db?host=%2Fa&port=5", "postgresql://u@/db?host=%2Fb&port=5",
        ]),
        ("postgresql://u@/db?host=one,two", ["postgresql://u@/db?host=one", "postgresql://u@/db?host=two"]),
    ],
)  # fmt: skip
def test_every_host_gets_a_uri_of_its_own(dsn: str, each: list[str]) -> None:
    assert each_host(dsn) == each


async def test_a_first_host_that_hangs_costs_its_own_timeout_and_no_more(
    settings: Settings, dsn: str, hung: tuple[str, int]
) -> None:
    patient = settings.model_copy(update={"database_url": SecretStr(behind(hung, dsn)), "connect_timeout_s": 1.0})
    started = time.monotonic()
    opened = await connect(patient, application_name="test")
    assert 1.0 <= time.monotonic() - started < 2 * patient.connect_timeout_s
    await opened.close()


async def test_a_first_host_that_refuses_leads_to_the_next(settings: Settings, dsn: str) -> None:
    both = settings.model_copy(update={"database_url": SecretStr(behind(NOWHERE, dsn))})
    opened = await connect(both, application_name="test", read_write=True)
    assert await opened.fetchval("select 1") == 1
    await opened.close()


async def test_when_no_host_will_have_us_the_error_says_why_of_each(settings: Settings, db: asyncpg.Connection) -> None:
    await db.execute(
        "do $$ begin execute format('alter database %I set default_transaction_read_only = on', current_database());"
        " end $$"
    )
    assert settings.database_url is not None
    dsn = behind(NOWHERE, settings.database_url.get_secret_value())
    with pytest.raises(DatabaseUnavailable, match=r"Connect call failed.* is read-only"):
        await connect(
            settings.model_copy(update={"database_url": SecretStr(dsn)}), application_name="test", read_write=True
        )


async def test_a_session_knows_that_its_server_takes_no_writes_any_more(connect: Connect) -> None:
    session = await connect()
    assert can_write(session)
    await session.execute("set default_transaction_read_only = on")
    assert not can_write(session)
    await session.execute("set default_transaction_read_only = off")
    assert can_write(session)
    await session.close()
    assert not can_write(session)


async def test_a_connection_dropped_between_two_steps_of_a_query_is_a_lost_connection(connect: Connect) -> None:
    """And not asyncpg's AttributeError, which would end the daemon."""
    connected = await connect()
    querying: Any = asyncio.create_task(connected.fetch("select $1::int", 1))
    async with asyncio.timeout(10):
        while querying._fut_waiter is None or not querying._fut_waiter.done():  # noqa: ASYNC110  # this very turn
            await asyncio.sleep(0)
    drop(connected)
    with pytest.raises(CONNECTION_ERRORS):
        await querying
