"""Connections, and what their loss looks like."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlsplit

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from daemon.errors import Blame, ConfigurationError, DatabaseRefuses, DatabaseUnavailable, blame
from daemon.redaction import redact
from daemon.settings import Settings

# What asyncpg and the operating system raise when the server, or the way to it, is gone.
CONNECTION_ERRORS = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)
# Refusals that at a start mean a wrong DSN; beneath a running daemon, a password or a grant that is being changed.
_REFUSALS = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ClientConfigurationError,
)

DATABASE_ERRORS = (asyncpg.PostgresError, *CONNECTION_ERRORS)

_REMEDIES: dict[type[BaseException], str] = {
    asyncpg.TooManyConnectionsError: "It is up, but all its connections are taken: end idle ones, or raise "
    "max_connections (or the limit of the role or the database).",
    asyncpg.CannotConnectNowError: "It is starting up, recovering or shutting down: recalcd waits.",
}


def blame_of(error: BaseException) -> Blame:
    """Say whose fault an error is that a statement raised."""
    if isinstance(error, asyncpg.InvalidCachedStatementError):  # DDL outdated the plan; asyncpg has dropped it by now
        return Blame.CONTENTION
    return blame(sqlstate_of(error))


def sqlstate_of(error: BaseException) -> str | None:
    """Return the server's SQLSTATE; None when the connection broke without a word."""
    if isinstance(error, asyncpg.PostgresError) and not isinstance(error, asyncpg.PostgresConnectionError):
        return str(error.sqlstate)
    return None


async def connect(settings: Settings, *, application_name: str, read_write: bool = False) -> asyncpg.Connection:
    """Open a connection, within settings.connect_timeout_s.

    read_write refuses a standby, and with several hosts in the URI finds the primary among them.
    Raises DatabaseUnavailable, which waiting may cure; DatabaseRefuses, which hardly at a start; ConfigurationError.
    """
    dsn = _dsn(settings)
    named = "target_session_attrs" in parse_qs(urlsplit(dsn).query)
    try:
        opened: asyncpg.Connection = await asyncpg.connect(
            dsn,
            timeout=settings.connect_timeout_s,
            server_settings={"application_name": application_name},
            target_session_attrs=SessionAttribute.read_write if read_write and not named else None,
        )
    except _REFUSALS as error:
        raise DatabaseRefuses(f"The database refuses us: {_sentence(error)} Correct RECALCD_DATABASE_URL.") from None
    except asyncpg.TargetServerAttributeNotMatched:
        raise DatabaseUnavailable(
            "The database is read-only (a standby, or default_transaction_read_only); recalcd needs the primary."
        ) from None
    except DATABASE_ERRORS as error:
        remedy = _REMEDIES.get(type(error), "Is it running, and is RECALCD_DATABASE_URL right?")
        raise DatabaseUnavailable(f"No connection to the database: {_sentence(error)} {remedy}") from None
    return opened


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
