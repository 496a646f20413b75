"""What a database looks like, as text that can be compared; and small migration sets to try things on."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from daemon.embedded import program


def schema_of(dsn: str) -> str:
    """Return pg_dump's account of everything but rows, without the lines that differ from run to run."""
    command = [str(program("pg_dump")), "--schema-only", dsn]
    text = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    return re.sub(r"(?m)^(--.*|\\(un)?restrict .*|)\n", "", text)


@dataclass
class SqlRoot:
    """A folder like sql/, with sets of the test's own making."""

    path: Path

    def migration(self, set_name: str, version: int, name: str, up: str, down: str = "") -> Path:
        folder = self._folder("migrations", set_name)
        (folder / f"{version:04}_{name}.down.sql").write_text(down)
        path = folder / f"{version:04}_{name}.up.sql"
        path.write_text(up)
        return path

    def routine(self, set_name: str, file_name: str, text: str) -> Path:
        path = self._folder("routines", set_name) / file_name
        path.write_text(text)
        return path

    def _folder(self, kind: str, set_name: str) -> Path:
        folder = self.path / kind / set_name
        folder.mkdir(parents=True, exist_ok=True)
        return folder
