"""`recalcd forget`: erase keys whose source was deleted, from cached rows to history."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import asyncpg

from daemon.database import one_row, rehearsal, transaction
from daemon.errors import UsageError
from daemon.keys import Topic
from daemon.redaction import error_facts
from daemon.sql import statement

FORGET = statement("forget")
_STILL_THERE = ("RC016", "RC017")


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What was found of the keys, and erased."""

    topic: str
    keys: list[str]
    event_count: int
    changed_count: int | None
    """Keys that lost cached rows; None when the procedure does not say."""
    note_count: int
    """Failures, suspicions, and notes of drift."""
    job_count: int
    batch_count: int
    """Batches of the history from which a key was taken."""
    is_certain: bool
    """Whether the topic could tell that the source is gone."""
    dry_run: bool

    @property
    def is_nothing(self) -> bool:
        """Whether no trace of the keys was there."""
        return not (self.event_count or self.changed_count or self.note_count or self.job_count or self.batch_count)

    def as_json(self) -> dict[str, Any]:
        """Return what --json prints; its keys are public."""
        return asdict(self)


async def forget(connection: asyncpg.Connection, topic: Topic, keys: Sequence[str], *, dry_run: bool) -> Forgotten:
    """Forget keys, all or none of them; dry_run does the same and takes it back.

    Raises UsageError when a source is still there, or a job stands at a key; asyncpg's errors when the recalculation
    fails, without which the cached rows can't be known to be gone.
    """
    try:
        async with rehearsal(connection) if dry_run else transaction(connection):
            row = await one_row(connection, FORGET, topic.name, list(keys))
    except asyncpg.PostgresError as error:
        if error.sqlstate not in _STILL_THERE:
            raise
        said = error_facts(error).message
        raise UsageError(f"Nothing was forgotten: {said}. {getattr(error, 'hint', None) or ''}".rstrip()) from None
    return Forgotten(topic.name, list(keys), **row, dry_run=dry_run)
