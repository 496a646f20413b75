"""Brings a database to this release's tables and routines, and back: `recalcd migrate up` and `down`.

Everything is planned first, from one look at the database under the lock; then each step runs in a transaction of its
own, together with its entry in the books.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from daemon.errors import SchemaMismatch, UsageError
from daemon.migration_files import SET_NAMES, MigrationSet, RoutineFile, load_sets
from daemon.migration_state import Books, RoutineRow, compare, read_books, refuse_foreign
from daemon.migration_steps import (
    LOCK,
    Step,
    apply_step,
    grants_step,
    lacks_grants,
    refuse_owed,
    routines_step,
    take_back_step,
    transaction,
)
from daemon.sql import SQL_ROOT

ENGINE = SET_NAMES[0]
DEADLOCK_TRIES = 10


def _ignore(_: str) -> None:
    pass


@dataclass(frozen=True)
class Audience:
    """Whom to tell what was done, and whom to warn that it waits; by default nobody."""

    tell: Callable[[str], None] = _ignore
    warn: Callable[[str], None] = _ignore


NOBODY = Audience()


async def up(
    connection: asyncpg.Connection,
    *,
    set_names: Sequence[str] | None = None,
    to: int | None = None,
    dry_run: bool = False,
    sql_root: Path = SQL_ROOT,
    audience: Audience = NOBODY,
) -> int:
    """Apply what is pending, up to and including version `to`; with dry_run, only tell what that would be.

    Of the sets that are named; else of those that are there, and where none is, of all: who took the engine alone must
    not get a school with an upgrade.

    Routines are made for the newest tables: they are applied when the set is there. Raises SchemaMismatch when the
    database holds what this release does not know, UsageError for a version that is none, RecalcdError when a file
    fails: nothing of that file is left, and those before it are in place. Returns how many steps there were.
    """
    shipped = load_sets(sql_root)
    _check_target(shipped, set_names or SET_NAMES, to)
    async with _lock(connection, audience, needed=not dry_run):
        books = await read_books(connection)
        if set_names is None:
            set_names = [name for name in SET_NAMES if books.migrations.get(name)] or SET_NAMES
            for each in shipped:
                if each.name not in set_names and each.migrations:
                    audience.tell(f"leaving out set {each.name}, which is not there: --set {each.name} adds it")
        steps = list(_plan_up(shipped, books, set_names, to)) or await _plan_grants(connection, set_names)
        with _warnings_told(connection, audience):
            count = await _carry_out(connection, steps, audience, dry_run=dry_run)
            late = [] if dry_run else await _plan_grants(connection, set_names)  # of routines that nothing was due for
            return count + (await _carry_out(connection, late, audience, dry_run=False) if late else 0)


async def down(
    connection: asyncpg.Connection,
    *,
    set_names: Sequence[str] = SET_NAMES,
    to: int = 0,
    lose_events: bool = False,
    dry_run: bool = False,
    sql_root: Path = SQL_ROOT,
    audience: Audience = NOBODY,
) -> int:
    """Take back what is above version `to`; 0 leaves nothing of the set behind. Raises what up() raises.

    Refuses to touch the engine while events are pending or failed keys are owed, unless told to lose them. Returns
    how many steps there were.
    """
    shipped = load_sets(sql_root)
    _check_target(shipped, set_names, to or None)
    async with _lock(connection, audience, needed=not dry_run):
        books = await read_books(connection)
        steps = list(_plan_down(shipped, books, set_names, to, lose_events=lose_events))
        if ENGINE in set_names and steps and not lose_events:
            await refuse_owed(connection, lock=False)  # once more in the step itself; here, before anything is gone
        return await _carry_out(connection, steps, audience, dry_run=dry_run)


def _check_target(shipped: Sequence[MigrationSet], set_names: Sequence[str], to: int | None) -> None:
    if to is None:
        return
    if len(set_names) != 1:
        raise UsageError("A version belongs to one set: say which with --set.")
    newest = next(each.newest for each in shipped if each.name == set_names[0])
    if not 0 < to <= newest:
        raise UsageError(f"Set {set_names[0]} has no version {to}: the newest of this release is {newest}.")


@asynccontextmanager
async def _lock(connection: asyncpg.Connection, audience: Audience, *, needed: bool) -> AsyncIterator[None]:
    """Hold the migration lock of the database, so that two runners can't collide."""
    if not needed:
        yield
        return
    if not await connection.fetchval("select pg_try_advisory_lock($1, $2)", *LOCK):
        audience.warn("Another `recalcd migrate` is at work on this database: waiting for it.")
        async with transaction(connection, {"statement_timeout": "0"}):  # the lock outlives it, the setting does not
            await connection.execute("select pg_advisory_lock($1, $2)", *LOCK)
    try:
        yield
    finally:
        if not connection.is_closed():
            await connection.execute("select pg_advisory_unlock($1, $2)", *LOCK)


