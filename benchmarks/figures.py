"""What a benchmark finds: series of measurements, ratios between them, and whether a target was met."""

import operator
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

from rich.progress import track

Measured = TypeVar("Measured")
Sense = Literal["<", "<=", ">", ">="]

_COMPARE: dict[Sense, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class Series:
    """The same measurement again and again."""

    unit: str
    values: tuple[float, ...]

    @classmethod
    def of(cls, unit: str, values: Iterable[float]) -> "Series":
        """Gather measurements."""
        return cls(unit, tuple(values))

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        """The tenth percentile; of a handful the smallest."""
        return self.percentile(10)

    @property
    def high(self) -> float:
        """The ninetieth percentile; of a handful the largest."""
        return self.percentile(90)

    def percentile(self, percent: float) -> float:
        """Return the smallest value that more than `percent` of the values do not exceed."""
        ranked = sorted(self.values)
        rank = len(ranked) * percent / 100
        return ranked[min(len(ranked) - 1, int(rank))]

    def over(self, other: "Series") -> "Series":
        """Divide round by round: both sides of a round met the same weather."""
        return Series.of("x", (mine / theirs for mine, theirs in zip(self.values, other.values, strict=True)))

    def as_dict(self) -> dict[str, Any]:
        """Return what the JSON file says of it."""
        summary = {"median": self.median, "low": self.low, "high": self.high, "count": len(self.values)}
        return {"unit": self.unit, **summary, "values": list(self.values)}


@dataclass(frozen=True)
class Verdict:
    """A figure that has to reach something."""

    what: str
    figure: Series
    sense: Sense
    target: float

    @property
    def is_met(self) -> bool:
        return _COMPARE[self.sense](self.figure.median, self.target)

    def as_dict(self) -> dict[str, Any]:
        """Return what the JSON file says of it."""
        target = f"{self.sense} {self.target:g}"
        return {"what": self.what, "target": target, "is_met": self.is_met, "figure": self.figure.as_dict()}


@dataclass(frozen=True)
class Row:
    """One side of a comparison, and what was measured of it."""

    name: str
    figures: Mapping[str, Series]

    def as_dict(self) -> dict[str, Any]:
        """Return what the JSON file says of it."""
        return {"name": self.name, "figures": {name: each.as_dict() for name, each in self.figures.items()}}


@dataclass(frozen=True)
class Part:
    """One benchmark: its question, its answer."""

    name: str
    question: str
    how: str
    rows: Sequence[Row]
    verdicts: Sequence[Verdict] = field(default_factory=tuple)

    def as_dict(self) -> dict[str, Any]:
        """Return what the JSON file says of it."""
        shallow = {key: value for key, value in vars(self).items() if isinstance(value, str)}
        return {
            **shallow,
            "verdicts": [each.as_dict() for each in self.verdicts],
            "rows": [each.as_dict() for each in self.rows],
        }


@dataclass(frozen=True)
class Report:
    """All of a run."""

    machine: Mapping[str, str]
    command: str
    parts: Sequence[Part]

    def as_dict(self) -> dict[str, Any]:
        """Return what the JSON file says of it."""
        return {
            "machine": dict(self.machine),
            "command": self.command,
            "parts": [each.as_dict() for each in self.parts],
        }


async def interleaved(
    what: str, rounds: int, sides: Mapping[str, Callable[[], Awaitable[Measured]]]
) -> dict[str, list[Measured]]:
    """Measure the sides in turn, A B C A B C, so that what else the machine does befalls all of them."""
    measured: dict[str, list[Measured]] = {name: [] for name in sides}
    turns = [name for _ in range(rounds) for name in sides]
    for turn, name in enumerate(track(turns, description=f"{what:<10}", transient=True), 1):
        started = time.monotonic()
        measured[name].append(await sides[name]())
        if not sys.stderr.isatty():  # where nobody sees the bar
            line = f"{what} {turn}/{len(turns)}: {time.monotonic() - started:.1f} s, {name}"
            print(line, file=sys.stderr, flush=True)
    return measured


def columns(unit_of: Mapping[str, str], measured: Sequence[object]) -> dict[str, Series]:
    """Turn one dataclass a round into one series a field; unit_of names the fields to show, and their units."""
    fields = [asdict(each) for each in measured]  # type: ignore[call-overload]  # dataclasses all
    return {name: Series.of(unit, (each[name] for each in fields)) for name, unit in unit_of.items()}
