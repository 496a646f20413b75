"""What differs between cached rows and true ones, column by column. Pure."""

import json
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import Literal


class Absent(Enum):
    """Stands for what is not there; null is a value like any other."""

    ABSENT = "absent"


ABSENT = Absent.ABSENT


@dataclass(frozen=True, slots=True)
class Difference:
    """One column that is wrong, or one row that should be there, or should not."""

    path: tuple[str, ...]
    """Where, as the topic's describe function names it: table, row, column."""
    cached: object
    true: object

    @property
    def kind(self) -> Literal["missing", "stale", "differs"]:
        """missing: true, but not cached. stale: cached, but no longer true."""
        if self.cached is ABSENT:
            return "missing"
        return "stale" if self.true is ABSENT else "differs"

    def as_json(self) -> dict[str, object]:
        """Return what --json prints; its keys are public."""
        cached, true = (None if value is ABSENT else value for value in (self.cached, self.true))
        return {"path": list(self.path), "kind": self.kind, "cached": cached, "true": true}


def differences(cached: str | None, true: str | None) -> list[Difference]:
    """Compare two answers of a describe function, as JSON; None where it found no row at all."""
    return _compare(_parsed(cached), _parsed(true), ())


def _parsed(described: str | None) -> object:
    return ABSENT if described is None else json.loads(described, parse_float=Decimal)


def _compare(cached: object, true: object, path: tuple[str, ...]) -> list[Difference]:
    if isinstance(cached, dict) and isinstance(true, dict):
        names = sorted(cached.keys() | true.keys())
        return [
            found
            for name in names
            for found in _compare(cached.get(name, ABSENT), true.get(name, ABSENT), (*path, name))
        ]
    return [] if cached == true else [Difference(path, cached, true)]