@contextmanager
def _warnings_told(connection: asyncpg.Connection, audience: Audience) -> Iterator[None]:
    """Tell what the server warns of: the files speak to whoever runs psql, and to us."""

    def tell(_: object, message: asyncpg.PostgresLogMessage) -> None:
        if message.severity_en == "WARNING":
            audience.warn(f"{message.message}. {message.hint or ''}".rstrip())

    connection.add_log_listener(tell)
    try:
        yield
    finally:
        connection.remove_log_listener(tell)


async def _carry_out(
    connection: asyncpg.Connection, steps: Sequence[Step], audience: Audience, *, dry_run: bool
) -> int:
    if not steps:
        audience.tell("Nothing to do.")
    for step in steps:
        if not dry_run:
            await _run_patiently(step, connection)
        for verb, what in step.parts:
            would, did = verb.value
            audience.tell(f"{would if dry_run else did} {what}")
    return len(steps)


async def _run_patiently(step: Step, connection: asyncpg.Connection) -> None:
    """Run a step, again if a daemon at work was in its way: each is a transaction, and was rolled back."""
    retrying = AsyncRetrying(
        retry=retry_if_exception(_is_deadlock),
        wait=wait_random_exponential(multiplier=0.1, max=1),
        stop=stop_after_attempt(DEADLOCK_TRIES),
        reraise=True,
    )
    await retrying(step.run, connection)


def _is_deadlock(error: BaseException) -> bool:
    return any(isinstance(each, asyncpg.DeadlockDetectedError) for each in (error, error.__cause__))


def _plan_up(shipped: Sequence[MigrationSet], books: Books, set_names: Sequence[str], to: int | None) -> Iterator[Step]:
    _refuse_without_needed(shipped, books, set_names)
    is_first = not books.exist
    for each in shipped:
        if each.name not in set_names:
            continue
        refuse_foreign(compare(each, books))
        target = each.newest if to is None else to
        held = books.migrations.get(each.name, {})
        for migration in each.migrations:
            if migration.version not in held and migration.version <= target:
                yield apply_step(migration, open_books=is_first)
                is_first = False
        if target == each.newest:
            yield from _plan_routines(each, books)


def _plan_routines(shipped: MigrationSet, books: Books) -> Iterator[Step]:
    held = books.routines.get(shipped.name, {})
    gone = [row for name, row in held.items() if name not in {routine.file_name for routine in shipped.routines}]
    due = [(routine, row) for routine in shipped.routines if _is_due(routine, row := held.get(routine.file_name))]
    if gone or due:
        yield routines_step(shipped.name, gone, due)


async def _plan_grants(connection: asyncpg.Connection, set_names: Sequence[str]) -> list[Step]:
    return [grants_step(name) for name in set_names if await lacks_grants(connection, name)]


def _is_due(routine: RoutineFile, row: RoutineRow | None) -> bool:
    return row is None or bool(row.missing) or row.checksum != routine.checksum


def _refuse_without_needed(shipped: Sequence[MigrationSet], books: Books, set_names: Sequence[str]) -> None:
    last = max(SET_NAMES.index(name) for name in set_names)
    for each in shipped[:last]:
        if each.name not in set_names and not compare(each, books).is_current:
            raise SchemaMismatch(
                f"Set {SET_NAMES[last]} needs set {each.name}, which this database does not hold as this release "
                f"ships it. Run `recalcd migrate up --set {each.name}` first."
            )


def _plan_down(
    shipped: Sequence[MigrationSet], books: Books, set_names: Sequence[str], to: int, *, lose_events: bool
) -> Iterator[Step]:
    if to == 0:
        _refuse_while_needed(shipped, books, set_names)
    for each in reversed(shipped):
        if each.name not in set_names:
            continue
        refuse_foreign(compare(each, books))
        held = books.migrations.get(each.name, {})
        routines = list(books.routines.get(each.name, {}).values())
        if to == 0 and routines:
            yield routines_step(each.name, routines, [])
        for migration in reversed(each.migrations):
            if migration.version in held and migration.version > to:
                is_engine = each.name == ENGINE
                is_last = is_engine and migration.version == 1
                yield take_back_step(migration, close_books=is_last, guarded=is_engine, lose_events=lose_events)


def _refuse_while_needed(shipped: Sequence[MigrationSet], books: Books, set_names: Sequence[str]) -> None:
    first = min(SET_NAMES.index(name) for name in set_names)
    for each in shipped[first + 1 :]:
        if each.name not in set_names and compare(each, books).version > 0:
            raise SchemaMismatch(
                f"Set {each.name} needs set {SET_NAMES[first]}: take {each.name} back first, or leave out --set to "
                "take back both."
            )
