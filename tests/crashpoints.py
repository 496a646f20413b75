"""`make crashpoints`: every fault at every crash point of every scenario; prints what was hit, and the verdict.

Name scenarios to have only those: make crashpoints CRASH_ARGS="live careful"
"""

import asyncio
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from crash_daemon import SCENARIOS as OF_THE_DAEMON
from crash_operations import SCENARIOS as OF_THE_OPERATORS
from crash_runs import FAULTS, Fault
from crash_sweep import Account, Only, sweep
from crash_world import breaking_ground

SCENARIOS = {each.name: each for each in (*OF_THE_DAEMON, *OF_THE_OPERATORS)}
MOST_SHOWN = 20
HEAD = f"{'scenario':28}{'fault':12}{'points':>8}{'hit':>8}{'runs':>8}{'seconds':>9}  verdict"


def break_with(name: str, fault: Fault) -> tuple[Account, float]:
    """Sweep a scenario with one fault, on a server of this process's own; return how long that took, too."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, breaking_ground(Path(folder, "output")) as site:
        account = asyncio.run(sweep(site, SCENARIOS[name], Only(fault)))
    return account, time.monotonic() - started


def line(name: str, fault: str, point_count: int, accounts: list[Account], seconds: float) -> str:
    """Say what became of some sweeps."""
    failure_count = sum(len(each.failures) for each in accounts)
    verdict = f"{failure_count} FAILED" if failure_count else "good"
    hit_count, run_count = sum(len(each.hits) for each in accounts), sum(each.run_count for each in accounts)
    return f"{name:28}{fault:12}{point_count:>8}{hit_count:>8}{run_count:>8}{seconds:>9.0f}  {verdict}"


def main(names: list[str]) -> int:
    """Sweep the named scenarios, or all; return the exit code."""
    started = time.monotonic()
    accounts: list[Account] = []
    print(HEAD, flush=True)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        sweeps = {
            pool.submit(break_with, name, fault): (name, fault) for name in names or SCENARIOS for fault in FAULTS
        }
        for done in as_completed(sweeps):
            account, seconds = done.result()
            accounts.append(account)
            print(line(*sweeps[done], len(account.points), [account], seconds), flush=True)
            print("".join(f"\n{each}\n" for each in account.failures[:MOST_SHOWN]), end="", flush=True)
    points = {(each.scenario, point) for each in accounts for point in each.points}
    print(line("all", "all", len(points), accounts, time.monotonic() - started))
    return 0 if all(each.is_good for each in accounts) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
