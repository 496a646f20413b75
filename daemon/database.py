"""Connections, and what their loss looks like."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlsplit

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from daemon.errors import ConfigurationError, DatabaseUnavailable
from daemon.redaction import redact
from daemon.settings import Settings

IDLE_S, INTERVAL_S, COUNT = 15, 5, 3
"""Keepalives: a peer that has vanished is given up after 30 s, not after the two hours of the kernels."""
GIVE_UP_S = IDLE_S + COUNT * INTERVAL_S
# Asked for while connecting, not by SET, which would stay behind in a session that a pooler hands to the next client.
_SERVER_SETTINGS = {
    "tcp_keepalives_idle": str(IDLE_S),
    "tcp_keepalives_interval": str(INTERVAL_S),
    "tcp_keepalives_count": str(COUNT),
    "tcp_user_timeout": f"{GIVE_UP_S}s",  # while an answer waits to be acknowledged, no keepalive is sent
    "client_connection_check_interval": f"{INTERVAL_S}s",  # or a killed daemon's call would keep its keys to its end
}
# What asyncpg and the operating system raise when the server, or the way to it, is gone.
CONNECTION_ERRORS = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)
# Refusals that no waiting will mend: the DSN is wrong, or the rights are.
_HOPELESS = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ClientConfigurationError,
)

DATABASE_ERRORS = (asyncpg.PostgresError, *CONNECTION_ERRORS)
BACKEND_PID = "select pg_backend_pid()"
SHARING_TRIES = 3


def sqlstate_of(error: BaseException) -> str | None:
    """Return the server's SQLSTATE; None when the connection broke without a word."""
    if isinstance(error, asyncpg.PostgresError) and not isinstance(error, asyncpg.PostgresConnectionError):
        return str(error.sqlstate)
    return None


def had_last_words(error: BaseException) -> bool:
    """Say whether the server ended the session itself, with a FATAL error: asyncpg keeps that as the cause."""
    return any(sqlstate_of(each) is not None for each in (error, error.__cause__) if each)


async def connect(settings: Settings, *, application_name: str, read_write: bool = False) -> asyncpg.Connection:
    """Open a connection, within settings.connect_timeout_s.

    read_write refuses a standby, and with several hosts in the URI finds the primary among them.
    Raises DatabaseUnavailable, which waiting may cure, or ConfigurationError, which it won't.
    """
    try:
        opened = await _open(settings, application_name, read_write=read_write)
    except _HOPELESS as error:
        raise ConfigurationError(f"The database refuses us: {_sentence(error)} Correct RECALCD_DATABASE_URL.") from None
    except asyncpg.TargetServerAttributeNotMatched:
        raise DatabaseUnavailable(
            "The database is read-only (a standby, or default_transaction_read_only); recalcd needs the primary."
        ) from None
    except DATABASE_ERRORS as error:
        raise DatabaseUnavailable(
            f"No connection to the database: {_sentence(error)} Is it running, and is RECALCD_DATABASE_URL right?"
        ) from None
    _keep_alive(opened)
    return opened


async def _open(settings: Settings, application_name: str, *, read_write: bool) -> asyncpg.Connection:
    """Connect; through PgBouncer, without what it refuses and what it can't serve, in whichever mode it may be."""
    dsn = _dsn(settings)
    named = "target_session_attrs" in parse_qs(urlsplit(dsn).query)
    attributes = SessionAttribute.read_write if read_write and not named else None
    name = {"application_name": application_name}
    try:
        return await asyncpg.connect(
            dsn,
            timeout=settings.connect_timeout_s,
            server_settings=name | _SERVER_SETTINGS,
            target_session_attrs=attributes,
        )
    except asyncpg.ProtocolViolationError as error:
        if "unsupported startup parameter" not in str(error):
            raise
    return await asyncpg.connect(
        dsn,
        timeout=settings.connect_timeout_s,
        server_settings=name,
        target_session_attrs=attributes,
        statement_cache_size=0,  # a prepared statement may not be there next time
    )


