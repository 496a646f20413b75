"""`recalcd top`: a live view that fills the terminal."""

import asyncio
from typing import Any

import click

from daemon.commands.base import asynchronous, database


@click.command(epilog="Example: recalcd top --every 5")
@click.option(
    "--every",
    "every_s",
    type=click.FloatRange(0.2, 3600),
    default=2,
    show_default=True,
    help="Seconds between two looks.",
)
@click.pass_obj
@asynchronous
async def top(command_line: dict[str, Any], *, every_s: float) -> None:
    """Watch it work: throughput, freshness, topics, daemons and failures, on the whole screen. Ctrl-C ends it.

    Exit: 2 not a terminal, 3 the database is gone, 130 interrupted.
    """
    from rich.console import Console
    from rich.live import Live

    from daemon.errors import UsageError
    from daemon.render_top import Screen
    from daemon.top import read_snapshot

    console = Console()
    if not console.is_terminal or console.is_dumb_terminal:
        raise UsageError("This is no terminal that a screen could be drawn on: use `recalcd status --watch`.")
    async with database(command_line, "top") as (opened, _):
        first = Screen(await read_snapshot(opened))
        with Live(first, console=console, screen=True, refresh_per_second=4) as live:
            while True:
                await asyncio.sleep(every_s)
                live.update(Screen(await read_snapshot(opened)))
