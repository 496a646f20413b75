"""What this release ships: migrations and routines, as files. Reads the disk, never a database.

A set is sql/migrations/<set>/NNNN_name.{up,down}.sql and sql/routines/<set>/<schema>.<name>.sql.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

SET_NAMES = ("outbox", "reports")
"""In the order of going up: each needs those before it. The first one holds the books."""

_MIGRATION = re.compile(r"(?P<version>\d{4})_(?P<name>[a-z0-9_]+)\.(?P<direction>up|down)\.sql")
_ROUTINE = re.compile(r"[a-z0-9_]+\.[a-z0-9_]+\.sql")


@dataclass(frozen=True)
class Migration:
    """One step of the tables, there and back."""

    set_name: str
    version: int
    name: str
    up: str
    down: str

    @property
    def checksum(self) -> str:
        """Of the way up only: a way down may be mended after it was shipped."""
        return checksum(self.up)

    def __str__(self) -> str:
        return f"{self.set_name} {self.version:04}_{self.name}"


@dataclass(frozen=True)
class RoutineFile:
    """One routine, with all its overloads; the file's name says which."""

    set_name: str
    file_name: str
    text: str

    @property
    def checksum(self) -> str:
        return checksum(self.text)

    def __str__(self) -> str:
        return f"{self.set_name} {self.file_name}"


@dataclass(frozen=True)
class MigrationSet:
    """What can be installed by itself: migrations in order of version, routines in order of file name."""

    name: str
    migrations: tuple[Migration, ...]
    routines: tuple[RoutineFile, ...]

    @property
    def newest(self) -> int:
        """The last version; 0 when there is none."""
        return self.migrations[-1].version if self.migrations else 0


def checksum(text: str) -> str:
    """Return the SHA-256 of a file's text. Read as text, so that a checkout with CRLF has the same."""
    return hashlib.sha256(text.encode()).hexdigest()


def load_sets(sql_root: Path) -> tuple[MigrationSet, ...]:
    """Read every set, in the order of going up. Raises ValueError for a file that can't be meant."""
    return tuple(MigrationSet(name, _migrations(sql_root, name), _routines(sql_root, name)) for name in SET_NAMES)


def _migrations(sql_root: Path, set_name: str) -> tuple[Migration, ...]:
    texts: dict[tuple[int, str], dict[str, str]] = {}
    for path in sorted((sql_root / "migrations" / set_name).glob("*.sql")):
        match = _MIGRATION.fullmatch(path.name)
        if match is None:
            message = f"{path} is not named NNNN_name.up.sql or NNNN_name.down.sql."
            raise ValueError(message)
        texts.setdefault((int(match["version"]), match["name"]), {})[match["direction"]] = path.read_text("utf-8")
    _check_pairs(set_name, texts)
    return tuple(
        Migration(set_name, version, name, both["up"], both["down"]) for (version, name), both in sorted(texts.items())
    )


def _check_pairs(set_name: str, texts: dict[tuple[int, str], dict[str, str]]) -> None:
    for (version, name), both in texts.items():
        if both.keys() != {"up", "down"}:
            message = f"Migration {set_name} {version:04}_{name} lacks its up or its down file."
            raise ValueError(message)
    versions = sorted(version for version, _ in texts)
    if versions != list(range(1, len(versions) + 1)):
        message = f"The migrations of set {set_name} are not numbered 1, 2, 3 and so on: {versions}."
        raise ValueError(message)


def _routines(sql_root: Path, set_name: str) -> tuple[RoutineFile, ...]:
    paths = sorted((sql_root / "routines" / set_name).glob("*.sql"))
    for path in paths:
        if _ROUTINE.fullmatch(path.name) is None:
            message = f"{path} is not named schema.routine.sql."
            raise ValueError(message)
    return tuple(RoutineFile(set_name, path.name, path.read_text("utf-8")) for path in paths)
