"""What a soak found, as text and as JSON."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from soak.faults import FAULTS, TAKEOVER_S
from soak.figures import Point, Slope, slope
from soak.fleet import Life
from soak.operations import OPERATIONS
from soak.play import Play
from soak.stage import DAEMON_SETTINGS, RECOVERY_S
from soak.watch import Freshness

SHORTEST_LIFE_S = 40.0
"""Shorter ones tell nothing."""
FRESH_S = 5.0 * DAEMON_SETTINGS["poll_interval_s"]
"""What no event may wait outside of fault windows: a lost NOTIFY costs one poll; the rest is for a busy machine."""
SETTLED_S = 240.0
"""Of a second half of a life: in shorter ones the heap is still being filled, and its slope tells nothing."""
GROWTH_MB = 1.0
"""Memory that a whole series may gain without being called a leak, whatever its slope says."""
GROWTH_FILES = 3


@dataclass(frozen=True)
class Use:
    """What one daemon used in the second half of its life."""

    name: str
    seconds: float
    first_mb: float
    last_mb: float
    most_mb: float
    slope: Slope | None
    """MB an hour."""
    first_files: float
    last_files: float

    @property
    def problems(self) -> list[str]:
        """Say what grew."""
        found = []
        if self.slope and self.seconds >= SETTLED_S and not self.slope.is_noise(GROWTH_MB):
            found.append(f"the memory of {self.name} grows by {self.slope.per_hour:.1f} MB an hour")
        if self.last_files > self.first_files + GROWTH_FILES:
            found.append(f"{self.name} had {self.first_files:g} files open at first, and {self.last_files:g} at last")
        return found


def use(life: Life) -> Use | None:
    """Sum up one life; None for one that was over before it had warmed up."""
    if not life.memory_mb or life.memory_mb[-1][0] - life.memory_mb[0][0] < SHORTEST_LIFE_S:
        return None
    memory, files = _warm(life.memory_mb), _warm(life.files)
    quarter = len(files) // 4
    return Use(
        life.name,
        memory[-1][0] - memory[0][0],
        memory[0][1],
        memory[-1][1],
        max(mb for _, mb in memory),
        slope(memory),
        median(count for _, count in files[: quarter + 1]),
        median(count for _, count in files[-quarter - 1 :]),
    )


def _warm(series: list[Point]) -> list[Point]:
    """Leave out the first half: without any fault the heap takes ten minutes to settle, each one adding less."""
    start, end = series[0][0], series[-1][0]
    return [point for point in series if point[0] >= (start + end) / 2]


@dataclass(frozen=True)
class Report:
    """Everything that is told in the end."""

    play: Play
    uses: list[Use]
    problems: list[str]

    def as_json(self) -> dict[str, Any]:
        """Return what --json prints."""
        play = self.play
        return {
            "seed": play.stage.seed,
            "seconds": round(play.seconds, 1),
            "faults": dict(play.faults),
            "thwarted_faults": dict(play.thwarted),
            "writes": play.writers.count,
            "lost_connections_of_writers": play.writers.refused_count,
            "events": play.events,
            "recalculations": play.recalculations,
            "looks": play.watcher.look_count,
            "freshness": asdict(play.fresh) if play.fresh else None,
            "innocent_keys_charged": len(play.watcher.charged),
            "daemons": [asdict(each) for each in self.uses],
            "dead_tuples": play.watcher.dead_tuples,
            "problems": self.problems,
        }

    def lines(self) -> Iterator[str]:
        """Yield the report line by line."""
        play, fresh = self.play, self.play.fresh
        unseen = [each.name for each in (*FAULTS, *OPERATIONS) if each.name not in play.faults]
        yield f"seed             {play.stage.seed}  (SOAK_SEED={play.stage.seed} repeats the order of faults)"
        yield f"time             {play.seconds:.0f} s, {play.watcher.look_count:,} looks at the promise"
        yield f"faults           {play.faults.total()}, {play.thwarted.total()} more were thwarted by another one"
        for name, count in sorted(play.faults.items(), key=lambda item: (-item[1], item[0])):
            yield f"                 {count:4}  {name}"
        if unseen:
            yield f"                 none of: {', '.join(unseen)}"
        yield f"writes           {play.writers.count:,}; writers lost a connection {play.writers.refused_count:,} times"
        yield f"events           {play.events:,}"
        yield f"recalculations   {play.recalculations:,}"
        if fresh:
            yield from _freshness_lines(fresh)
        yield f"innocent keys    {len(play.watcher.charged)} charged with an attempt, since their backends were ended"
        for each in self.uses:
            yield _use_line(each)
        yield _dead_tuples_line(play.watcher.dead_tuples)
        yield "verdict          " + ("all is well" if not self.problems else f"{len(self.problems)} problems")
        yield from (f"                 {problem}" for problem in self.problems)


def report(play: Play) -> Report:
    """Judge."""
    uses = [each for life in play.fleet.lives if (each := use(life))]
    problems = [*play.stage.problems, *(problem for each in uses for problem in each.problems)]
    if play.fresh and play.fresh.worst_outside_s > FRESH_S:
        problems.append(f"an event waited {play.fresh.worst_outside_s:.1f} s outside of fault windows, not {FRESH_S:g}")
    if not play.recalculations:
        problems.append("nothing was recalculated")
    return Report(play, uses, problems)


def _use_line(each: Use) -> str:
    line = f"{each.name:16} {each.seconds:4.0f} s: {each.first_mb:.1f} to {each.last_mb:.1f} MB"
    if each.slope:
        line += f"; slope {each.slope.per_hour:+.1f} ± {each.slope.stderr_per_hour:.1f} MB/h"
    return f"{line}; files {each.first_files:g} to {each.last_files:g}"


def _freshness_lines(fresh: Freshness) -> Iterator[str]:
    yield f"freshness        median {fresh.p50_s * 1000:.0f} ms, worst {fresh.worst_s:.1f} s"
    yield f"                 outside of fault windows ({fresh.outside_share:.0%}) worst {fresh.worst_outside_s:.2f} s"
    yield f"                 (they end {TAKEOVER_S:g} s after a fault of one daemon, {RECOVERY_S:g} s after others)"


def _dead_tuples_line(samples: list[tuple[float, int, int]]) -> str:
    if not samples:
        return "dead tuples      never seen"
    dead, kb = [count for _, count, _ in samples], [size for _, _, size in samples]
    course = " ".join(str(dead[len(dead) * step // 10]) for step in range(10))
    return f"dead tuples      {course} {dead[-1]}, at most {max(dead):,}; outbox.event at most {max(kb):,} kB"
