"""Which keys an operation is about: those a person named, or all that a topic lists, page by page."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

import asyncpg

from daemon.errors import UsageError
from daemon.sql import statement

LIST_KEYS = statement("list_keys")
LIST_PART = statement("list_part")
COUNT_KEYS = statement("count_keys")
LIST_TOPICS = statement("list_topics")


@dataclass(frozen=True, slots=True)
class Topic:
    """What an operation needs to know of a topic."""

    name: str
    batch_keys: int
    lists_keys: bool


async def find_topic(connection: asyncpg.Connection, name: str) -> Topic:
    """Return the topic. Raises UsageError, naming those there are."""
    rows = {row["topic"]: row for row in await connection.fetch(LIST_TOPICS)}
    if name not in rows:
        raise UsageError(f"There is no topic {name!r}; registered are: {', '.join(rows) or 'none'}.")
    return Topic(name, rows[name]["batch_keys"], rows[name]["list_keys"] is not None)


async def count(connection: asyncpg.Connection, topic: Topic, named: Sequence[str]) -> int:
    """Tell how many keys pages() will bring."""
    return len(set(named)) if named else int(await connection.fetchval(COUNT_KEYS, topic.name))


async def pages(connection: asyncpg.Connection, topic: Topic, named: Sequence[str] = ()) -> AsyncIterator[list[str]]:
    """Yield the named keys, or all that the topic lists, batch_keys at a time.

    Raises UsageError when none are named and the topic can't list its keys.
    """
    if named:
        distinct = sorted(set(named))
        for start in range(0, len(distinct), topic.batch_keys):
            yield distinct[start : start + topic.batch_keys]
        return
    if not topic.lists_keys:
        raise UsageError(
            f"Topic {topic.name!r} can't list its keys: name them with --key, or set its list_keys function."
        )
    after = None
    while page := [row["key"] for row in await connection.fetch(LIST_KEYS, topic.name, after, topic.batch_keys)]:
        yield page
        after = page[-1]


async def list_part(connection: asyncpg.Connection, topic: Topic, part: Mapping[str, object]) -> list[str]:
    """Return the keys of a part of a topic, {"cohort": "7A"} for instance. scope.count() refuses what is none."""
    return [row["key"] for row in await connection.fetch(LIST_PART, topic.name, json.dumps(part))]
