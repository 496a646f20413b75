"""`python -m benchmarks [PART ...]`: run the benchmarks on an embedded PostgreSQL, print what they found."""

import asyncio
import json
import shlex
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import click
from rich.console import Console

from benchmarks import (
    backlog,
    burst,
    floor,
    freshness,
    horizon,
    latency,
    machine,
    memory,
    neighbour,
    row_security,
    saturation,
    wake,
    writers,
)
from benchmarks.bench import SERVER_SETTINGS, Bench
from benchmarks.figures import Part, Report
from benchmarks.show import show
from daemon.embedded import INSTALLATIONS, embedded_postgres

PARTS: dict[str, Callable[[Bench], Awaitable[Part]]] = {
    "backlog": backlog.measure,
    "burst": burst.measure,
    "floor": floor.measure,
    "latency": latency.measure,
    "memory": memory.measure,
    "horizon": horizon.measure,
    "neighbour": neighbour.measure,
    "wake": wake.measure,
    "row_security": row_security.measure,
}
BESIDE_RIVALS: dict[str, Callable[[Bench], Awaitable[Part]]] = {
    "saturation": saturation.measure,
    "freshness": freshness.measure,
    "writers": writers.measure,
}
"""These take an hour or more; the queues among the rivals take part when benchmarks/rivals/install has run."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", metavar="[PART]...", nargs=-1, type=click.Choice([*PARTS, *BESIDE_RIVALS]))
@click.option(
    "--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="How often each side has its turn."
)
@click.option(
    "--scale",
    type=click.FloatRange(0.001, 10),
    default=1.0,
    show_default=True,
    help="Size of everything; 1 is what the targets speak of.",
)
@click.option(
    "--pg",
    "version",
    type=click.Choice([str(each) for each in INSTALLATIONS]),
    default="18",
    show_default=True,
    help="Version of the embedded PostgreSQL.",
)
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Also write all measurements here."
)
def main(names: tuple[str, ...], rounds: int, scale: float, version: str, json_file: Path | None) -> None:
    """Measure recalcd. Parts: backlog, burst, floor, latency, memory, horizon, neighbour, wake, row_security.

    Without a name: all of them.

    Beside its rivals: saturation, freshness, writers.

    Exit: 0 every target was met, 1 one was missed.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leaves by the way of Ctrl-C, and no server behind
    with embedded_postgres(version=int(version), settings=SERVER_SETTINGS) as server:
        report = asyncio.run(_run(Bench(server, rounds, scale), names or tuple(PARTS)))
    show(report, Console())
    if json_file:
        json_file.write_text(json.dumps(report.as_dict(), indent=2) + "\n", "utf-8")
    sys.exit(0 if all(verdict.is_met for part in report.parts for verdict in part.verdicts) else 1)


async def _run(bench: Bench, names: Sequence[str]) -> Report:
    async with bench.connection("postgres") as connection:
        facts = await machine.facts(connection)
    parts = [await (PARTS | BESIDE_RIVALS)[name](bench) for name in names]
    return Report(facts, shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]), parts)


if __name__ == "__main__":
    main()
