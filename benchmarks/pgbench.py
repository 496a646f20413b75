"""Writers: pgbench, which costs the machine little beside what it measures."""

import asyncio
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.process import DaemonFailed
from daemon.embedded import program

OVERALL = r"^tps = ([\d.]+) \(without initial"


@dataclass(frozen=True)
class Load:
    """A script of pgbench, and how many clients run it."""

    script: str
    variables: Mapping[str, int]
    """What the script finds set; each client keeps its own from one run of the script to the next."""
    clients: int

    async def at_rate(self, dsn: str, per_s: int, *, each: int) -> float:
        """Let every client run the script so often, all together at a rate; return the rate that it was."""
        output = await self._run(dsn, [f"--rate={per_s}", f"--transactions={each}"])
        return _numbers(OVERALL, output)[0]

    async def for_seconds(self, dsn: str, seconds: int) -> float:
        """Let every client run the script as often as it can; return how often that is in a second.

        A second before does not count: the sessions are new, and compile and plan what they run.
        """
        output = await self._run(dsn, [f"--time={1 + seconds}", "--progress=1"])
        (at_s, per_s), count, overall_per_s = (
            _numbers(r"^progress: ([\d.]+) s, ([\d.]+) tps", output),
            *_numbers(r"^number of transactions actually processed: (\d+)", output),
            *_numbers(OVERALL, output),
        )
        return (count - at_s * per_s) / (count / overall_per_s - at_s)

    async def _run(self, dsn: str, options: list[str]) -> str:
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
        if done.returncode != 0:
            raise DaemonFailed(f"pgbench ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr


def _numbers(pattern: str, output: str) -> list[float]:
    """Return the numbers of the first line that has them."""
    found = re.search(pattern, output, re.MULTILINE)
    if found is None:
        raise DaemonFailed(f"pgbench did not say {pattern}\n{output}")
    return [float(each) for each in found.groups()]
