"""Span telemetry: one JSON line per span, in a file per process. Losing it never stops the work it describes."""

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from daemon.redaction import error_facts, redact

RETRY_S = 60.0
_PRIVATE = 0o640  # the group may read, for log shippers


@dataclass(frozen=True, slots=True)
class EndedSpan:
    """What a span tells when it is over."""

    route: str
    function: str
    params: Mapping[str, object]
    started_at: datetime
    duration_s: float
    error: BaseException | None

    def as_line(self) -> str:
        """Return it as a line of JSON, without its end."""
        return json.dumps(
            {
                "timestamp": self.started_at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
                "route": self.route,
                "function": self.function,
                "params": {name: redact(p) if isinstance(p, str) else p for name, p in self.params.items()},
                "status": "ok" if self.error is None else "error",
                "duration_ms": round(self.duration_s * 1000, 3),
                "error": None if self.error is None else asdict(error_facts(self.error)),
            },
            default=lambda value: redact(str(value)),
        )


class Recorder(Protocol):
    """What a span is handed to when it ends. It never raises: that would end the work, too."""

    def record(self, span: EndedSpan) -> None: ...


class Span:
    """Measures a piece of work: `with span(...) as current: ...; current.add(changed_count=3)`."""

    __slots__ = ("_function", "_params", "_recorders", "_route", "_started", "_timestamp")

    def __init__(self, recorders: Sequence[Recorder], route: str, function: str, params: dict[str, object]) -> None:
        """Prepare; without a recorder the span costs next to nothing and leaves no trace."""
        self._recorders = recorders
        self._route = route
        self._function = function
        self._params = params

    def add(self, **params: object) -> None:
        """Add what only became known inside: counts, ids, durations; no payloads."""
        self._params.update(params)

    def __enter__(self) -> Self:
        if self._recorders:
            self._timestamp = datetime.now(UTC)
            self._started = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._recorders:
            self.ended(self._timestamp, time.perf_counter() - self._started, error)

    def ended(self, started_at: datetime, duration_s: float, error: BaseException | None = None) -> None:
        """Tell what was measured elsewhere."""
        ended = EndedSpan(self._route, self._function, self._params, started_at, duration_s, error)
        for recorder in self._recorders:
            recorder.record(ended)


class SpanFile:
    """Appends lines to `telem_<TIMESTAMP>.log`, made at the first line.

    When the disk is full or the folder can't be written, it says so once, drops lines, and tries again after RETRY_S.
    """

    def __init__(
        self,
        folder: Path,
        *,
        started_at: datetime,
        failed: Callable[[OSError], None],
        resumed: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take where to write, the name's time, whom to tell of the first lost line and of how many were lost."""
        self.folder = folder
        self._started_at = started_at
        self._failed = failed
        self._resumed = resumed
        self._clock = clock
        self._path: Path | None = None
        self._file: int | None = None
        self._torn = False
        self._lost_count = 0
        self._try_again_at = 0.0

    def record(self, span: EndedSpan) -> None:
        """Append the span's line, or count it as lost."""
        self.write(span.as_line())

    def write(self, line: str) -> None:
        """Append the line, or count it as lost."""
        if self._lost_count and self._clock() < self._try_again_at:
            self._lost_count += 1
            return
        try:
            self._append(line.encode() + b"\n")
        except OSError as error:
            self._lose(error)
        else:
            if self._lost_count:
                self._resumed(self._lost_count)
                self._lost_count = 0

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def _append(self, line: bytes) -> None:
        if self._was_renamed():
            self.close()
        if self._file is None:
            self._file = self._open()
        whole = b"\n" + line if self._torn else line  # ends what a full disk cut short
        written = os.write(self._file, whole)
        self._torn = written < len(whole)
        if self._torn:
            raise OSError(errno.ENOSPC, "only a part of the line was written")

    def _was_renamed(self) -> bool:
        """Tell whether the open file was rotated or deleted, as the standard library's WatchedFileHandler does."""
        if self._file is None or self._path is None:
            return False
        try:
            return not os.path.samestat(os.fstat(self._file), self._path.stat())
        except FileNotFoundError:
            return True

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._path is not None:
            return os.open(self._path, flags, _PRIVATE)
        started_at = self._started_at
        while True:
            path = self.folder / f"telem_{started_at:%Y%m%dT%H%M%S.%f}Z.log"
            try:
                file = os.open(path, flags | os.O_EXCL, _PRIVATE)
            except FileExistsError:  # another process started in the same microsecond
                started_at += timedelta(microseconds=1)
            else:
                self._path = path
                return file

    def _lose(self, error: OSError) -> None:
        with contextlib.suppress(OSError):  # some file systems tell a failed write once more on close
            self.close()
        if not self._lost_count:
            self._failed(error)
        self._lost_count += 1
        self._try_again_at = self._clock() + RETRY_S
