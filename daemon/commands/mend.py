"""`recalcd verify`, `backfill` and `replay`: commands that put things right."""

from dataclasses import asdict
from typing import Any

import click

from daemon.commands.base import asynchronous, database, json_option, key_option, progress, topic_option


@click.command()
@topic_option
@key_option
@click.option("--sample", type=click.IntRange(min=1), help="This many keys, chosen at random; default: all.")
@click.option("--repair", is_flag=True, help="Mend what drifted.")
@json_option
@click.pass_obj
@asynchronous
async def verify(
    command_line: dict[str, Any],
    *,
    topic_name: str,
    keys: tuple[str, ...],
    sample: int | None,
    repair: bool,
    as_json: bool,
) -> None:
    """Compare cached rows with what a recalculation would produce now. Exit: 0 all true, 1 drift, or keys that fail."""
    from daemon import render
    from daemon.keys import count, find_topic
    from daemon.verify import Verifier

    async with database(command_line, "verify") as (opened, settings):
        topic = await find_topic(opened, topic_name)
        total = await count(opened, topic, keys)
        with progress(f"verifying {topic.name}", min(total, sample or total)) as advanced:
            verifier = Verifier(opened, topic, repair, settings.history_days > 0, advanced)
            verdict = await verifier.run(keys, sample=sample)
    click.echo(render.as_json(asdict(verdict)) if as_json else render.verdict_text(verdict))
    if not verdict.is_good:
        click.get_current_context().exit(1)


@click.command()
@topic_option
@key_option
@click.option("--dry-run", is_flag=True, help="Tell how many keys it would be; change nothing.")
@json_option
@click.pass_obj
@asynchronous
async def backfill(
    command_line: dict[str, Any], *, topic_name: str, keys: tuple[str, ...], dry_run: bool, as_json: bool
) -> None:
    """Recalculate keys because they exist; safe to repeat. Exit: 0 done, 1 some keys failed."""
    from daemon import render
    from daemon.backfill import Backfiller
    from daemon.keys import count, find_topic

    async with database(command_line, "backfill") as (opened, settings):
        topic = await find_topic(opened, topic_name)
        total = await count(opened, topic, keys)
        if dry_run:
            click.echo(render.as_json({"key_count": total}) if as_json else f"would recalculate {total:,} keys")
            return
        with progress(f"backfilling {topic.name}", total) as advanced:
            tally = await Backfiller(opened, topic, settings.history_days > 0, advanced).run(keys)
    click.echo(render.as_json(asdict(tally)) if as_json else render.tally_text(tally))
    if tally.failed:
        click.get_current_context().exit(1)


@click.command()
@click.argument("topic_name", metavar="TOPIC")
@click.option("--dead", is_flag=True, help="Every dead key of the topic.")
@key_option
@click.option("--dry-run", is_flag=True, help="Show what would be put back; change nothing.")
@json_option
@click.pass_obj
@asynchronous
async def replay(
    command_line: dict[str, Any], *, topic_name: str, dead: bool, keys: tuple[str, ...], dry_run: bool, as_json: bool
) -> None:
    """Put keys of TOPIC back, to be recalculated behind live traffic. Exit: 0 done, 1 nothing to do, 2 usage."""
    from daemon import render
    from daemon.keys import find_topic
    from daemon.replay import choose, put_back

    async with database(command_line, "replay") as (opened, _):
        topic = await find_topic(opened, topic_name)
        chosen = await choose(opened, topic, keys, dead=dead)
        if not dry_run:
            await put_back(opened, topic, chosen)
    done = "would put back" if dry_run else "put back"
    click.echo(
        render.as_json({"keys": chosen, "dry_run": dry_run})
        if as_json
        else f"{done} {len(chosen):,} keys of {topic.name}"
    )
    if not chosen:
        click.get_current_context().exit(1)
