"""`recalcd run` and `config`."""

import asyncio
import faulthandler
import functools
import json
import sys
from dataclasses import asdict
from typing import Any

import click

from daemon.commands.base import json_option


@click.command(epilog="Example: recalcd run --drain")
@click.option("--drain", is_flag=True, help="Work until nothing is pending, then stop.")
@click.pass_obj
def run(command_line: dict[str, Any], *, drain: bool) -> None:
    """Run the daemon. Exit: 0 stopped, 1 a drain left something undone, 4 not our schema, 78 a setting is wrong."""
    from daemon import signals

    signals.hold()
    from daemon.runner import Runner
    from daemon.settings import load

    if sys.stderr is not None:
        faulthandler.enable()  # systemd's watchdog ends a daemon by SIGABRT: the log then shows where it hung
    runner = Runner(functools.partial(load, **command_line), drain=drain)
    click.get_current_context().exit(asyncio.run(runner.run()))


@click.command(epilog="Example: recalcd config --json")
@json_option
@click.pass_obj
def config(command_line: dict[str, Any], as_json: bool) -> None:
    """Show each setting, its value and where it came from, without secrets. Exit: 0 done, 78 a setting is wrong."""
    from daemon import settings

    given = [field for field, value in command_line.items() if value is not None]
    described = settings.describe(settings.load(**command_line), given)
    click.echo(json.dumps([asdict(each) for each in described], indent=2) if as_json else settings.as_table(described))
