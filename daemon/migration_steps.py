"""The steps of a migration, each one transaction: its SQL files, and what the books say of them."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial

import asyncpg

from daemon.errors import Blame, DatabaseUnavailable, RecalcdError, blame
from daemon.migration_files import Migration, RoutineFile
from daemon.migration_state import RoutineRow
from daemon.sql import SQL_ROOT, statement

OPEN_BOOKS = (SQL_ROOT / "migrations" / "bootstrap.up.sql").read_text("utf-8")
CLOSE_BOOKS = (SQL_ROOT / "migrations" / "bootstrap.down.sql").read_text("utf-8")
RECORD_MIGRATION = statement("record_migration")
FORGET_MIGRATION = statement("forget_migration")
RECORD_ROUTINE = statement("record_routine")
FORGET_ROUTINE = statement("forget_routine")
DECLARES_PRIVILEGES = statement("declares_privileges")
COUNT_PRIVILEGE_CHANGES = statement("count_privilege_changes")
GRANT_ROLES = statement("grant_roles")

LOCK = (29283, 2)
"""Advisory lock of whoever migrates. Two integers: no key's lock can be the same."""

OWED = {"outbox.event": "pending events", "outbox.failure": "failed keys that are owed a recalculation"}
"""Tables that must be empty before the engine goes, and what their rows are."""

SETTINGS = {
    "check_function_bodies": "off",  # routines may name one another in any order
    "search_path": "pg_catalog",  # a name without its schema is an error, not a table in whichever schema comes first
    "client_min_messages": "warning",
    "statement_timeout": "0",  # a role's own timeout is meant for the application
}
"""What every file is applied under."""


class Verb(Enum):
    """What a step does to a file, before and after."""

    APPLY = ("would apply", "applied")
    TAKE_BACK = ("would take back", "took back")
    DROP = ("would drop", "dropped")


@dataclass(frozen=True)
class Step:
    """One transaction: what it does to which file, for people, and the doing."""

    parts: tuple[tuple[Verb, str], ...]
    run: Callable[[asyncpg.Connection], Awaitable[None]]


def apply_step(migration: Migration, *, open_books: bool) -> Step:
    """Apply a migration; the first one of a database opens the books."""
    return Step(((Verb.APPLY, str(migration)),), partial(_apply, migration=migration, open_books=open_books))


def take_back_step(migration: Migration, *, close_books: bool, guarded: bool, lose_events: bool) -> Step:
    """Take a migration back; the last one closes the books. A guarded one refuses while anything is owed."""
    run = partial(_take_back, migration=migration, close_books=close_books, guarded=guarded, lose_events=lose_events)
    return Step(((Verb.TAKE_BACK, str(migration)),), run)


def routines_step(
    set_name: str, to_drop: Sequence[RoutineRow], to_apply: Sequence[tuple[RoutineFile, RoutineRow | None]]
) -> Step:
    """Drop and apply all of a set's routines at once, so that nobody meets half of them."""
    dropped = tuple((Verb.DROP, f"{set_name} {row.file_name}") for row in to_drop)
    applied = tuple((Verb.APPLY, str(routine)) for routine, _ in to_apply)
    return Step(dropped + applied, partial(_replace_routines, set_name=set_name, to_drop=to_drop, to_apply=to_apply))


def grants_step(set_name: str) -> Step:
    """Let the roles do what the set declares, where that is all there is to do."""
    return Step(((Verb.APPLY, f"{set_name} grants"),), partial(_grant, set_name=set_name))


async def lacks_grants(connection: asyncpg.Connection, set_name: str) -> bool:
    """Tell whether the roles may do something else than what the set declares: new roles, or grants by hand."""
    if not await connection.fetchval(DECLARES_PRIVILEGES, _declaration(set_name)):
        return False
    return bool(await connection.fetchval(COUNT_PRIVILEGE_CHANGES, _declaration(set_name)))


async def refuse_owed(connection: asyncpg.Connection, *, lock: bool) -> None:
    """Raise RecalcdError while events are pending or failed keys are owed a recalculation.

    With lock, writers wait until the caller's transaction ends, so that nothing more comes in.
    """
    owed = []
    for table, what in OWED.items():
        if await connection.fetchval("select to_regclass($1) is null", table):
            continue
        if lock:
            await connection.execute(f"lock table {table} in access exclusive mode")
        if count := await connection.fetchval(f"select count(*) from {table}"):  # noqa: S608  # a name of our own
            owed.append(f"{what} ({count:,})")
    if owed:
        raise RecalcdError(
            f"This would lose {' and '.join(owed)}. Run `recalcd run --drain` first, "
            "or say --lose-events if they don't matter."
        )


