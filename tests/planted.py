"""What must never be read in anything but the database: names and secrets that the tests plant wherever they can."""

import re
from collections.abc import Iterable
from pathlib import Path

PUPIL = "Ada Lovelace"
COMMENT = "Ada wept over her fractions"
PASSWORD = "hunter2"

_PLANTED = re.compile(rf"\bAda\b|Lovelace|fractions|{PASSWORD}|\bPupil \d")
"""Pieces, since a text may be cut or quoted; and the names of the pupils in `school.found()`."""


def found_in(text: str) -> list[str]:
    """Return the lines that hold something planted."""
    return [line for line in text.splitlines() if _PLANTED.search(line)]


def found_in_files(files: Iterable[Path]) -> dict[str, list[str]]:
    """Return those lines of files, by file."""
    found = {str(file): found_in(file.read_text("utf-8", errors="replace")) for file in files}
    return {name: lines for name, lines in found.items() if lines}
