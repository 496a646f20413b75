"""The screen of `recalcd top`, for whatever size the terminal has. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from daemon.render import columns, duration
from daemon.top import SLICE_S, FailingKey, Snapshot

BARS = "▁▂▃▄▅▆▇█"
_LABEL_WIDTH = 30
_PROBLEMS_SHOWN = 3
_FOOTER = "Curves: the last two minutes, in steps of two seconds. Ctrl-C ends it."


@dataclass(frozen=True, slots=True)
class Screen:
    """Draws itself in the size that the terminal has at that moment."""

    snapshot: Snapshot

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the screen as one text; what does not fit is cut off, not wrapped."""
        lines = screen_lines(self.snapshot, width=options.max_width, height=options.max_height)
        text = Text("\n".join(lines), no_wrap=True, overflow="crop", end="")
        text.stylize("bold red" if self.snapshot.status.problems else "bold green", 0, len(lines[0]))
        yield text


def screen_lines(snapshot: Snapshot, *, width: int, height: int) -> list[str]:
    """Return the lines, none longer than the width, not more than the height; failures get the room that is left."""
    status = snapshot.status
    problems = [f"  {each}" for each in status.problems[:_PROBLEMS_SHOWN]]
    above = [status.verdict, *(problems[1:] if len(problems) > 1 else []), "", *_sparklines(snapshot, width), ""]
    above += [*_topics(snapshot), "", *_daemons(snapshot), ""]
    room = max(0, height - len(above) - 1)
    body = [*above, *_failures(snapshot.failing, room)][: height - 1]
    return [_cut(line, width) for line in [*body, *[""] * (height - 1 - len(body)), _FOOTER]]


def sparkline(values: Sequence[float | None]) -> str:
    """Draw values as bars, the greatest one full; a blank for none."""
    most = max((value for value in values if value is not None), default=0.0)
    return "".join(" " if value is None else _bar(value, most) for value in values)


def _bar(value: float, most: float) -> str:
    return BARS[0] if most <= 0 else BARS[min(len(BARS) - 1, int(value / most * len(BARS)))]


def _sparklines(snapshot: Snapshot, width: int) -> Iterable[str]:
    whole = snapshot.series[:-1]  # the slice that we are in is not over
    series = whole[-max(1, width - _LABEL_WIDTH) :]
    rate = (whole[-1].key_count if whole else 0) / SLICE_S
    freshest = next((each.freshness_s for each in reversed(snapshot.series) if each.freshness_s is not None), None)
    for label, values in (
        (f"keys/s     now {rate:,.0f}", [float(each.key_count) for each in series]),
        (f"freshness  last {duration(freshest)}", [each.freshness_s for each in series]),
    ):
        yield f"{label:{_LABEL_WIDTH}}{sparkline(values)}"


def _topics(snapshot: Snapshot) -> list[str]:
    header = ("TOPIC", "EVENTS", "KEYS", "OLDEST", "FAILING", "DEAD", "P50", "P99")
    rows = [
        (
            each.topic + (" (paused)" if each.paused_at else ""),
            f"{each.pending_events:,}",
            f"{each.pending_keys:,}",
            duration(each.oldest_s),
            f"{each.retrying_keys:,}",
            f"{each.dead_keys:,}",
            duration(each.freshness_p50_s),
            duration(each.freshness_p99_s),
        )
        for each in snapshot.status.topics
    ]
    return columns([header, *rows], right=range(1, len(header))).splitlines()


def _daemons(snapshot: Snapshot) -> list[str]:
    running = snapshot.status.running
    if not running:
        return ["no daemon is running"]
    header = ("DAEMON", "PID", "VERSION", "STATE", "SEEN", "KEYS IN 5 MIN")
    rows = [
        (each.host, str(each.pid), each.version, each.state, f"{duration(each.seen_s)} ago", f"{each.key_count:,}")
        for each in running
    ]
    return columns([header, *rows], right=[1, 4, 5]).splitlines()


def _failures(failing: Sequence[FailingKey], room: int) -> list[str]:
    if not failing:
        return ["no key is failing"]
    header = ("FAILING", "KEY", "STATE", "TRIES", "ERROR")
    rows = [
        (each.topic, each.key, each.state, str(each.attempts), f"{each.sqlstate or ''} {each.message or ''}".strip())
        for each in failing[: max(1, room - 1)]
    ]
    return columns([header, *rows], right=[3]).splitlines()


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 1] + "…"
