"""What a database holds, beside what this release ships; and whether the two fit."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path

import asyncpg

from daemon.errors import SchemaMismatch
from daemon.migration_files import MigrationSet, load_sets
from daemon.sql import SQL_ROOT, statement

HAS_BOOKS = statement("has_books")
LIST_MIGRATIONS = statement("list_migrations")
LIST_ROUTINES = statement("list_routines")

SHOWN = 3
"""Routines that an error message names."""


class State(StrEnum):
    """What is to be said of one file."""

    APPLIED = "applied"
    PENDING = "pending"
    EDITED = "edited"
    """A migration whose file is no longer the one that was applied."""
    UNKNOWN = "unknown"
    """A migration that this release does not ship."""
    CHANGED = "changed"
    """A routine whose file is another than the one applied: normal after an upgrade."""
    MISSING = "missing"
    """A routine that somebody dropped from the database."""
    GONE = "gone"
    """A routine that this release no longer ships."""


@dataclass(frozen=True)
class MigrationRow:
    """A line of outbox.migration."""

    set_name: str
    version: int
    name: str
    checksum: str
    applied_at: datetime


@dataclass(frozen=True)
class RoutineRow:
    """A line of outbox.routine; missing are those of its signatures that the database lacks."""

    set_name: str
    file_name: str
    checksum: str
    signatures: Sequence[str]
    missing: Sequence[str]
    applied_at: datetime


@dataclass(frozen=True)
class Books:
    """What recalcd migrate noted in a database; nothing at all when `exist` is false."""

    exist: bool = False
    migrations: Mapping[str, Mapping[int, MigrationRow]] = field(default_factory=dict)
    routines: Mapping[str, Mapping[str, RoutineRow]] = field(default_factory=dict)


@dataclass(frozen=True)
class FileStatus:
    """One file of a set; version is None for a routine."""

    name: str
    state: State
    applied_at: datetime | None
    version: int | None = None

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.version:04}_{self.name}"


@dataclass(frozen=True)
class SetStatus:
    """One set, shipped and held, file by file."""

    name: str
    migrations: tuple[FileStatus, ...]
    routines: tuple[FileStatus, ...]

    @property
    def version(self) -> int:
        """The newest version that the database holds; 0 for none."""
        return max((each.version or 0 for each in self.migrations if each.state is not State.PENDING), default=0)

    @property
    def is_current(self) -> bool:
        return all(each.state is State.APPLIED for each in self.migrations + self.routines)

    def migrations_that_are(self, state: State) -> list[str]:
        return [str(each) for each in self.migrations if each.state is state]


async def read_books(connection: asyncpg.Connection) -> Books:
    """Read what the database holds; Books() where nothing of recalcd is installed."""
    if not await connection.fetchval(HAS_BOOKS):
        return Books()
    migrations: dict[str, dict[int, MigrationRow]] = {}
    for row in await connection.fetch(LIST_MIGRATIONS):
        migrations.setdefault(row["set_name"], {})[row["version"]] = MigrationRow(**row)
    routines: dict[str, dict[str, RoutineRow]] = {}
    for row in await connection.fetch(LIST_ROUTINES):
        routines.setdefault(row["set_name"], {})[row["file_name"]] = RoutineRow(**row)
    return Books(True, migrations, routines)


def compare(shipped: MigrationSet, books: Books) -> SetStatus:
    """Say of every file that is shipped or held what state it is in, in order."""
    migrations = sorted(_compare_migrations(shipped, books), key=lambda each: each.version or 0)
    routines = sorted(_compare_routines(shipped, books), key=lambda each: each.name)
    return SetStatus(shipped.name, tuple(migrations), tuple(routines))


def _compare_migrations(shipped: MigrationSet, books: Books) -> Iterator[FileStatus]:
    held = books.migrations.get(shipped.name, {})
    for migration in shipped.migrations:
        row = held.get(migration.version)
        if row is None:
            yield FileStatus(migration.name, State.PENDING, None, migration.version)
        else:
            state = State.APPLIED if row.checksum == migration.checksum else State.EDITED
            yield FileStatus(migration.name, state, row.applied_at, migration.version)
    for version in held.keys() - {migration.version for migration in shipped.migrations}:
        yield FileStatus(held[version].name, State.UNKNOWN, held[version].applied_at, version)


def _compare_routines(shipped: MigrationSet, books: Books) -> Iterator[FileStatus]:
    held = books.routines.get(shipped.name, {})
    for routine in shipped.routines:
        row = held.get(routine.file_name)
        if row is None:
            yield FileStatus(routine.file_name, State.PENDING, None)
        else:
            changed = State.CHANGED if row.checksum != routine.checksum else State.APPLIED
            yield FileStatus(routine.file_name, State.MISSING if row.missing else changed, row.applied_at)
    for file_name in held.keys() - {routine.file_name for routine in shipped.routines}:
        yield FileStatus(file_name, State.GONE, held[file_name].applied_at)


async def read_status(connection: asyncpg.Connection, sql_root: Path = SQL_ROOT) -> list[SetStatus]:
    """Compare every set with the database; changes nothing."""
    books = await read_books(connection)
    return [compare(each, books) for each in load_sets(sql_root)]


def expected(sets: Sequence[SetStatus]) -> list[SetStatus]:
    """Return the sets that must be this release's: the engine, and whatever else the database holds."""
    engine, *others = sets
    return [engine, *(other for other in others if other.version > 0)]


async def check_schema(connection: asyncpg.Connection, sql_root: Path = SQL_ROOT) -> None:
    """Raise SchemaMismatch unless the database holds the engine, and all it holds is this release's."""
    sets = expected(await read_status(connection, sql_root))
    if sets[0].version == 0:
        raise SchemaMismatch("This database has no recalcd schema. Run `recalcd migrate up`.")
    for each in sets:
        refuse_foreign(each)
        _refuse_old(each)


def refuse_foreign(status: SetStatus) -> None:
    """Raise SchemaMismatch when the database holds what this release does not know, or knows otherwise."""
    if unknown := status.migrations_that_are(State.UNKNOWN):
        raise SchemaMismatch(
            f"This database is newer than this release of recalcd: set {status.name} holds {', '.join(unknown)}. "
            "Install the release that migrated it, or a later one."
        )
    if edited := status.migrations_that_are(State.EDITED):
        raise SchemaMismatch(
            f"Set {status.name}: the file of {', '.join(edited)} was edited after it was applied to this database. "
            "Restore the file as it was shipped, and put the change into a new migration."
        )


def _refuse_old(status: SetStatus) -> None:
    if pending := status.migrations_that_are(State.PENDING):
        raise SchemaMismatch(
            f"This database is older than this release of recalcd: set {status.name} lacks {', '.join(pending)}. "
            "Run `recalcd migrate up`."
        )
    if different := [f"{each} is {each.state}" for each in status.routines if each.state is not State.APPLIED]:
        more = f" and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
        raise SchemaMismatch(
            f"The routines of set {status.name} in this database are not those of this release: "
            f"{', '.join(different[:SHOWN])}{more}. Run `recalcd migrate up`, with the newest release that is in use."
        )
