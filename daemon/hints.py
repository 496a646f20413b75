"""What a daemon remembers of its topics between batches. Pure. Forgetting it costs time, never an event."""

from collections import defaultdict, deque
from dataclasses import dataclass, field

TRAIL_S = 2.0
"""How far the low-water mark trails the claims: ids become visible out of order (measured: design.md, The claim)."""
SWEEP_S = 5.0
"""How often to look below a topic's mark, for events that became visible late; at most twice that under load."""
MOST_KEYS = 1000
LEAST_KEYS = 32
"""Batches that take long don't get smaller than this: below, it is the server that is slow, not the keys, and ever more
and ever smaller batches would make it slower. (Seen: 500 events at one key a batch, 100 ms each.)"""
NEARLY = 0.9
"""How much of its target a batch that grows may be expected to take: it is what a batch should take at most."""


@dataclass
class TopicHints:
    """Times are of a monotonic clock, in seconds."""

    heads: deque[tuple[float, int]] = field(default_factory=deque)
    above: int = 0
    keys: int | None = None
    skip_until: float = 0.0
    sweep_at: float = 0.0

    def is_due(self, now: float) -> bool:
        """Whether it is time to look below the mark."""
        return self.sweep_at <= now and self.skip_until <= now


class Hints:
    """The low-water mark, the size of a batch, and the topics to leave alone, per topic."""

    def __init__(self, batch_target_s: float) -> None:
        """Size batches to take batch_target_s seconds."""
        self._batch_target_s = batch_target_s
        self._topics: defaultdict[str, TopicHints] = defaultdict(TopicHints)
        self._most_keys = MOST_KEYS

    def for_claim(self, now: float, *, sweep: str | None = None) -> dict[str, dict[str, object]]:
        """Return what outbox.claim takes: with a topic to sweep, to look at that one only, from the start."""
        topics = {topic: self._of(topic, now, sweep) for topic in self._topics}
        return topics | {"": {"keys": self._most_keys}}

    def _of(self, topic: str, now: float, sweep: str | None) -> dict[str, object]:
        hints = self._topics[topic]
        while hints.heads and hints.heads[0][0] <= now - TRAIL_S:
            hints.above = max(hints.above, hints.heads.popleft()[1])
        return {
            "above": 0 if topic == sweep else hints.above,
            "keys": hints.keys or MOST_KEYS,
            "skip": hints.skip_until > now or sweep not in (None, topic),
        }

    def next_sweep(self, now: float) -> str | None:
        """Return the topic that has waited longest to be swept, which the caller then does; None when it is not time.

        One at a time: a claim ends at the first topic that has something, and the slowest topic would be the one whose
        turn is always over when the time for a sweep has come.
        """
        due = [(hints.sweep_at, topic) for topic, hints in self._topics.items() if hints.is_due(now)]
        if not due:
            return None
        _, topic = min(due)
        self._topics[topic].sweep_at = now + 2 * SWEEP_S
        return topic

    def swept(self, topic: str, head_event_id: int | None, now: float, *, is_full: bool) -> None:
        """Hear how far a sweep came: when that is not up to the mark, there may be more."""
        hints = self._topics[topic]
        if is_full and head_event_id is not None and head_event_id < hints.above:
            hints.sweep_at = now

    def sweep(self) -> None:
        """Look below every mark as soon as may be."""
        for hints in self._topics.values():
            hints.sweep_at = 0.0

    def found_nothing(self, now: float) -> bool:
        """Hear that a claim above the marks found nothing; tell whether it is time to look below any of them, too.

        New events go first: while the horizon is pinned a sweep takes long, and would keep them waiting.
        """
        for hints in self._topics.values():
            if hints.sweep_at <= now + SWEEP_S:  # swept so long ago
                hints.sweep_at = min(hints.sweep_at, now)
        return any(hints.is_due(now) for hints in self._topics.values())

    def claimed(self, topic: str, head_event_id: int | None, now: float) -> None:
        """Remember how far the head was taken."""
        if head_event_id is not None:
            self._topics[topic].heads.append((now, head_event_id))

    def forget_marks(self) -> None:
        """Look from the start again: what was taken came back, and may lie below a mark."""
        for hints in self._topics.values():
            hints.heads.clear()
            hints.above = 0

    def took(self, topic: str, key_count: int, seconds: float, *, is_full: bool) -> None:
        """Size the next batch by what this one took: shrink at once, grow towards the target, by doubling at most.

        is_full says that there was more at the head. The keys don't: as many events may have been of a few.
        """
        hints = self._topics[topic]
        limit = hints.keys or MOST_KEYS
        if seconds > self._batch_target_s:
            hints.keys = min(limit, max(LEAST_KEYS, int(key_count * self._batch_target_s / seconds)))
        elif is_full and seconds < NEARLY * self._batch_target_s:
            fitting = int(limit * NEARLY * self._batch_target_s / max(seconds, 1e-6))
            hints.keys = min(fitting, 2 * limit, MOST_KEYS)
            self._most_keys = min(2 * self._most_keys, MOST_KEYS)

    def halve(self, topic: str, key_count: int) -> None:
        """Ask for less: the batch was too much for the server."""
        self._topics[topic].keys = max(1, key_count // 2)

    def halve_all(self) -> None:
        """Ask for less of every topic: the server could not even bear the locks."""
        self._most_keys = max(1, self._most_keys // 2)

    def skip(self, topic: str, until: float) -> None:
        """Leave the topic alone until then."""
        self._topics[topic].skip_until = until

    def skipped(self, now: float) -> list[str]:
        """Return the topics left alone at the moment."""
        return [topic for topic, hints in self._topics.items() if hints.skip_until > now]
