"""Connections, and what their loss looks like."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlencode, urlsplit

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
    """Return the server's SQLSTATE; None when the connection broke without a word.

    Of class 08, what has no severity is asyncpg's own word for that; a procedure may raise the class, too.
    """
    if not isinstance(error, asyncpg.PostgresError):
        return None
    made_up = isinstance(error, asyncpg.PostgresConnectionError) and _severity(error) is None
    return None if made_up else str(error.sqlstate)


def ends_session(error: BaseException) -> bool:
    """Whether the session is gone with the error: it broke, or the server ended it. No procedure can raise that."""
    return sqlstate_of(error) is None or _severity(error) in ("FATAL", "PANIC")


def _severity(error: BaseException) -> str | None:
    return getattr(error, "severity_en", None)  # set only on what the server sent


async def connect(settings: Settings, *, application_name: str, read_write: bool = False) -> asyncpg.Connection:
    """Open a connection to the first host of the URI that will have us; each has settings.connect_timeout_s to answer.

    read_write refuses a standby, and so finds the primary among several hosts.
    Raises DatabaseUnavailable, which waiting may cure; DatabaseRefuses, which hardly at a start; ConfigurationError.
    """
    refusals: list[str] = []
    for dsn in each_host(_dsn(settings)):
        try:
            return await _open(dsn, settings, application_name, read_write=read_write)
        except DatabaseRefuses:
            raise
        except DatabaseUnavailable as refusal:
            refusals.append(str(refusal))
    raise DatabaseUnavailable(" ".join(dict.fromkeys(refusals)))


def each_host(dsn: str) -> list[str]:
    """Return a URI for each host of this one.

    asyncpg would try them all within one timeout: a first host that hangs, as one does that lost its power, would leave
    nothing for the others. (libpq's connect_timeout is for each host, too.)
    """
    parts = urlsplit(dsn)
    user, at, hosts = parts.netloc.rpartition("@")
    if hosts:
        return [parts._replace(netloc=f"{user}{at}{host}").geturl() for host in hosts.split(",")]
    query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    ports = query.get("port", "").split(",")
    sockets = query.get("host", "").split(",")
    if len(sockets) == 1:
        return [dsn]
    if len(ports) == 1:  # one for all
        ports *= len(sockets)
    return [
        parts._replace(query=urlencode(query | {"host": host} | ({"port": port} if port else {}))).geturl()
        for host, port in zip(sockets, ports, strict=False)
    ]


async def _open(dsn: str, settings: Settings, application_name: str, *, read_write: bool) -> asyncpg.Connection:
    try:
        opened: asyncpg.Connection = await asyncpg.connect(
            dsn,
            timeout=settings.connect_timeout_s,
            server_settings={"application_name": application_name},
            target_session_attrs=SessionAttribute.read_write if read_write else None,
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


def can_write(opened: asyncpg.Connection) -> bool:
    """Tell whether a connection still leads to a server that takes writes, by what the server last said; asks nothing.

    A server that was made read-only for a failover keeps its sessions: they must leave it to find the new primary.
    """
    if opened.is_closed():
        return False
    said = opened.get_settings()  # a pooler may not pass everything on
    return "on" not in (getattr(said, "default_transaction_read_only", ""), getattr(said, "in_hot_standby", ""))


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
async def transaction(opened: asyncpg.Connection, and_then: str = "") -> AsyncIterator[None]:
    """Run a transaction at read committed, said aloud, since a role's default may differ.

    and_then: further statements, each behind a semicolon, sent along with the commit or the rollback.

    asyncpg's own manager puts an InterfaceError in the place of the error that broke the connection, and with it goes
    the reason; this one keeps it. A cancelled transaction is left to the closing of its connection.
    """
    await opened.execute("begin isolation level read committed")
    try:
        yield
    except Exception:
        if not opened.is_closed():
            with contextlib.suppress(*CONNECTION_ERRORS):
                await opened.execute(f"rollback{and_then}")
        raise
    await opened.execute(f"commit{and_then}")


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
