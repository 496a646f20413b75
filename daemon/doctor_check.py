"""What every check of `recalcd doctor` is made of."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Literal

import asyncpg

from daemon.database import sqlstate_of
from daemon.redaction import error_facts
from daemon.settings import Settings
from daemon.threats import Thresholds

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Complaint:
    """Something a check found. error: wrong or unsafe now. warning: slow, or wrong one day."""

    level: Level
    sentence: str
    remedy: str


Complaints = AsyncIterator[Complaint]


def error(sentence: str, remedy: str) -> Complaint:
    return Complaint("error", sentence, remedy)


def warning(sentence: str, remedy: str) -> Complaint:
    return Complaint("warning", sentence, remedy)


@dataclass(frozen=True, slots=True)
class Finding:
    """What doctor says: a complaint, or that all is well, and which check says so. The fields are public in JSON."""

    check: str
    level: Level
    sentence: str
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class Patient:
    """What is examined."""

    connection: asyncpg.Connection
    settings: Settings
    limits: Thresholds = field(default_factory=Thresholds)


@dataclass(frozen=True, slots=True)
class Check:
    """A check, and what it says when it has no complaint."""

    name: str
    examine: Callable[[Patient], Complaints]
    all_is_well: str

    async def run(self, patient: Patient) -> list[Finding]:
        """Return what was found: at least that all is well, or that the check could not be made.

        Raises asyncpg's errors when the connection is lost.
        """
        found: list[Complaint] = []
        try:
            found += [each async for each in self.examine(patient)]
        except asyncpg.PostgresError as reason:
            if patient.connection.is_closed() or isinstance(reason, asyncpg.PostgresConnectionError):
                raise
            facts = error_facts(reason)
            said = f"the check could not be made: {facts.message} ({sqlstate_of(reason)})"
            found.append(error(said, "See to the other findings first, or examine as a role that may do more."))
        if not found:
            return [Finding(self.name, "ok", self.all_is_well)]
        return [Finding(self.name, each.level, each.sentence, each.remedy) for each in found]
