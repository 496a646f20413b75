"""What a series of measurements says: a slope with its error, and how long something waited outside of windows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean

Point = tuple[float, float]
"""Seconds since the start, and a value then."""

Span = tuple[float, float]
"""From when to when, in seconds since the start."""

BLOCK_S = 10.0
"""Memory is a staircase: neighbouring samples are no independent ones. The means of blocks this long nearly are."""


@dataclass(frozen=True)
class Slope:
    """A straight line through a series by least squares; per hour."""

    per_hour: float
    stderr_per_hour: float
    hours: float

    @property
    def growth(self) -> float:
        """How much that is over the whole series."""
        return self.per_hour * self.hours

    def is_noise(self, floor: float) -> bool:
        """Whether it is no growth: within three standard errors of zero, or smaller than what counts at all."""
        return self.per_hour < 3 * self.stderr_per_hour or self.growth < floor


def slope(series: Sequence[Point]) -> Slope | None:
    """Fit a line through the means of blocks; None for fewer than four blocks, which tell nothing."""
    blocks = [list(block) for _, block in groupby(series, key=lambda point: int(point[0] / BLOCK_S))]
    if len(blocks) < 4:
        return None
    times = [fmean(time for time, _ in block) / 3600 for block in blocks]
    values = [fmean(value for _, value in block) for block in blocks]
    mean_time, mean_value = fmean(times), fmean(values)
    spread = sum((time - mean_time) ** 2 for time in times)
    rise = sum((time - mean_time) * value for time, value in zip(times, values, strict=True)) / spread
    errors = [value - mean_value - rise * (time - mean_time) for time, value in zip(times, values, strict=True)]
    stderr = (sum(error**2 for error in errors) / (len(blocks) - 2) / spread) ** 0.5
    return Slope(rise, stderr, times[-1] - times[0])


def union(spans: Iterable[Span]) -> list[Span]:
    """Merge spans that overlap; sorted."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def length_outside(span: Span, windows: Iterable[Span]) -> float:
    """Return how much of a span lies in none of the windows, which do not overlap; in seconds."""
    start, end = span
    inside = sum(max(0.0, min(end, until) - max(start, since)) for since, until in windows)
    return end - start - inside
