"""What a person sees while the demo works: bars on a terminal, plain lines elsewhere; always on stderr."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

LINE_EVERY_S = 2.0
WHAT_WIDTH = 14
BAR_WIDTH = 8
"""With these, the longest line fits a terminal of 80 columns."""


class Step(Protocol):
    """Something that takes a while."""

    def advance(self, count: int) -> None:
        """Say that this many more are done."""

    def show(self, done: int, note: str) -> None:
        """Say how many are done in all, and something about it."""


class Screen:
    """Where the demo says what it is doing."""

    def __init__(self) -> None:
        """Write to stderr, in the form that suits it."""
        self._console = Console(stderr=True, highlight=False)

    def say(self, sentence: str) -> None:
        """Say something in between."""
        self._console.print(sentence, soft_wrap=True, markup=False)

    @contextmanager
    def step(self, what: str, total: int = 1) -> Iterator[Step]:
        """Show a step while the block runs, and that it was completed."""
        with self._bar(what, total) if self._console.is_terminal else self._lines(what, total) as shown:
            yield shown

    @contextmanager
    def _bar(self, what: str, total: int) -> Iterator[Step]:
        numbers = [MofNCompleteColumn()] if total > 1 else []
        note = TextColumn("{task.fields[note]}", style="dim")
        columns = [TextColumn(what.ljust(WHAT_WIDTH)), BarColumn(BAR_WIDTH), *numbers, note]
        bar = Progress(*columns, console=self._console)
        with bar:
            shown = _Bar(bar, total)
            yield shown
            shown.complete()

    @contextmanager
    def _lines(self, what: str, total: int) -> Iterator[Step]:
        started = time.monotonic()
        self.say(f"{what} …")
        yield _Lines(self, what, total)
        self.say(f"{what}: done in {time.monotonic() - started:.1f} s")


class _Bar:
    """A step on a terminal; it moves to and fro until it is known how much there is to do."""

    def __init__(self, bar: Progress, total: int) -> None:
        self._bar = bar
        self._total = total
        self._task = bar.add_task("", total=total if total > 1 else None, note="")

    def advance(self, count: int) -> None:
        self._bar.advance(self._task, count)

    def show(self, done: int, note: str) -> None:
        self._bar.update(self._task, completed=done, note=note)

    def complete(self) -> None:
        self._bar.update(self._task, total=self._total, completed=self._total)


class _Lines:
    """A step in a file or a pipe; a line now and then."""

    def __init__(self, screen: Screen, what: str, total: int) -> None:
        self._screen = screen
        self._what = what
        self._total = total
        self._done = 0
        self._next_line_at = time.monotonic() + LINE_EVERY_S

    def advance(self, count: int) -> None:
        self.show(self._done + count, "")

    def show(self, done: int, note: str) -> None:
        self._done = done
        if time.monotonic() >= self._next_line_at:
            self._next_line_at = time.monotonic() + LINE_EVERY_S
            self._screen.say(f"{self._what}: {done:,}/{self._total:,}  {note}".rstrip())
