"""How a batch looks on one line. Pure."""

from daemon.render import counted, duration
from daemon.tail import Line


def line_text(line: Line) -> str:
    """Return one line of `recalcd tail`; times are UTC."""
    changed = "? changed" if line.changed_count is None else f"{line.changed_count:,} changed"
    parts = [
        f"{line.finished_at:%H:%M:%S}.{line.finished_at.microsecond // 1000:03}",
        line.topic,
        f"{line.kind:8}",
        f"{counted(line.key_count, 'key'):>9}",
        f"{changed:>11}",
        f"{counted(line.event_count, 'event'):>12}",
        f"fresh after {duration(line.freshness_s):>7}",
        f"took {duration(line.recalculate_ms / 1000):>7}",
        ", ".join(line.reasons),
    ]
    return "  ".join(parts).rstrip()
