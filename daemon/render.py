"""How answers look on a terminal, and as JSON. Pure."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from daemon.reports import Of

MINUTE_S = 60
HOUR_S = 3600


def as_json(value: object, *, indent: int | None = 2) -> str:
    """Return JSON for machines: times in ISO 8601, numbers as numbers. indent=None: in one line."""
    return json.dumps(value, indent=indent, default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    return float(value) if isinstance(value, Decimal) else str(value)


def columns(rows: Sequence[Sequence[str]], *, right: Iterable[int] = ()) -> str:
    """Align rows of cells; the columns in `right` to the right."""
    to_right = set(right)
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.rjust(width) if column in to_right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
    return "\n".join(lines)


def counted(number: int, one: str, many: str = "") -> str:
    """Say how many of something: 1 event, 2,000 events."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def duration(seconds: float | None) -> str:
    """Say a duration as people do: 8 ms, 1.2 s, 3 min, 2.5 h; a dash for none."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < MINUTE_S:
        return f"{seconds:.1f} s"
    return f"{seconds / MINUTE_S:.0f} min" if seconds < HOUR_S else f"{seconds / HOUR_S:.1f} h"


def report_text(of: Of, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what `recalcd report` prints: a pupil's row as a list, the rows of a group or a cohort as a grid."""
    if not rows:
        return "nobody"
    if of == "student":
        return columns([(name, cell(value)) for name, value in rows[0].items()])
    header = list(rows[0].keys())
    return columns([[name.upper() for name in header], *([cell(row[name]) for name in header] for row in rows)])


def cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case Decimal():
            return f"{value:.2f}"
        case datetime():
            return f"{value:%Y-%m-%d %H:%M:%S}"
    return str(value)
