"""`recalcd topic`: the registry."""

from dataclasses import asdict
from typing import Any

import click

from daemon.commands.base import TOPIC, asynchronous, confirm, database, dry_run_option, json_option, yes_option

name_argument = click.argument("name", metavar="TOPIC", type=TOPIC)


def settings_options(command: Any) -> Any:
    """Add what both add and set take; the ranges are those of outbox.topic."""
    for name, most, what in (
        ("statement-timeout-s", 86_400, "Longest recalculation of one batch, in seconds."),
        ("batch-keys", 1_000, "Most keys of one batch."),
        ("retry-max-s", 604_800, "Longest wait between attempts, in seconds."),
        ("retry-base-s", 86_400, "Wait after the first failure, in seconds; it doubles."),
        ("max-attempts", 100, "Failed recalculations of a key before it is dead."),
    ):
        command = click.option(f"--{name}", type=click.IntRange(1, most), help=what)(command)
    describe = click.option(
        "--describe", metavar="SCHEMA.NAME", help="Function that shows a key's cached rows as jsonb."
    )
    return click.option("--list-keys", metavar="SCHEMA.NAME", help="Function that pages through all keys.")(
        describe(command)
    )


@click.group("topic")
def topic() -> None:
    """Show and change what is recalculated, and pause it."""


@topic.command("list", epilog="Example: recalcd topic list")
@json_option
@click.pass_obj
@asynchronous
async def list_topics(command_line: dict[str, Any], *, as_json: bool) -> None:
    """Show the registered topics with their settings.

    Exit: 0 done.
    """
    from daemon import render, render_look, topics

    async with database(command_line, "topic") as (opened, _):
        entries = await topics.list_topics(opened)
    click.echo(render.as_json([asdict(each) for each in entries]) if as_json else render_look.topics_text(entries))


@topic.command(epilog="Example: recalcd topic add shop.order --recalculate shop.recalculate_orders --batch-keys 200")
@name_argument
@click.option("--recalculate", metavar="SCHEMA.NAME", required=True, help="Procedure that recalculates keys.")
@settings_options
@dry_run_option
@click.pass_obj
@asynchronous
async def add(command_line: dict[str, Any], /, *, name: str, dry_run: bool, **settings: Any) -> None:
    """Register TOPIC, once its procedure exists.

    Exit: 0 done, 2 registered already, or a routine does not serve.
    """
    from daemon import topics

    async with database(command_line, "topic") as (opened, _):
        await topics.add(opened, name, topics.Changes(**settings), dry_run=dry_run)
    click.echo(f"would register {name}" if dry_run else f"registered {name}")


@topic.command("set", epilog="Example: recalcd topic set shop.order --batch-keys 200 --max-attempts 5")
@name_argument
@click.option("--recalculate", metavar="SCHEMA.NAME", help="Procedure that recalculates keys.")
@settings_options
@dry_run_option
@click.pass_obj
@asynchronous
async def change(command_line: dict[str, Any], /, *, name: str, dry_run: bool, **settings: Any) -> None:
    """Change settings of TOPIC; those not named stay. Daemons take them with their next batch.

    Exit: 0 done, 2 no such topic, nothing to change, or a setting can't be.
    """
    from daemon import topics

    async with database(command_line, "topic") as (opened, _):
        await topics.change(opened, name, topics.Changes(**settings), dry_run=dry_run)
    click.echo(f"would change {name}" if dry_run else f"changed {name}")


@topic.command(epilog='Example: recalcd topic pause reports.student --reason "term dates are being corrected"')
@name_argument
@click.option("--reason", help="Why, for the next operator; status shows it.")
@dry_run_option
@click.pass_obj
@asynchronous
async def pause(command_line: dict[str, Any], *, name: str, reason: str | None, dry_run: bool) -> None:
    """Pause TOPIC on all daemons at once: events wait, and nothing is lost. Batches that have begun are finished.

    Exit: 0 done, also when it was paused already; 2 no such topic.
    """
    from daemon import topics

    async with database(command_line, "topic") as (opened, _):
        was_running = await topics.pause(opened, name, reason, dry_run=dry_run)
    done = f"paused {name}; its events wait for `recalcd topic resume {name}`"
    click.echo(f"would pause {name}" if dry_run else done if was_running else f"{name} was paused already")


@topic.command(epilog="Example: recalcd topic resume reports.student")
@name_argument
@dry_run_option
@click.pass_obj
@asynchronous
async def resume(command_line: dict[str, Any], *, name: str, dry_run: bool) -> None:
    """Let TOPIC go on, with what waited first.

    Exit: 0 done, also when it was not paused; 2 no such topic.
    """
    from daemon import topics

    async with database(command_line, "topic") as (opened, _):
        was_paused = await topics.resume(opened, name, dry_run=dry_run)
    done = f"resumed {name}" if was_paused else f"{name} was not paused"
    click.echo(f"would resume {name}" if dry_run else done)


@topic.command(epilog="Example: recalcd topic remove shop.order")
@name_argument
@click.option("--lose-events", is_flag=True, help="Even with events pending, or failed keys owed; they are deleted.")
@yes_option
@dry_run_option
@click.pass_obj
@asynchronous
async def remove(command_line: dict[str, Any], *, name: str, lose_events: bool, yes: bool, dry_run: bool) -> None:
    """Take TOPIC out of the registry; writers that enqueue for it fail from then on.

    Exit: 0 done, 1 events wait or not confirmed, 2 no such topic.
    """
    from daemon import topics

    async with database(command_line, "topic") as (opened, _):
        owed = await topics.owed(opened, name)
        topics.refuse_loss(name, owed, lose_events=lose_events)
        losing = f", and lose {owed}" if owed else ""
        if dry_run:
            click.echo(f"would remove {name}{losing}")
            return
        confirm(f"This will remove {name}{losing}. Writers that enqueue for it will fail.", yes=yes)
        lost = await topics.remove(opened, name, lose_events=lose_events)
    click.echo(f"removed {name}" + (f"; lost {lost}" if lost else ""))
