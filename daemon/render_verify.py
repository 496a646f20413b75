"""How the findings of a verification look on a terminal. Pure."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from daemon.difference import ABSENT, Difference
from daemon.missed import Written
from daemon.verify import Verdict

MOST_KEYS = 20
MOST_DIFFERENCES = 12
MOST_CHARACTERS = 60


def verdict_text(verdict: Verdict) -> str:
    """Return what `recalcd verify` prints."""
    lines = [f"checked {verdict.checked_count:,} keys: {len(verdict.drifted):,} drifted"]
    repaired = set(verdict.repaired)
    for key in verdict.drifted[:MOST_KEYS]:
        lines.append(f"  drifted: {key}" + (" (repaired)" if key in repaired else ""))
        lines += _differences(verdict.differences.get(key, []))
        lines += _missed(verdict.missed.get(key, []))
    lines += _more(len(verdict.drifted) - MOST_KEYS, "drifted keys")
    lines += [f"  failed: {key}: {message}" for key, message in list(verdict.failures().items())[:MOST_KEYS]]
    lines += _more(len(verdict.failed) - MOST_KEYS, "failed keys")
    if verdict.left_out:
        lines.append(f"{len(verdict.left_out):,} keys were not judged: they owe a failed recalculation, or stayed busy")
    return "\n".join(lines)


def _differences(found: Sequence[Difference]) -> Iterable[str]:
    """Name each row once, and its columns below."""
    for row, of_row in groupby(found[:MOST_DIFFERENCES], key=_row_of):
        if row:
            yield f"    {' / '.join(row)}"
        for each in of_row:
            yield f"      {_difference(each)}"
    yield from _more(len(found) - MOST_DIFFERENCES, "differences", indent=4)


def _row_of(difference: Difference) -> tuple[str, ...]:
    return difference.path[:-1] if difference.kind == "differs" else difference.path


def _difference(difference: Difference) -> str:
    match difference.kind:
        case "missing":
            return f"not cached; true is {_value(difference.true)}"
        case "stale":
            return f"no longer true; cached is {_value(difference.cached)}"
    name = f"{difference.path[-1]}: " if difference.path else ""
    return f"{name}cached {_value(difference.cached)}, true {_value(difference.true)}"


def _value(value: object) -> str:
    """Show a value on one line: what a bug report needs, not a page of it."""
    if isinstance(value, dict):
        text = "{" + ", ".join(f"{name}: {_value(each)}" for name, each in value.items()) + "}"
    else:
        text = "null" if value is None else "" if value is ABSENT else " ".join(str(value).split())
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"


def _missed(found: Sequence[Written]) -> Iterable[str]:
    if found:
        yield "    written since, without an event:"
    for each in found:
        row = ", ".join(f"{name} {value}" for name, value in each.row_key.items())
        yield f"      {each.source} ({row})" + (f" at {each.written_at:%Y-%m-%d %H:%M:%S}" if each.written_at else "")


def _more(count: int, what: str, *, indent: int = 2) -> list[str]:
    return [f"{'':{indent}}… and {count:,} more {what} (--json lists them all)"] if count > 0 else []
