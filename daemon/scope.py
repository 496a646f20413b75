"""Which keys a job is about: those a person named, or a part of those that the topic lists."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import asyncpg

from daemon.errors import UsageError
from daemon.keys import Topic
from daemon.sql import statement

COUNT_PART = statement("count_part")
LIST_UNKNOWN_KEYS = statement("list_unknown_keys")
MOST_LENGTH = 255
_NO_SUCH_PART = ("22023", "RC008")


@dataclass(frozen=True, slots=True)
class Scope:
    """Keys by name, or a part; an empty part is all there are."""

    named: list[str] | None = None
    """Distinct."""
    part: dict[str, object] = field(default_factory=dict)


def scope_of(
    keys: Iterable[str], lines: Iterable[str] | None, *, cohort: str | None = None, missing: bool = False
) -> Scope:
    """Put together what was typed. lines: of --keys-from. Raises UsageError for what contradicts, or is no key."""
    part: dict[str, object] = {} if cohort is None else {"cohort": cohort}
    if missing:
        part["missing"] = True
    keys = list(keys)
    if not keys and lines is None:
        return Scope(part=part)
    if part:
        raise UsageError("Name keys, or choose them with --cohort and --missing; not both.")
    return Scope(named=distinct([*keys, *read_lines(lines or [])]))


def read_lines(lines: Iterable[str]) -> list[str]:
    """Return one key for each line that is not blank. Raises UsageError for a file that is no text."""
    try:
        return [key for line in lines if (key := line.strip())]
    except UnicodeDecodeError:
        raise UsageError("The file of --keys-from is not text in UTF-8; it needs one key on each line.") from None


def distinct(keys: Iterable[str]) -> list[str]:
    """Return the keys without repeats, in order. Raises UsageError for what can't be a key, and for no key at all."""
    found = list(dict.fromkeys(keys))
    if not found:
        raise UsageError("No key was named: the file of --keys-from is empty.")
    for key in found:
        if not 1 <= len(key) <= MOST_LENGTH or "\0" in key:
            raise UsageError(f"{key[:40]!r} can't be a key: keys have 1 to {MOST_LENGTH} characters.")
    return found


async def count(connection: asyncpg.Connection, topic: Topic, scope: Scope) -> int:
    """Tell how many keys it is about. Raises UsageError for keys, and parts, that the topic does not have."""
    if scope.named is not None:
        await refuse_unknown(connection, topic, scope.named)
        return len(scope.named)
    try:
        return int(await connection.fetchval(COUNT_PART, topic.name, json.dumps(scope.part)))
    except asyncpg.PostgresError as error:
        if error.sqlstate not in _NO_SUCH_PART:
            raise
        said = str(error.args[0])  # it speaks of what was typed
        raise UsageError(f"{said[0].upper()}{said[1:]}. {getattr(error, 'hint', None) or ''}".rstrip()) from None


async def refuse_unknown(connection: asyncpg.Connection, topic: Topic, keys: Sequence[str]) -> None:
    """Raise UsageError for keys that the topic neither lists nor owes anything: a misspelt one would fail for ever."""
    if not topic.lists_keys:
        return
    unknown = [row["key"] for row in await connection.fetch(LIST_UNKNOWN_KEYS, topic.name, keys)]
    if unknown:
        more = f", nor {len(unknown) - 1:,} more" if len(unknown) > 1 else ""
        raise UsageError(f"Topic {topic.name!r} has no key {unknown[0]!r}{more}. Nothing was changed.")
