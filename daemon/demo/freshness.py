"""Which batch a write went into, and how long that took. Pure.

Both times are commits, by the database's clock. The history says of a batch which keys it took and when, but not which
events, so the pairing is inferred, key by key, from what is certain:

- A batch sees all that was committed when it started. So a write belongs to the first batch of its key that started
  after it, or to an earlier one.
- A commit is stamped before it is flushed, and visible only after. So a batch that started in between did not see it.
  Then a later batch of the key exists, and nothing else explains it: no batch takes a key without an event of it.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import ceil
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DoneBatch:
    """A batch as the history has it."""

    keys: Sequence[str]
    event_count: int
    started_at: datetime
    committed_at: datetime


@dataclass(frozen=True, slots=True)
class Freshness:
    """How long the writes took to be in the report, in milliseconds."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


def measure(commits: Iterable[tuple[str, datetime]], batches: Iterable[DoneBatch]) -> tuple[list[float], int]:
    """Return the seconds from commit to commit of every write that a batch took, and how many no batch took."""
    batches_of = _by_key((key, batch) for batch in batches for key in batch.keys)
    waited, lost_count = [], 0
    for key, committed_at in _by_key(commits).items():
        pairs = pair(committed_at, batches_of.get(key, []))
        waited += [(done_at - at).total_seconds() for at, done_at in pairs]
        lost_count += len(committed_at) - len(pairs)
    return waited, lost_count


def pair(commits: Sequence[datetime], batches: Sequence[DoneBatch]) -> list[tuple[datetime, datetime]]:
    """Pair the commits of one key's writes with the commits of the batches that took them, youngest first.

    From the last batch backwards, each takes the writes that the batch before it started too early for; if there are
    none, the youngest that is left. What is left in the end is the first batch's. No write is paired with a batch that
    committed before it.
    """
    in_order = sorted(batches, key=lambda batch: batch.started_at)
    left = sorted(at for at in commits if in_order and at < in_order[-1].committed_at)
    pairs = []
    for number, batch in reversed(list(enumerate(in_order))):
        first = bisect_right(left, in_order[number - 1].started_at) if number else 0
        first = min(first, max(len(left) - 1, 0))
        pairs += [(at, batch.committed_at) for at in reversed(left[first:])]
        del left[first:]
    return pairs


def summarise(seconds: Sequence[float]) -> Freshness | None:
    """Return the percentiles, each a value that was measured; None of nothing."""
    if not seconds:
        return None
    ranked = sorted(seconds)
    p50, p95, p99, longest = (
        round(ranked[ceil(share * len(ranked)) - 1] * 1000, 3) for share in (0.5, 0.95, 0.99, 1.0)
    )
    return Freshness(p50, p95, p99, longest)


def _by_key(pairs: Iterable[tuple[str, T]]) -> Mapping[str, list[T]]:
    found: defaultdict[str, list[T]] = defaultdict(list)
    for key, value in pairs:
        found[key].append(value)
    return found
