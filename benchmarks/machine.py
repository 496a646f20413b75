"""The facts without which a figure says nothing."""

import os
import platform
from pathlib import Path

import asyncpg

SETTINGS = (
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "data_checksums",
    "shared_buffers",
    "max_wal_size",
    "autovacuum",
    "track_commit_timestamp",
    "commit_delay",
    "commit_siblings",
    "jit",
    "io_method",
)
"""Of the server; those that this version does not know are left out."""


async def facts(connection: asyncpg.Connection) -> dict[str, str]:
    """Describe the machine and the server."""
    rows = await connection.fetch(
        "select s.name, current_setting(s.name) as value from pg_settings as s where s.name = any ($1)", SETTINGS
    )
    values = {row["name"]: row["value"] for row in rows}
    return {
        "cpu": _first("/proc/cpuinfo", "model name"),
        "cores": str(os.cpu_count()),
        "memory": f"{int(_first('/proc/meminfo', 'MemTotal').split()[0]) / 1024**2:.1f} GB",
        "kernel": platform.release(),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "python": platform.python_version(),
        "postgres": str(await connection.fetchval("show server_version")),
        "server settings": ", ".join(f"{name} = {values[name]}" for name in SETTINGS if name in values),
    }


def _first(file: str, label: str) -> str:
    """Return what the first line of that label says in a file of /proc."""
    for line in Path(file).read_text("utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == label:
            return value.strip()
    return "unknown"
