"""A clock that steps beneath a running process: libfaketime, whose offset is read from a file again and again."""

from dataclasses import dataclass
from pathlib import Path

import pytest

LIBRARIES = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/lib/faketime/libfaketimeMT.so.1")


@dataclass(frozen=True)
class Clock:
    """What a process started with `environment` takes for the time of day. Its monotonic clock is left alone."""

    environment: dict[str, str]
    _offset: Path

    def step(self, offset: str) -> None:
        """Set the clock off by so much: +1h, -2d, +0."""
        fresh = self._offset.with_suffix(".new")
        fresh.write_text(offset)
        fresh.chmod(0o644)
        fresh.rename(self._offset)  # a reader never finds half of it


def clock_in(folder: Path) -> Clock:
    """Make a clock that is right so far. Skips the test where libfaketime is missing."""
    root = Path("/")
    found = [path for pattern in LIBRARIES for path in root.glob(pattern.lstrip("/"))]
    if not found:
        pytest.skip("needs libfaketime, to step a clock: apt-get install faketime")
    offset = folder / "offset"
    clock = Clock(
        {
            "LD_PRELOAD": str(found[0]),
            "FAKETIME_TIMESTAMP_FILE": str(offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        },
        offset,
    )
    clock.step("+0")
    return clock