@asynccontextmanager
async def transaction(connection: asyncpg.Connection, settings: Mapping[str, str] = SETTINGS) -> AsyncIterator[None]:
    """Run the block in a transaction under these settings; when the connection breaks in it, say what broke it."""
    try:
        async with connection.transaction(isolation="read_committed"):
            for name, value in settings.items():
                await connection.execute("select set_config($1, $2, true)", name, value)
            yield
    except asyncpg.InterfaceError as error:  # that there is nothing left to roll back hides why
        raise error.__context__ or error from None


async def _apply(connection: asyncpg.Connection, *, migration: Migration, open_books: bool) -> None:
    async with transaction(connection):
        if open_books:
            await _run_file(connection, "The bootstrap of the books", OPEN_BOOKS)
        await _run_file(connection, f"Migration {migration}", migration.up)
        entry = (migration.set_name, migration.version, migration.name, migration.checksum)
        await connection.execute(RECORD_MIGRATION, *entry)


async def _take_back(
    connection: asyncpg.Connection, *, migration: Migration, close_books: bool, guarded: bool, lose_events: bool
) -> None:
    async with transaction(connection):
        if guarded and not lose_events:
            await refuse_owed(connection, lock=True)
        await connection.execute("select set_config('recalcd.lose_events', $1, true)", "on" if lose_events else "off")
        await _run_file(connection, f"Taking back migration {migration}", migration.down)
        await connection.execute(FORGET_MIGRATION, migration.set_name, migration.version)
        if close_books:
            await _run_file(connection, "Removing the books and the schema outbox", CLOSE_BOOKS)


async def _replace_routines(
    connection: asyncpg.Connection,
    *,
    set_name: str,
    to_drop: Sequence[RoutineRow],
    to_apply: Sequence[tuple[RoutineFile, RoutineRow | None]],
) -> None:
    async with transaction(connection):
        for row in to_drop:
            await _drop_routines(connection, row.file_name, row.signatures)
            await connection.execute(FORGET_ROUTINE, set_name, row.file_name)
        for routine, earlier in to_apply:
            await _apply_routine(connection, routine, earlier)
        if to_apply:
            await _grant_roles(connection, set_name)  # here, or for a moment everybody might call what is new


async def _apply_routine(connection: asyncpg.Connection, routine: RoutineFile, earlier: RoutineRow | None) -> None:
    """Apply the file, and drop the overloads that it no longer makes."""
    await _run_file(connection, f"Routine {routine}", routine.text)
    entry = (routine.set_name, routine.file_name, routine.checksum)
    made = await connection.fetchval(RECORD_ROUTINE, *entry)
    if not made:
        raise RecalcdError(f"The file {routine} does not create the routine that it is named after.")
    stale = [each for each in (earlier.signatures if earlier else ()) if each not in made]
    await _drop_routines(connection, routine.file_name, stale)


async def _grant(connection: asyncpg.Connection, *, set_name: str) -> None:
    async with transaction(connection):
        await _grant_roles(connection, set_name)


async def _grant_roles(connection: asyncpg.Connection, set_name: str) -> None:
    if await connection.fetchval(DECLARES_PRIVILEGES, _declaration(set_name)):
        await connection.execute(GRANT_ROLES, _declaration(set_name))


def _declaration(set_name: str) -> str:
    """Name the function that says what the roles may do."""
    return f"{set_name}.privileges"


async def _drop_routines(connection: asyncpg.Connection, file_name: str, signatures: Sequence[str]) -> None:
    script = "".join(f"drop routine if exists {signature};\n" for signature in signatures)
    await _run_file(connection, f"Dropping what {file_name} made", script)


async def _run_file(connection: asyncpg.Connection, what: str, script: str) -> None:
    """Run the statements of a file. Raises RecalcdError with the line where Postgres stopped."""
    try:
        await connection.execute(f"{script}\n;select")  # asyncpg trips over a script that is nothing but comments
    except asyncpg.PostgresError as error:
        line = f", line {script.count(chr(10), 0, int(error.position)) + 1}" if error.position else ""
        hint = f" {error.hint}." if error.hint else ""
        kind = DatabaseUnavailable if blame(error.sqlstate) is Blame.SERVER else RecalcdError
        said = error.message or error  # no message: the server never got to say it
        raise kind(f"{what} failed and was rolled back: {said} ({error.sqlstate}{line}).{hint}") from error
