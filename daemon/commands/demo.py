"""`recalcd demo`."""

from typing import Any

import click

from daemon.commands.base import asynchronous, json_option
from daemon.errors import UsageError


@click.command(epilog="Example: recalcd demo --students 500 --rate 50 --keep")
@click.option("--students", type=click.IntRange(min=1), default=2000, show_default=True, help="Pupils to load.")
@click.option("--groups", type=click.IntRange(min=1), default=60, show_default=True, help="Groups.")
@click.option("--timeframes", type=click.IntRange(min=1), default=3, show_default=True, help="Timeframes, with `all`.")
@click.option("--units", type=click.IntRange(min=1), default=40, show_default=True, help="Units.")
@click.option("--feedback", type=click.IntRange(min=1), default=80000, show_default=True, help="Feedback to load.")
@click.option("--seconds", type=click.IntRange(min=1), default=10, show_default=True, help="How long to write.")
@click.option("--rate", type=click.IntRange(1, 100_000), default=200, show_default=True, help="Writes a second.")
@click.option("--writes", type=click.IntRange(min=1), help="How many writes, instead of how long.")
@click.option("--keep", is_flag=True, help="Leave database and daemon up, and say how to reach them.")
@json_option
@click.pass_obj
@asynchronous
async def demo(
    command_line: dict[str, Any], /, *, seconds: int, rate: int, writes: int | None, as_json: bool, **school: Any
) -> None:
    """Show it all at work, on a PostgreSQL of its own. Exit: 0 all is well, 1 something is off, 130 interrupted."""
    from daemon import render
    from daemon.demo.play import Scenario, play
    from daemon.demo.screen import Screen
    from daemon.demo.show import account_text

    if command_line["database_url"]:
        raise UsageError("The demo brings a database of its own: leave out --database-url.")
    scenario = Scenario(**school, write_count=writes or seconds * rate, rate_per_s=rate)
    account = await play(scenario, Screen())
    click.echo(render.as_json(account.as_json()) if as_json else account_text(account))
    if account.problems:
        click.get_current_context().exit(1)
