"""What `recalcd migrate status` prints. Pure."""

from collections.abc import Sequence
from typing import Any

from daemon.migration_state import FileStatus, SetStatus, State


def as_json(sets: Sequence[SetStatus]) -> dict[str, Any]:
    """Return what `recalcd migrate status --json` prints; times in ISO 8601, null for what is not applied."""
    return {
        each.name: {
            "version": each.version,
            "is_current": each.is_current,
            "migrations": [_facts(one) | {"version": one.version} for one in each.migrations],
            "routines": [_facts(one) for one in each.routines],
        }
        for each in sets
    }


def _facts(file: FileStatus) -> dict[str, Any]:
    applied_at = file.applied_at.isoformat() if file.applied_at else None
    return {"name": file.name, "state": file.state, "applied_at": applied_at}


def as_table(sets: Sequence[SetStatus]) -> str:
    """Return what `recalcd migrate status` prints: a line for every migration, and one for all routines of a set."""
    rows = [("SET", "VERSION", "NAME", "STATE")]
    for each in sets:
        rows += [(each.name, f"{one.version:04}", one.name, _told(one)) for one in each.migrations]
        rows.append((each.name, "", "routines", _summary(each.routines)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join("  ".join([*map(str.ljust, row[:3], widths), row[3]]) for row in rows)


def _told(file: FileStatus) -> str:
    return f"{file.state} {file.applied_at:%Y-%m-%d %H:%M:%S %Z}" if file.applied_at else file.state


def _summary(routines: Sequence[FileStatus]) -> str:
    """Count the routines by state, and name those of which something is to be said: '26 applied, 1 gone (a.b.sql)'."""
    by_state: dict[State, list[str]] = {}
    for each in routines:
        by_state.setdefault(each.state, []).append(each.name)
    named = {State.CHANGED, State.MISSING, State.GONE}
    parts = [
        f"{len(names)} {state}" + (f" ({', '.join(names)})" if state in named else "")
        for state, names in by_state.items()
    ]
    return ", ".join(parts) or "none"
