"""How answers look on a terminal, and as JSON. Pure."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from daemon.backfill import Tally
from daemon.reports import Of
from daemon.status import DaemonStatus, Status, TopicStatus
from daemon.verify import Verdict

MINUTE_S = 60
HOUR_S = 3600
MOST_LINES = 20


def as_json(value: object) -> str:
    """Return JSON for machines: times in ISO 8601, numbers as numbers."""
    return json.dumps(value, indent=2, default=_plain)


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


def duration(seconds: float | None) -> str:
    """Say a duration as people do: 8 ms, 1.2 s, 3 min, 2.5 h; a dash for none."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < MINUTE_S:
        return f"{seconds:.1f} s"
    return f"{seconds / MINUTE_S:.0f} min" if seconds < HOUR_S else f"{seconds / HOUR_S:.1f} h"


def status_text(status: Status) -> str:
    """Return what `recalcd status` prints; the first line is the verdict."""
    verdict = ["healthy"] if not status.problems else ["NOT HEALTHY", *(f"  {each}" for each in status.problems)]
    topics = columns([_TOPIC_HEADER, *map(_topic_row, status.topics)], right=range(1, len(_TOPIC_HEADER)))
    daemons = (
        columns([_DAEMON_HEADER, *map(_daemon_row, status.daemons)]) if status.daemons else "no daemon within the hour"
    )
    return "\n".join([*verdict, "", topics, "", daemons])


_TOPIC_HEADER = ("TOPIC", "EVENTS", "KEYS", "OLDEST", "RETRYING", "DEAD", "P50", "P95", "P99", "EVENTS/RECALC")


def _topic_row(topic: TopicStatus) -> tuple[str, ...]:
    per_key = f"{topic.event_count / topic.key_count:.1f}" if topic.key_count else "-"
    return (
        topic.topic + (" (paused)" if topic.paused_at else ""),
        f"{topic.pending_events:,}",
        f"{topic.pending_keys:,}",
        duration(topic.oldest_s),
        f"{topic.retrying_keys:,}",
        f"{topic.dead_keys:,}",
        duration(topic.freshness_p50_s),
        duration(topic.freshness_p95_s),
        duration(topic.freshness_p99_s),
        per_key,
    )


_DAEMON_HEADER = ("DAEMON", "PID", "VERSION", "STATE", "SEEN")


def _daemon_row(daemon: DaemonStatus) -> tuple[str, ...]:
    return (daemon.host, str(daemon.pid), daemon.version, daemon.state, f"{duration(daemon.seen_s)} ago")


def verdict_text(verdict: Verdict) -> str:
    """Return what `recalcd verify` prints."""
    lines = [f"checked {verdict.checked_count:,} keys: {len(verdict.drifted):,} drifted"]
    repaired = set(verdict.repaired)
    lines += _some([f"  drifted: {key}" + (" (repaired)" if key in repaired else "") for key in verdict.drifted])
    lines += _some([f"  failed: {key}: {message}" for key, message in verdict.failed.items()])
    if verdict.left_out:
        lines.append(f"{len(verdict.left_out):,} keys were not judged: they owe a failed recalculation, or stayed busy")
    return "\n".join(lines)


def _some(lines: list[str]) -> list[str]:
    """Return the first lines, and how many there would be more."""
    more = len(lines) - MOST_LINES
    return lines if more <= 0 else [*lines[:MOST_LINES], f"  … and {more:,} more (--json lists them all)"]


def tally_text(tally: Tally) -> str:
    """Return what `recalcd backfill` prints."""
    lines = [f"recalculated {tally.done_count:,} keys: {tally.changed_count:,} changed"]
    if tally.left_count:
        lines.append(f"left {tally.left_count:,} to the daemon, which is at work on them")
    lines += _some([f"  failed: {key}" for key in tally.failed])
    return "\n".join(lines)


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
