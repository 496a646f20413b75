"""`recalcd failures`: the keys whose recalculation fails."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from daemon.commands.base import TOPIC, asynchronous, confirm, database, dry_run_option, json_option, yes_option

if TYPE_CHECKING:
    from daemon.failures import State


@click.group("failures")
def failures() -> None:
    """Show the keys that fail, and forget them."""


@failures.command("list", epilog="Example: recalcd failures list reports.student --state dead")
@click.argument("topic_name", metavar="[TOPIC]", required=False)
@click.option("--state", type=click.Choice(["retrying", "dead"]), help="Only these.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many.")
@json_option
@click.pass_obj
@asynchronous
async def list_failures(
    command_line: dict[str, Any], *, topic_name: str | None, state: "State | None", limit: int, as_json: bool
) -> None:
    """Show the keys that fail, the longest failing first.

    Exit: 0 no dead key among them, 1 dead keys, 2 no such topic.
    """
    from daemon import failures as operation
    from daemon import render, render_look
    from daemon.keys import find_topic

    async with database(command_line, "failures") as (opened, _):
        topic = await find_topic(opened, topic_name) if topic_name else None
        found = await operation.list_failures(opened, topic, state, limit=limit)
    click.echo(render.as_json(asdict(found)) if as_json else render_look.failures_text(found))
    if found.dead_count:
        click.get_current_context().exit(1)


@failures.command(epilog="Example: recalcd failures show reports.student 0192f0c8-5d1c-7cc4-b3e4-2b6ad3b4a0ff")
@click.argument("topic_name", metavar="TOPIC", type=TOPIC)
@click.argument("key")
@json_option
@click.pass_obj
@asynchronous
async def show(command_line: dict[str, Any], *, topic_name: str, key: str, as_json: bool) -> None:
    """Show the failure of KEY with the full error, which may hold row values.

    Exit: 0 done, 2 the key does not fail, or no such topic.
    """
    from daemon import failures as operation
    from daemon import render, render_look
    from daemon.keys import find_topic

    async with database(command_line, "failures") as (opened, _):
        found = await operation.show(opened, await find_topic(opened, topic_name), key)
    click.echo(render.as_json(asdict(found)) if as_json else render_look.failure_text(found))


@failures.command(epilog="Example: recalcd failures drop reports.student 0192f0c8-5d1c-7cc4-b3e4-2b6ad3b4a0ff")
@click.argument("topic_name", metavar="TOPIC", type=TOPIC)
@click.argument("keys", metavar="[KEY]...", nargs=-1)
@click.option("--dead", is_flag=True, help="All dead keys of the topic.")
@yes_option
@dry_run_option
@json_option
@click.pass_obj
@asynchronous
async def drop(
    command_line: dict[str, Any],
    *,
    topic_name: str,
    keys: tuple[str, ...],
    dead: bool,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Forget failures without recalculating: each key stays stale until its next event. To retry, use replay.

    Exit: 0 done, 1 nothing to drop or not confirmed, 2 a key does not fail, or no such topic.
    """
    from daemon import failures as operation
    from daemon import render
    from daemon.keys import find_topic

    async with database(command_line, "failures") as (opened, _):
        topic = await find_topic(opened, topic_name)
        dropped = await operation.choose(opened, topic, keys, dead=dead)
        if dropped and not dry_run:
            confirm(
                f"This will drop {len(dropped):,} failures of {topic.name}. Their keys owe a recalculation, which will "
                "not be made: each stays stale until its next event.",
                yes=yes,
            )
            dropped = await operation.drop(opened, topic, dropped)
    done = "would drop" if dry_run else "dropped"
    click.echo(
        render.as_json({"keys": dropped, "dry_run": dry_run})
        if as_json
        else f"{done} {len(dropped):,} failures of {topic.name}"
    )
    if not dropped:
        click.get_current_context().exit(1)
