"""`recalcd replay`."""

from typing import TYPE_CHECKING, Any, TextIO

import click

from daemon.commands.base import TOPIC, asynchronous, database, dry_run_option, json_option, key_option, yes_option
from daemon.commands.running import keys_from_option
from daemon.times import Moment, parse_moment

if TYPE_CHECKING:
    import asyncpg

    from daemon.keys import Topic
    from daemon.replay import Chosen
    from daemon.settings import Settings


class MomentType(click.ParamType[Moment]):
    """A point in time, as people type it."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Moment:
        """Read it, or fail with what is wrong."""
        try:
            return parse_moment(value)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


@click.command(epilog="Example: recalcd replay reports.student --dead --where sqlstate=22012 --since 2h")
@click.argument("topic_name", metavar="TOPIC", type=TOPIC)
@click.option("--dead", is_flag=True, help="Dead keys; with --since or --until, those that failed last in that time.")
@key_option
@keys_from_option
@click.option("--since", type=MomentType(), help="Keys recalculated since then: 2h (ago), or 2026-11-22T14:00 (UTC).")
@click.option("--until", type=MomentType(), help="Keys recalculated before then; default: now.")
@click.option(
    "--where", multiple=True, metavar="NAME=VALUE", help="reason=… of the batch, or sqlstate=… of the failure."
)
@dry_run_option
@yes_option
@json_option
@click.pass_obj
@asynchronous
async def replay(
    command_line: dict[str, Any],
    *,
    topic_name: str,
    dead: bool,
    keys: tuple[str, ...],
    keys_from: TextIO | None,
    since: Moment | None,
    until: Moment | None,
    where: tuple[str, ...],
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Put keys of TOPIC back into the outbox, to be recalculated as if they had changed; never ahead of live traffic.

    Says how many keys it is and how long they take, and asks, before it starts. It is a job: see `recalcd job`.
    A reason is kept for a whole batch: --where reason=… brings the keys of every batch that had such an event.

    Exit: 0 done, 1 nothing to put back, or a no, or it was cancelled; 2 no such topic or key.
    """
    from daemon.keys import find_topic
    from daemon.replay import Wanted, check, choose, parse_where
    from daemon.scope import read_lines

    named = None if not keys and keys_from is None else [*keys, *read_lines(keys_from or [])]
    wanted = Wanted(named, dead, since, until, **parse_where(where))
    check(wanted)
    async with database(command_line, "replay", own_session=True) as (opened, settings):
        topic = await find_topic(opened, topic_name)
        chosen = await choose(opened, topic, wanted)
        await _carry_out(opened, settings, topic, chosen, dry_run=dry_run, yes=yes, as_json=as_json)
    if not chosen.keys:
        click.get_current_context().exit(1)


async def _carry_out(
    opened: "asyncpg.Connection",
    settings: "Settings",
    topic: "Topic",
    chosen: "Chosen",
    *,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Say what would be done; do it, unless it is nothing or only to be looked at."""
    from daemon import jobs, render, render_jobs
    from daemon.commands.running import confirm_start, run_here
    from daemon.scope import Scope

    if chosen.history_begins_at is not None:
        begin = f"{chosen.history_begins_at:%Y-%m-%d %H:%M:%S} UTC"
        click.echo(f"The history begins at {begin}: what was recalculated before is not known.", err=True)
    key_count = len(chosen.keys)
    key_s = await jobs.measure(opened, topic)
    takes_s = None if key_s is None else key_count * key_s
    if dry_run or not chosen.keys:
        plan = {
            "topic": topic.name,
            "key_count": key_count,
            "takes_s": takes_s,
            "dry_run": dry_run,
            "keys": chosen.keys,
        }
        text = render_jobs.plan_text("would put back", topic.name, key_count, takes_s)
        click.echo(render.as_json(plan) if as_json else text if chosen.keys else "nothing to put back")
        return
    confirm_start(render_jobs.plan_text("putting back", topic.name, key_count, takes_s), yes=yes)
    chunk_keys = _chunk_keys(topic, key_s, settings.batch_target_s)
    job = await jobs.create(opened, "replay", topic, Scope(chosen.keys), key_count=key_count, chunk_keys=chunk_keys)
    await run_here(opened, settings, job, as_json=as_json)


def _chunk_keys(topic: "Topic", key_s: float | None, target_s: float) -> int:
    """Return how many keys take target_s, so that the first chunk keeps nobody waiting either."""
    from daemon.pace import FIRST_CHUNK_KEYS

    fitting = FIRST_CHUNK_KEYS if not key_s else int(target_s / key_s)
    return max(1, min(fitting, topic.batch_keys))
