"""`recalcd explain`."""

from typing import Any

import click

from daemon.commands.base import TOPIC, asynchronous, database, json_option


@click.command(epilog="Example: recalcd explain reports.student 0192f0c8-5d1c-7cc4-b3e4-2b6ad3b4a0ff")
@click.argument("topic_name", metavar="TOPIC", type=TOPIC)
@click.argument("key")
@click.option("--limit", type=click.IntRange(1, 1000), default=10, show_default=True, help="Events and recalculations.")
@json_option
@click.pass_obj
@asynchronous
async def explain(command_line: dict[str, Any], *, topic_name: str, key: str, limit: int, as_json: bool) -> None:
    """Tell what is happening to KEY: what is pending or failing, the last recalculations, and what caused them.

    Reads the history (RECALCD_HISTORY_DAYS) backwards, which takes a while for a key that was not touched lately.

    Exit: 0 fresh or on its way, 1 failing, dead, paused or unknown; 2 no such topic.
    """
    from daemon import explain as operation
    from daemon import render, render_explain

    async with database(command_line, "explain") as (opened, _):
        story = await operation.explain(opened, topic_name, key, limit=limit)
    click.echo(render.as_json(story.as_json()) if as_json else render_explain.story_text(story))
    if not story.is_good:
        click.get_current_context().exit(1)
