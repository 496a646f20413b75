"""`python -m soak`, in the folder tests: daemons, writers and faults for a while; prints what happened and the verdict.

Environment: SOAK_S for how long (600), SOAK_SEED for the order of faults (drawn). Ctrl-C ends it, with its report.
"""

import asyncio
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import click

from soak.fleet import Fleet
from soak.play import Play
from soak.report import Report, report
from soak.stage import stage
from soak.watch import Watcher
from soak.writers import Writers


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seconds", type=click.FloatRange(min=10), envvar="SOAK_S", default=600, show_default=True)
@click.option("--seed", type=int, envvar="SOAK_SEED", help="Order of the faults; drawn unless given.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(seconds: float, seed: int | None, *, as_json: bool) -> None:
    """Soak recalcd in faults. Exit: 0 all was well, 1 not."""
    for name in [name for name in os.environ if name.startswith(("RECALCD_", "TELEM_", "PG"))]:
        del os.environ[name]  # the settings of whoever runs it
    os.environ["MALLOC_TRIM_THRESHOLD_"] = "131072"  # as in the unit: what is freed goes back, and growth is a leak
    found = asyncio.run(_soak(seconds, secrets.randbelow(10**6) if seed is None else seed))
    print(json.dumps(found.as_json()) if as_json else "\n".join(found.lines()))
    sys.exit(1 if found.problems else 0)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


async def _soak(seconds: float, seed: int) -> Report:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "daemons.log")
        async with stage(seed) as here:
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, here.stopping.set)
            fleet = Fleet(here, log)
            try:
                play = Play(here, fleet, Writers(here), Watcher(here), _tell)
                await play.perform(seconds)
            finally:
                fleet.kill()
        found = report(play)
        if found.problems:
            kept = shutil.copy(log, f"soak_{seed}.log")
            found.problems.append(f"what the daemons logged is in {kept}")
        return found


if __name__ == "__main__":
    main()
