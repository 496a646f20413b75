"""What doctor looks at in the schema: is it there, is it this release's, has somebody changed it, may we use it."""

from pathlib import Path

import asyncpg

from daemon.doctor_check import Check, Complaints, Patient, error
from daemon.migration_state import HAS_BOOKS, SetStatus, State, expected, read_status
from daemon.sql import SQL_ROOT, statement

DOCTOR_PRIVILEGES = statement("doctor_privileges")
DOCTOR_SOURCES = statement("doctor_sources")
HAS_DAEMON_ROLE = statement("doctor_has_daemon_role")
HAS_OUTBOX = statement("doctor_has_outbox")
SHOWN = 3
_MIGRATE = "Run `recalcd migrate up`, with the newest release that is in use."


async def has_outbox(connection: asyncpg.Connection) -> bool:
    """Tell whether there is anything to examine, for this role."""
    try:
        return bool(await connection.fetchval(HAS_OUTBOX))
    except asyncpg.InsufficientPrivilegeError:  # not even the schema: the check of privileges says so
        return False


async def check_migrations(patient: Patient) -> Complaints:
    """Compare the books of `recalcd migrate` with the files of this release."""
    sets = expected(await read_status(patient.connection))
    if sets[0].version == 0:
        yield error("this database has no recalcd schema", "Run `recalcd migrate up`.")
        return
    for each in sets:
        if not each.is_current:
            yield error(f"set {each.name} is not this release's: {_differences(each)}", _MIGRATE)


def _differences(status: SetStatus) -> str:
    different = [
        f"{each} is {each.state}" for each in status.migrations + status.routines if each.state is not State.APPLIED
    ]
    more = f" and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
    return ", ".join(different[:SHOWN]) + more


async def check_routines(patient: Patient) -> Complaints:
    """Compare the bodies of the routines in the database with the files that made them."""
    if not await patient.connection.fetchval(HAS_BOOKS):
        return
    for row in await patient.connection.fetch(DOCTOR_SOURCES):
        path = SQL_ROOT / "routines" / row["set_name"] / row["file_name"]
        if row["source"] is not None and await _differs(path, row["source"]):
            yield error(
                f"{row['signature']} was replaced by hand: its body is not that of {row['file_name']}",
                f"Keep the change somewhere else, and apply the file again: psql -f {row['file_name']}.",
            )


async def _differs(path: Path, source: str) -> bool:
    return path.is_file() and f"$${source}$$" not in path.read_text("utf-8")  # noqa: ASYNC240  # small, and nobody waits


async def check_privileges(patient: Patient) -> Complaints:
    """See that the role may do in schema outbox what a daemon does."""
    rows = await patient.connection.fetch(DOCTOR_PRIVILEGES)
    if not rows:
        return
    role = await patient.connection.fetchval("select current_user::text")
    missing = [f"{row['missing']} on {row['name']}" for row in rows]
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    yield error(f"role {role} lacks {', '.join(missing[:SHOWN])}{more}", await _remedy(patient.connection, role))


async def _remedy(connection: asyncpg.Connection, role: str) -> str:
    if await connection.fetchval(HAS_DAEMON_ROLE):
        return f"grant recalcd_daemon to {role}; recalcd_operator, if it is a person's."
    return (
        "Let an administrator create role recalcd_daemon, run `recalcd migrate up`, and grant recalcd_daemon to "
        f"{role}; or: grant usage on schema outbox to {role}; grant select, insert, update, delete on all tables in "
        f"schema outbox to {role}; grant execute on all routines in schema outbox to {role};"
    )


SCHEMA_CHECKS = (
    Check("schema", check_migrations, "all migrations and routines of this release are applied"),
    Check("routines", check_routines, "nobody has replaced any"),
    Check("privileges", check_privileges, "the role may do what a daemon does"),
)
