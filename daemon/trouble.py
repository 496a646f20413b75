"""What keeps failing for a reason that usually passes: somebody's lock, or the server's state. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

TRIES = 3
"""Batches in a row that may fail for such a reason before careful mode lets the others pass."""


@dataclass
class Trouble:
    """The keys of a topic that were in every such batch of late, and in none that was committed meanwhile.

    Batches of others may succeed in between, so a count of failures in a row would never grow.
    """

    keys: frozenset[str] = frozenset()
    count: int = 0
    began_after: int = 0
    """Batches that the daemon had committed when it began."""

    def failed(self, keys: Iterable[str], committed_count: int) -> None:
        """Hear of a batch that failed."""
        failed = frozenset(keys)
        common = self.keys & failed
        if not common:
            self.count, self.began_after = 0, committed_count
        self.keys = common or failed
        self.count += 1

    def passed(self, keys: Iterable[str]) -> None:
        """Hear of a batch that was committed."""
        self.keys -= frozenset(keys)

    @property
    def stays(self) -> bool:
        """Whether waiting did not help."""
        return self.count > TRIES

    def others_passed(self, committed_count: int) -> bool:
        """Tell whether the daemon committed anything since it began: then it is not the server that is in trouble."""
        return committed_count > self.began_after