def _keep_alive(opened: asyncpg.Connection) -> None:
    """Notice a peer that has vanished, as libpq does; asyncpg neither does, nor offers a way to the socket."""
    link = opened._transport.get_extra_info("socket")  # type: ignore[attr-defined]  # noqa: SLF001
    if link.family == socket.AF_UNIX:
        return
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", IDLE_S),
        ("TCP_KEEPINTVL", INTERVAL_S),
        ("TCP_KEEPCNT", COUNT),
        ("TCP_USER_TIMEOUT", GIVE_UP_S * 1000),
    ):
        if hasattr(socket, name):  # each is missing from some kernel
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


@contextlib.asynccontextmanager
async def connection(
    settings: Settings, *, application_name: str, read_write: bool = False
) -> AsyncIterator[asyncpg.Connection]:
    """Open a connection for a while."""
    opened = await connect(settings, application_name=application_name, read_write=read_write)
    try:
        yield opened
    finally:
        await close(opened)


async def is_shared(one: asyncpg.Connection, other: asyncpg.Connection) -> bool:
    """Whether two clients are served by one session, as only a transaction pooler does.

    One client alone can't tell. But a session that answered the one while it is bound to a transaction of the other is
    shared, and so is one that changes between two statements.
    """
    mine = {await one.fetchval(BACKEND_PID) for _ in range(SHARING_TRIES)}
    async with other.transaction():
        theirs = await other.fetchval(BACKEND_PID)
        if theirs not in mine:
            mine.add(await one.fetchval(BACKEND_PID))
    return len(mine) > 1 or theirs in mine


async def need_own_session(opened: asyncpg.Connection, settings: Settings) -> None:
    """Refuse a session that other clients get, too: a lock or a LISTEN would be left behind in it for good."""
    async with connection(settings, application_name="recalcd probe") as other:
        if await is_shared(opened, other):
            raise ConfigurationError(
                "A transaction pooler is in between, and this command needs a session of its own. "
                "Let RECALCD_DATABASE_URL lead to a direct or session-pooled connection."
            )


async def close(opened: asyncpg.Connection) -> None:
    """Close politely if the server still answers; else drop the socket."""
    try:
        await opened.close(timeout=2)
    except DATABASE_ERRORS:
        opened.terminate()
    except asyncio.CancelledError:
        opened.terminate()
        raise


@contextlib.asynccontextmanager
async def transaction(opened: asyncpg.Connection) -> AsyncIterator[None]:
    """Run a transaction at read committed, said aloud, since a role's default may differ.

    asyncpg's own manager puts an InterfaceError in the place of the error that broke the connection, and with it goes
    the reason; this one keeps it. A cancelled transaction is left to the closing of its connection.
    """
    await opened.execute("begin isolation level read committed")
    try:
        yield
    except Exception:
        if not opened.is_closed():
            with contextlib.suppress(*CONNECTION_ERRORS):
                await opened.execute("rollback")
        raise
    await opened.execute("commit")


@contextlib.asynccontextmanager
async def rehearsal(opened: asyncpg.Connection) -> AsyncIterator[None]:
    """Run a transaction at read committed whose work is never kept."""
    await opened.execute("begin isolation level read committed")
    try:
        yield
    finally:
        if not opened.is_closed():
            await opened.execute("rollback")


async def one_row(opened: asyncpg.Connection, query: str, *arguments: object) -> asyncpg.Record:
    """Fetch the row of a statement that always has exactly one."""
    (row,) = await opened.fetch(query, *arguments)
    return row


def _dsn(settings: Settings) -> str:
    if settings.database_url is None:
        raise ConfigurationError(
            "No database is named. Set RECALCD_DATABASE_URL to a URI such as postgresql://user@host:5432/name."
        )
    return settings.database_url.get_secret_value()


def _sentence(error: BaseException) -> str:
    text = redact(str(error) or type(error).__name__).strip()
    return text if text.endswith(".") else text + "."
