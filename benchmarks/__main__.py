"""`python -m benchmarks [PART ...]`: run the benchmarks on an embedded PostgreSQL, print what they found."""

import asyncio
import json
import shlex
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
from rich.console import Console

from benchmarks import (
    baddays,
    burst,
    engine,
    floor,
    freshness,
    growth,
    hands,
    horizon,
    latency,
    machine,
    memory,
    neighbour,
    plot,
    reads,
    rivals,
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
    "burst": burst.measure,
    "engine": engine.measure,
    "floor": floor.measure,
    "latency": latency.measure,
    "memory": memory.measure,
    "horizon": horizon.measure,
    "neighbour": neighbour.measure,
    "reads": reads.measure,
    "wake": wake.measure,
    "row_security": row_security.measure,
}
BESIDE_RIVALS: dict[str, Callable[[Bench], Awaitable[Part]]] = {
    "saturation": saturation.measure,
    "freshness": freshness.measure,
    "writers": writers.measure,
    "baddays": baddays.measure,
    "hands": hands.measure,
}
"""These take many minutes a round; the queues among the rivals take part when benchmarks/rivals/install has run."""

AT_LENGTH = BESIDE_RIVALS | growth.AXES
GROUPS = {"growth": tuple(growth.AXES), "all": (*PARTS, *AT_LENGTH)}
"""Names for several parts, one after the other."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", metavar="[PART]...", nargs=-1, type=click.Choice([*PARTS, *AT_LENGTH, *GROUPS]))
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
    "--commit-delay",
    "commit_delay_us",
    type=click.IntRange(0, 100_000),
    default=0,
    show_default=True,
    help="Microseconds that every commit waits: 1000 is what cloud disks take. (writers measures both by itself.)",
)
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Also write all measurements here."
)
@click.option(
    "--beside",
    metavar="NAME",
    multiple=True,
    help="Only rivals whose name has these words, in any case; may be repeated.",
)
@click.option(
    "--plots",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Also keep PART.json here, and draw it; needs the extra bench.",
)
def main(
    *,
    names: tuple[str, ...],
    rounds: int,
    scale: float,
    version: str,
    commit_delay_us: int,
    beside: tuple[str, ...],
    json_file: Path | None,
    folder: Path | None,
) -> None:
    """Measure recalcd.

    Without a name: burst, engine, floor, latency, memory, horizon, neighbour, reads, row_security, wake.

    Beside its rivals: saturation, freshness, writers, baddays; hands sweeps theirs.

    What grows: growth-pupils, growth-pending, growth-feedback, growth-daemons, growth-topics; growth for all five.

    All of it takes about two hours and a half: all.

    `python -m benchmarks plot FILE...` draws what --plots kept before.

    Exit: 0 every target was met, 1 one was missed.
    """
    for ending in (signal.SIGTERM, signal.SIGHUP):  # leave by the way of Ctrl-C, and no server behind
        signal.signal(ending, signal.default_int_handler)
    if json_file and not json_file.parent.is_dir():
        raise click.BadParameter(f"There is no folder {json_file.parent}.", param_hint="--json")
    if folder:
        plot.require_matplotlib()  # now, and not after hours
    rivals.require(beside)
    settings = SERVER_SETTINGS | {
        "commit_delay": str(commit_delay_us),
        "commit_siblings": "0" if commit_delay_us else "5",
    }
    with embedded_postgres(version=int(version), settings=settings) as server:
        report = asyncio.run(
            _run(Bench(server, rounds, scale, beside), _parts(names), partial(_keep, json_file, folder))
        )
    show(report, Console())
    sys.exit(0 if all(verdict.is_met for part in report.parts for verdict in part.verdicts) else 1)


def _parts(names: Sequence[str]) -> list[str]:
    """Return the parts that are meant, all short ones when none is named."""
    return [part for name in names or PARTS for part in GROUPS.get(name, (name,))]


def _keep(json_file: Path | None, folder: Path | None, report: Report) -> None:
    """Write all that is finished so far, and draw the part that was finished now."""
    if json_file:
        json_file.write_text(json.dumps(report.as_dict(), indent=2) + "\n", "utf-8")
    if folder:
        plot.keep(replace(report, parts=report.parts[-1:]).as_dict(), folder)


async def _run(bench: Bench, names: Sequence[str], keep: Callable[[Report], None]) -> Report:
    """Measure the parts, and keep each as soon as it is finished: a failure after hours costs one."""
    async with bench.connection("postgres") as connection:
        facts = await machine.facts(connection)
    report = Report(facts, shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]), ())
    for name in names:
        report = replace(report, parts=(*report.parts, await (PARTS | AT_LENGTH)[name](bench)))
        keep(report)
    return report


if __name__ == "__main__":
    if sys.argv[1:2] == ["plot"]:  # a part may be named that often, a command only once
        plot.main(sys.argv[2:], prog_name="python -m benchmarks plot")
    main()
