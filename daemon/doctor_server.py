"""What doctor looks at that any database has: how we are connected, which server it is, what the clock says."""

import asyncio
import time
from uuid import uuid4

import asyncpg

from daemon.database import connection as connected
from daemon.database import is_shared, one_row
from daemon.doctor_check import Check, Complaints, Patient, error, warning
from daemon.doorbell import ECHO
from daemon.sql import statement

DOCTOR_SERVER = statement("doctor_server")
OLDEST_VERSION = 150000
SKEW_S = 2.0
ECHO_TIMEOUT_S = 2.0
_POOLER_REMEDY = (
    "Give recalcd a direct or session-pooled connection (on Supabase, port 5432 instead of 6543), "
    "or set RECALCD_WAKE=poll: a pooled connection can't LISTEN."
)
_STRANGE_STATEMENTS = (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)


async def check_pooler(patient: Patient) -> Complaints:
    """Look for a transaction pooler: it shares sessions among its clients, and no notification arrives."""
    try:
        async with connected(patient.settings, application_name="recalcd doctor") as other:
            shared = await is_shared(patient.connection, other)
    except _STRANGE_STATEMENTS:
        yield error("prepared statements vanish: a transaction pooler is in between", _POOLER_REMEDY)
        return
    if shared:
        yield error("other clients are served by the same session: a transaction pooler is in between", _POOLER_REMEDY)
    elif not await _hears(patient) and patient.settings.wake != "poll":
        yield error("notifications do not arrive: a transaction pooler is in between, or a standby", _POOLER_REMEDY)


async def _hears(patient: Patient) -> bool:
    """Tell whether a notification arrives that another session sends while this one is idle.

    One's own would prove nothing: a pooler passes on what comes before the end of the transaction.
    """
    heard = asyncio.Event()
    channel = f"outbox_echo_{uuid4().hex}"

    def hear(*_: object) -> None:
        heard.set()

    await patient.connection.add_listener(channel, hear)
    try:
        async with connected(patient.settings, application_name="recalcd doctor") as other:
            await other.execute(ECHO, channel, "")
            async with asyncio.timeout(ECHO_TIMEOUT_S):
                return await heard.wait()
    except TimeoutError:
        return False
    finally:
        await patient.connection.remove_listener(channel, hear)


async def check_version(patient: Patient) -> Complaints:
    """See that the server is one we know, and the primary."""
    server = await one_row(patient.connection, DOCTOR_SERVER)
    if server["version_num"] < OLDEST_VERSION:
        yield error(
            f"the server is PostgreSQL {server['version']}", "Upgrade it: recalcd needs PostgreSQL 15 or later."
        )
    if server["is_standby"]:
        yield error("the server is a standby, which can't LISTEN or write", "Name the primary in RECALCD_DATABASE_URL.")
    if not server["has_statement_statistics"]:
        yield warning(
            "pg_stat_statements is not installed, so nobody can tell which statement of a procedure is slow",
            "Add it to shared_preload_libraries, restart, and: create extension pg_stat_statements.",
        )


async def check_role(patient: Patient) -> Complaints:
    """See that the role is neither too mighty nor blind."""
    server = await one_row(patient.connection, DOCTOR_SERVER)
    role = server["role"]
    if server["is_superuser"]:
        yield warning(
            f"role {role} is a superuser, and so is every procedure that recalcd calls",
            "Run the daemon as a login that is only a recalcd_daemon; grant it what procedures need: docs/roles.md.",
        )
    if not server["sees_all_sessions"]:
        yield warning(
            f"role {role} can't see what sessions of other roles do, so a pinned horizon may go unnoticed",
            f"grant pg_read_all_stats to {role};",
        )


async def check_clock(patient: Patient) -> Complaints:
    """Compare the clocks. recalcd judges by the database's alone; logs and people compare both."""
    before = time.time()
    server = await one_row(patient.connection, DOCTOR_SERVER)
    skew_s = server["now_s"] - (before + time.time()) / 2
    if abs(skew_s) >= SKEW_S:
        yield warning(
            f"the database's clock is {abs(skew_s):,.1f} s {'ahead of' if skew_s > 0 else 'behind'} this host's",
            "Let chrony or systemd-timesyncd set both: the times of logs and of outbox.batch can't be compared.",
        )


SERVER_CHECKS = (
    Check("connection", check_pooler, "one backend serves it, and notifications arrive"),
    Check("server", check_version, "a primary of a version that is supported"),
    Check("role", check_role, "no superuser, and sees all sessions"),
    Check("clock", check_clock, "this host and the database agree"),
)
