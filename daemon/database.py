"""Connections, and what their loss looks like."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from daemon import tls
from daemon.errors import Blame, ConfigurationError, DatabaseRefuses, DatabaseUnavailable, blame
from daemon.redaction import redact
from daemon.settings import Settings

IDLE_S, INTERVAL_S, COUNT = 15, 5, 3
"""Keepalives: a peer that has vanished is given up after 30 s, not after the two hours of the kernels."""
GIVE_UP_S = IDLE_S + COUNT * INTERVAL_S
# Asked for while connecting, not by SET, which would stay behind in a session that a pooler hands to the next client.
_SERVER_SETTINGS = {
    "default_transaction_isolation": "read committed",  # for outbox.run_batch; who begins one says so
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
# Refusals that at a start mean a wrong DSN; beneath a running daemon, a password or a grant that is being changed.
_REFUSALS = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ClientConfigurationError,
)

DATABASE_ERRORS = (asyncpg.PostgresError, *CONNECTION_ERRORS)
BACKEND_PID = "select pg_backend_pid()"
SHARING_TRIES = 3

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


def had_last_words(error: BaseException) -> bool:
    """Say whether the server ended the session itself, with a FATAL error: asyncpg keeps that as the cause."""
    return any(sqlstate_of(each) is not None for each in (error, error.__cause__) if each)


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
    tls.check_files(dsn)
    try:
        opened = await _dial(dsn, settings, application_name, read_write=read_write)
    except _REFUSALS as error:
        raise DatabaseRefuses(f"The database refuses us: {_sentence(error)} Correct RECALCD_DATABASE_URL.") from None
    except asyncpg.TargetServerAttributeNotMatched:
        raise DatabaseUnavailable(
            "The database is read-only (a standby, or default_transaction_read_only); recalcd needs the primary."
        ) from None
    except DATABASE_ERRORS as error:
        if of_tls := tls.refusal(error):
            raise of_tls from None
        raise DatabaseUnavailable(
            f"No connection to the database at {_place(dsn)}: {_sentence(error)} {_remedy(error, dsn)}"
        ) from None
    except ValueError:  # of the driver's, which quotes what it could not read; a certificate's is an OSError, too
        raise ConfigurationError(
            "RECALCD_DATABASE_URL has an option, behind its question mark, that can't be read."
        ) from None
    _keep_alive(opened)
    return opened


def _place(dsn: str) -> str:
    """Return the host, or the folder of the socket, that a URI of one host names."""
    parts = urlsplit(dsn)
    host = parts.netloc.rpartition("@")[2] or parse_qs(parts.query).get("host", [""])[-1]
    return unquote(host) or "its default socket"


def _remedy(error: BaseException, dsn: str) -> str:
    """Return what to do. A server that refuses our certificate hangs up, and its reason may be lost on the way."""
    if isinstance(error, asyncpg.PostgresConnectionError) and "sslcert=" in dsn:
        return "Does it accept the certificate of sslcert=? Its log says."
    return _REMEDIES.get(type(error), "Is it running, and is RECALCD_DATABASE_URL right?")


async def _dial(dsn: str, settings: Settings, application_name: str, *, read_write: bool) -> asyncpg.Connection:
    """Connect; through PgBouncer, without what it refuses and what it can't serve, in whichever mode it may be."""
    name = {"application_name": application_name}
    options: dict[str, Any] = {
        "timeout": settings.connect_timeout_s,
        "target_session_attrs": SessionAttribute.read_write if read_write else None,
    }
    try:
        return await asyncpg.connect(dsn, server_settings=name | _SERVER_SETTINGS, **options)
    except asyncpg.ProtocolViolationError as error:
        if "unsupported startup parameter" not in str(error):
            raise
    # A statement prepared now may not be there next time.
    return await asyncpg.connect(dsn, server_settings=name, statement_cache_size=0, **options)


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


def drop(opened: asyncpg.Connection) -> None:
    """Drop the socket of a connection that another task may be using: what it waits for then fails, as when cut.

    Not before that task has gone on, if its answer is here already: asyncpg takes no loss between two steps of its own
    (AttributeError: 'NoneType' object has no attribute 'bind_execute').
    """
    asyncio.get_running_loop().call_soon(opened.terminate)


@contextlib.asynccontextmanager
async def transaction(opened: asyncpg.Connection, first: str = "", and_then: str = "") -> AsyncIterator[None]:
    """Run a transaction at read committed, said aloud, since a role's default may differ.

    first, and_then: further statements, each behind a semicolon, sent along with its begin, and its commit or rollback.

    asyncpg's own manager puts an InterfaceError in the place of the error that broke the connection, and with it goes
    the reason; this one keeps it. A cancelled transaction is left to the closing of its connection.
    """
    await opened.execute(f"begin isolation level read committed{first}")
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
