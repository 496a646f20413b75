"""The daemon as the process it is."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from servers import as_daemon


def start_daemon(dsn: str, log: Path, **settings: object) -> "subprocess.Popen[bytes]":
    """Start `recalcd run` with the login of a daemon; settings are fields of Settings. The caller ends it."""
    given = {f"RECALCD_{name.upper()}": str(value) for name, value in settings.items()}
    environment = os.environ | {"RECALCD_DATABASE_URL": as_daemon(dsn)} | given
    with log.open("ab") as stderr:
        return subprocess.Popen([sys.executable, "-m", "cli", "run"], env=environment, stderr=stderr)


@contextmanager
def daemon_process(dsn: str, log: Path, **settings: object) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a daemon while the block runs."""
    process = start_daemon(dsn, log, **settings)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
