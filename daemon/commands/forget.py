"""`recalcd forget`."""

from typing import TYPE_CHECKING, Any

import click

from daemon.commands.base import TOPIC, asynchronous, confirm, database, dry_run_option, json_option, yes_option

if TYPE_CHECKING:
    from daemon.forget import Forgotten


@click.command(epilog="Example: recalcd forget reports.student 0192f0c8-5d1c-7cc4-b3e4-2b6ad3b4a0ff --dry-run")
@click.argument("topic_name", metavar="TOPIC", type=TOPIC)
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
@dry_run_option
@yes_option
@json_option
@click.pass_obj
@asynchronous
async def forget(
    command_line: dict[str, Any], *, topic_name: str, keys: tuple[str, ...], dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Erase KEYs whose source was deleted: cached rows, events, failures, and the history.

    Recalculates them, so that their cached rows go, and refuses a key whose source is still there: its next
    recalculation would bring everything back. Reads the whole history of the topic. Safe to repeat.

    Exit: 0 done, 1 nothing was known of the keys or not confirmed, 2 a source is still there, or no such topic.
    """
    from daemon import forget as operation
    from daemon import render
    from daemon.keys import find_topic
    from daemon.scope import distinct

    named = distinct(keys)
    async with database(command_line, "forget") as (opened, _):
        topic = await find_topic(opened, topic_name)
        forgotten = await operation.forget(opened, topic, named, dry_run=dry_run or not yes)
        if not (dry_run or yes):
            confirm(f"{_text(forgotten)}\nWhat is forgotten does not come back.", yes=yes)
            forgotten = await operation.forget(opened, topic, named, dry_run=False)
    click.echo(render.as_json(forgotten.as_json()) if as_json else _text(forgotten))
    if forgotten.is_nothing:
        click.get_current_context().exit(1)


def _text(forgotten: "Forgotten") -> str:
    from daemon.render import counted

    if forgotten.is_nothing:
        return f"nothing is known of {counted(len(forgotten.keys), 'key')} of {forgotten.topic}"
    done = "would forget" if forgotten.dry_run else "forgot"
    found = (
        f"{done} {counted(len(forgotten.keys), 'key')} of {forgotten.topic}: "
        f"{counted(forgotten.changed_count or 0, 'key')} with cached rows, {counted(forgotten.event_count, 'event')}, "
        f"{counted(forgotten.note_count, 'failure')}, {counted(forgotten.job_count, 'job')}, "
        f"{counted(forgotten.batch_count, 'batch', 'batches')} of the history"
    )
    if not forgotten.is_certain:
        found += f"\n{forgotten.topic} can neither list nor describe its keys: make sure that their source is gone"
    return found
