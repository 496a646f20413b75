"""How fast a job goes: the size of its chunks, the throttle, and its speed. Pure."""

from dataclasses import dataclass, field

FIRST_CHUNK_KEYS = 100
_MEMORY = 0.9
"""What of the past a chunk leaves: the speed is that of the last ten chunks or so."""


@dataclass
class Pace:
    """Times are of a monotonic clock, in seconds."""

    target_s: float
    """What a chunk should take."""
    most_keys: int
    chunk_keys: int = FIRST_CHUNK_KEYS
    rate_limit: float | None = None
    """Most keys a second."""
    keys_per_s: float | None = None
    """Lately, waiting included; None before the first chunk."""
    _due_at: float = field(default=0.0, init=False)
    _ended_at: float | None = field(default=None, init=False)
    _keys: float = field(default=0.0, init=False)
    _seconds: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        """Take no more at once than the rate allows in a second."""
        if self.rate_limit is not None:
            self.most_keys = max(1, min(self.most_keys, int(self.rate_limit)))
        self.chunk_keys = max(1, min(self.chunk_keys, self.most_keys))

    def wait_s(self, now: float) -> float:
        """Tell how long the throttle holds the next chunk back."""
        return max(0.0, self._due_at - now)

    def rest(self) -> None:
        """Do not count the time since the last chunk: somebody paused the job."""
        self._ended_at = None

    def took(self, key_count: int, started: float, now: float) -> None:
        """Size the next chunk by what this one took: shrink at once, grow by doubling at most."""
        fitting = int(key_count * self.target_s / max(now - started, 1e-6))
        self.chunk_keys = max(1, min(fitting, 2 * self.chunk_keys, self.most_keys))
        if self.rate_limit is not None:
            self._due_at = max(self._due_at, started) + key_count / self.rate_limit
        self._keys = self._keys * _MEMORY + key_count
        self._seconds = self._seconds * _MEMORY + now - (started if self._ended_at is None else self._ended_at)
        self._ended_at = now
        self.keys_per_s = self._keys / max(self._seconds, 1e-6)
