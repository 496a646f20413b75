"""`recalcd tail`: batches as they commit."""

from dataclasses import asdict
from typing import Any

import click

from daemon.commands.base import TOPIC, asynchronous, database


@click.command(epilog="Example: recalcd tail --topic reports.student -n 50")
@click.option("--topic", "topic_name", type=TOPIC, help="Only batches of this topic.")
@click.option("--key", help="Only batches with this key.")
@click.option(
    "-n", "--lines", type=click.IntRange(0, 10_000), default=10, show_default=True, help="Begin with the last."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object per line.")
@click.pass_obj
@asynchronous
async def tail(
    command_line: dict[str, Any], *, topic_name: str | None, key: str | None, lines: int, as_json: bool
) -> None:
    """Show batches as they commit, one line each, until interrupted. Times are UTC.

    Exit: 2 no such topic, or no history is kept, 3 the database is gone, 130 interrupted.
    """
    from daemon import render
    from daemon.errors import UsageError
    from daemon.keys import find_topic
    from daemon.render_tail import line_text
    from daemon.tail import Line, Tail

    def show(line: Line) -> None:
        click.echo(render.as_json(asdict(line), indent=None) if as_json else line_text(line))

    async with database(command_line, "tail", own_session=True) as (opened, settings):
        if settings.history_days == 0:
            raise UsageError("No history is kept, so there is nothing to show: set RECALCD_HISTORY_DAYS to 1 or more.")
        if topic_name is not None:
            await find_topic(opened, topic_name)
        following = Tail(opened, topic_name, key)
        for line in await following.last(lines):
            show(line)
        async for line in following.follow():
            show(line)
