"""`recalcd verify`: proves that cached equals true, or shows where it does not."""

from typing import Any

import click

from daemon.commands.base import asynchronous, database, json_option, key_option, progress, topic_option


@click.command(epilog="Example: recalcd verify --sample 1000 --repair")
@topic_option
@key_option
@click.option("--cohort", metavar="NAME", help="The pupils of this cohort (name or id).")
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
    cohort: str | None,
    sample: int | None,
    repair: bool,
    as_json: bool,
) -> None:
    """Compare cached rows with what a recalculation would produce now.

    Runs beside live traffic: a key whose event waits is late, not drifted. Shows for each drifted key what is cached
    and what is true, if the topic has a describe function; for a pupil also the rows that were written since the
    report, by somebody who forgot the outbox.

    Exit: 0 all true, 1 drift, or keys that fail, 2 no such topic, key or cohort.
    """
    from daemon.errors import UsageError
    from daemon.keys import find_topic, list_part
    from daemon.render import as_json as as_json_text
    from daemon.render_verify import verdict_text
    from daemon.scope import count, scope_of
    from daemon.verify import Verifier

    if keys and cohort:
        raise UsageError("Say --key or --cohort, not both.")
    async with database(command_line, "verify") as (opened, settings):
        topic = await find_topic(opened, topic_name)
        scope = scope_of(keys, None, cohort=cohort)
        total = await count(opened, topic, scope)
        named = await list_part(opened, topic, scope.part) if scope.part else scope.named
        with progress(f"verifying {topic.name}", min(total, sample or total)) as advanced:
            verifier = Verifier(opened, topic, repair, settings.history_days > 0, advanced)
            verdict = await verifier.run(named, sample=sample)
    click.echo(as_json_text(verdict.as_json()) if as_json else verdict_text(verdict))
    if not verdict.is_good:
        click.get_current_context().exit(1)
