"""`recalcd backfill`."""

from typing import Any, TextIO

import click

from daemon.commands.base import asynchronous, database, dry_run_option, json_option, key_option, topic_option
from daemon.commands.running import keys_from_option


@click.command(epilog='Example: recalcd backfill --topic reports.student --cohort "Year 9" --rate 200')
@topic_option
@key_option
@keys_from_option
@click.option("--cohort", metavar="NAME|ID", help="Only keys of this cohort.")
@click.option("--missing", is_flag=True, help="Only keys that have no cached row.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), metavar="N", help="At most so many keys a second.")
@dry_run_option
@json_option
@click.pass_obj
@asynchronous
async def backfill(
    command_line: dict[str, Any],
    *,
    topic_name: str,
    keys: tuple[str, ...],
    keys_from: TextIO | None,
    cohort: str | None,
    missing: bool,
    rate: float | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Recalculate keys because they exist.

    All keys of the topic, or those chosen. Runs beside live traffic, lets it go first, and can be repeated. Keys with a
    pending event are left to the daemon, unless they are named. It is a job: pause, resume or cancel it from another
    terminal with `recalcd job`; after a crash, `recalcd job resume` goes on where it was.

    Exit: 0 done, 1 some keys failed, or it was cancelled; 2 no such topic, key or cohort.
    """
    from daemon import jobs, render, render_jobs, scope
    from daemon.commands.running import run_here
    from daemon.keys import find_topic
    from daemon.pace import FIRST_CHUNK_KEYS

    about = scope.scope_of(keys, keys_from, cohort=cohort, missing=missing)
    async with database(command_line, "backfill", own_session=True) as (opened, settings):
        topic = await find_topic(opened, topic_name)
        key_count = await scope.count(opened, topic, about)
        if dry_run:
            key_s = await jobs.measure(opened, topic)
            takes_s = None if key_s is None else key_count * max(key_s, 1 / rate if rate else 0)
            click.echo(
                render.as_json({"topic": topic.name, "key_count": key_count, "takes_s": takes_s, "dry_run": True})
                if as_json
                else render_jobs.plan_text("would recalculate", topic.name, key_count, takes_s)
            )
            return
        chunk_keys = min(FIRST_CHUNK_KEYS, topic.batch_keys)
        job = await jobs.create(
            opened, "backfill", topic, about, key_count=key_count, chunk_keys=chunk_keys, rate_limit=rate
        )
        await run_here(opened, settings, job, as_json=as_json)
