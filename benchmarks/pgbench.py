"""Writers: pgbench, which costs the machine little beside what it measures."""

import asyncio
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.process import DaemonFailed
from daemon.embedded import program


@dataclass(frozen=True)
class Load:
    """A script of pgbench, and how many clients run it."""

    script: str
    variables: Mapping[str, int]
    """What the script finds set; each client keeps its own from one run of the script to the next."""
    clients: int

    async def at_rate(self, dsn: str, per_s: int, *, each: int) -> float:
        """Let every client run the script so often, all together at a rate; return the rate that it was."""
        return await self._run(dsn, [f"--rate={per_s}", f"--transactions={each}"])

    async def for_seconds(self, dsn: str, seconds: float) -> float:
        """Let every client run the script as often as it can; return how often that is in a second."""
        return await self._run(dsn, [f"--time={max(1, round(seconds))}"])

    async def _run(self, dsn: str, options: list[str]) -> float:
        with tempfile.NamedTemporaryFile("w", suffix=".sql", encoding="utf-8") as file:
            file.write(self.script)
            file.flush()
            command = [
                str(program("pgbench")),
                "--no-vacuum",
                "--protocol=prepared",
                "--random-seed=1",
                f"--client={self.clients}",
                f"--jobs={min(self.clients, 2)}",
                f"--file={file.name}",
                *(f"--define={name}={value}" for name, value in self.variables.items()),
                *options,
                dsn,
            ]
            done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False, text=True)
        found = re.search(r"^tps = ([\d.]+) \(without initial", done.stdout, re.MULTILINE)
        if done.returncode != 0 or found is None:
            raise DaemonFailed(f"pgbench ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return float(found[1])
