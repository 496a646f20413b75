"""The command line. click only: parse, call daemon/, print, exit code.

stdout is the answer, stderr is the log. Exit codes: 0 done, 1 the answer is bad news, 2 usage, 3 no database, 4 schema
missing or of another version, 78 a setting is wrong, 130 interrupted.
"""

import asyncio
import contextlib
import functools
import json
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec
from uuid import UUID

import click

from daemon import __version__
from daemon.errors import Blame, DatabaseUnavailable, RecalcdError, UsageError, blame
from daemon.migration_files import SET_NAMES

if TYPE_CHECKING:
    import asyncpg

    from daemon.settings import Settings

INTERRUPTED = 130  # what a shell makes of SIGINT

P = ParamSpec("P")


class Commands(click.Group):
    """Where every command ends: an error becomes one or two sentences on stderr, and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RecalcdError as error:
            _end(ctx, error)
        except (KeyboardInterrupt, click.Abort):
            click.echo(err=True)
            ctx.exit(INTERRUPTED)
        except (click.exceptions.Exit, click.ClickException, BrokenPipeError):
            raise  # click knows what to do
        except Exception as error:
            if (known := _known(error)) is None:
                raise
            _end(ctx, known)


def _end(context: click.Context, error: RecalcdError) -> NoReturn:
    click.echo(f"recalcd: {error}", err=True)
    context.exit(error.exit_code)


def _known(error: Exception) -> RecalcdError | None:
    """Return what a person should be told of an error that came from asyncpg as it was; None for a bug of ours."""
    import asyncpg

    from daemon.redaction import redact

    said = redact(str(error)).rstrip(".")
    if isinstance(error, asyncpg.PostgresError) and not isinstance(error, asyncpg.PostgresConnectionError):
        kind = DatabaseUnavailable if blame(error.sqlstate) is Blame.SERVER else RecalcdError
        return kind(f"The database answered: {said} ({error.sqlstate}).")
    if isinstance(error, (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, ConnectionError, TimeoutError)):
        return DatabaseUnavailable(f"The connection to the database was lost: {said}. Try again.")
    return None


def asynchronous(command: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Let a command be a coroutine."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(command(*args, **kwargs))

    return run


@click.group(
    cls=Commands, name="recalcd", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option(
    "--database-url",
    metavar="URI",
    help="Database to work on, instead of RECALCD_DATABASE_URL. Other users can see it in the process list: "
    "no password here.",
)
@click.version_option(__version__, prog_name="recalcd")
@click.pass_context
def main(context: click.Context, database_url: str | None) -> None:
    """Keep cached report tables true.

    \b
    Exit codes: 0 done, 1 the answer is bad news, 2 usage, 3 no database, 4 schema missing or of
    another version, 78 a setting is wrong, 130 interrupted.
    """  # noqa: D301  # \b is click's: do not wrap the paragraph
    context.obj = {"database_url": database_url}  # what daemon.settings.load() takes


set_option = click.option("--set", "set_name", type=click.Choice(SET_NAMES), help="Only this set; default: all.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Show what would be done; change nothing.")


@main.group()
def migrate() -> None:
    """Bring the database to this release's tables and routines, and back."""


@migrate.command()
@set_option
@click.option("--to", metavar="VERSION", type=click.IntRange(min=1), help="Stop there. Needs --set.")
@dry_run_option
@click.pass_obj
def up(command_line: dict[str, Any], *, set_name: str | None, to: int | None, dry_run: bool) -> None:
    """Apply what is pending. Exit: 0 done, 1 a file failed, 2 usage, 3 no database, 4 not ours to migrate."""
    from daemon import migrations

    asyncio.run(_migrate(command_line, migrations.up, set_names=_names(set_name), to=to, dry_run=dry_run))


@migrate.command()
@set_option
@click.option("--to", metavar="VERSION", type=click.IntRange(min=0), default=0, help="Stop above it. Needs --set.")
@click.option("--lose-events", is_flag=True, help="Even with events pending, or failed keys owed.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@dry_run_option
@click.pass_obj
def down(
    command_line: dict[str, Any], *, set_name: str | None, to: int, lose_events: bool, yes: bool, dry_run: bool
) -> None:
    """Take migrations back, and with the last of a set all it made. Exit: as up; 1 also if not confirmed."""
    from daemon import migrations

    if not (yes or dry_run or sys.stdin.isatty()):
        raise UsageError("This can't be undone, and there is nobody to ask: say --yes, or look first with --dry-run.")
    take_back = functools.partial(
        _migrate, command_line, migrations.down, set_names=_names(set_name), to=to, lose_events=lose_events
    )
    if not yes and (asyncio.run(take_back(dry_run=True)) == 0 or dry_run):
        return
    if not (yes or click.confirm("What these hold is lost, and can't be brought back. Go on?")):
        raise RecalcdError("Nothing was changed.")
    asyncio.run(take_back(dry_run=dry_run))


async def _migrate(
    command_line: dict[str, Any], direction: Callable[..., Coroutine[Any, Any, int]], **arguments: Any
) -> int:
    from daemon.database import connection
    from daemon.migrations import Audience
    from daemon.settings import load

    audience = Audience(tell=click.echo, warn=functools.partial(click.echo, err=True))
    settings = load(**command_line)
    async with connection(settings, application_name="recalcd migrate", read_write=not arguments["dry_run"]) as opened:
        return await direction(opened, audience=audience, **arguments)


@migrate.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
@asynchronous
async def status(command_line: dict[str, Any], as_json: bool) -> None:
    """Show what the database holds, file by file. Exit: 0 all is applied, 1 not all, 3 no database."""
    from daemon import migration_report
    from daemon.database import connection
    from daemon.migration_state import read_status
    from daemon.settings import load

    async with connection(load(**command_line), application_name="recalcd migrate") as opened:
        sets = await read_status(opened)
    click.echo(json.dumps(migration_report.as_json(sets), indent=2) if as_json else migration_report.as_table(sets))
    if not all(each.is_current for each in sets):
        click.get_current_context().exit(1)


@migrate.command()
@set_option
def dump(set_name: str | None) -> None:
    """Print one idempotent SQL file that psql, Supabase, dbmate or Flyway can run instead of `migrate up`."""
    from daemon import migration_dump

    click.echo(migration_dump.dump(_names(set_name)), nl=False)


def _names(set_name: str | None) -> tuple[str, ...]:
    return SET_NAMES if set_name is None else (set_name,)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def config(command_line: dict[str, Any], as_json: bool) -> None:
    """Show each setting, its value and where it came from, without secrets. Exit: 0 done, 78 a setting is wrong."""
    from daemon import settings

    given = [field for field, value in command_line.items() if value is not None]
    described = settings.describe(settings.load(**command_line), given)
    click.echo(json.dumps([asdict(each) for each in described], indent=2) if as_json else settings.as_table(described))


@contextlib.asynccontextmanager
async def _database(command_line: dict[str, Any], name: str) -> AsyncIterator[tuple["asyncpg.Connection", "Settings"]]:
    """Connect for a command, and see that the schema is ours."""
    from daemon import telemetry
    from daemon.database import connection
    from daemon.migration_state import check_schema
    from daemon.settings import load

    settings = load(**command_line)
    quiet = {} if "log_level" in settings.model_fields_set else {"log_level": "warning"}
    telemetry.configure(settings.model_copy(update=quiet))
    async with connection(settings, application_name=f"recalcd {name}") as opened:
        await check_schema(opened)
        yield opened, settings


@contextlib.contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr if that is a terminal; yield what moves it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console, disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
topic_option = click.option("--topic", "topic_name", default="reports.student", show_default=True, help="Which kind.")
key_option = click.option("--key", "keys", multiple=True, help="This key; may be repeated.")


@main.command()
@click.option("--drain", is_flag=True, help="Work until nothing is pending, then stop.")
@click.pass_obj
def run(command_line: dict[str, Any], *, drain: bool) -> None:
    """Run the daemon. Exit: 0 stopped, 1 a drain left dead keys, 4 not our schema, 78 a setting is wrong."""
    from daemon.runner import Runner
    from daemon.settings import load

    runner = Runner(functools.partial(load, **command_line), drain=drain)
    click.get_current_context().exit(asyncio.run(runner.run()))


@main.command("status")
@json_option
@click.pass_obj
@asynchronous
async def show_status(command_line: dict[str, Any], *, as_json: bool) -> None:
    """Say whether it is healthy, and why not. Exit: 0 healthy, 1 not, 3 no database."""
    from daemon import render
    from daemon.status import read_status

    async with _database(command_line, "status") as (opened, _):
        found = await read_status(opened)
    click.echo(render.as_json(found.as_json()) if as_json else render.status_text(found))
    if found.problems:
        click.get_current_context().exit(1)


@main.command()
@click.argument("of", type=click.Choice(["student", "group", "cohort"]))
@click.argument("about", metavar="ID", type=click.UUID)
@click.option("--timeframe", default="all", show_default=True, help="Name or id.")
@json_option
@click.pass_obj
@asynchronous
async def report(command_line: dict[str, Any], *, of: Any, about: UUID, timeframe: str, as_json: bool) -> None:
    """Read a cached report as an application would. Exit: 0 done, 2 no such pupil, group, cohort or timeframe."""
    from daemon import render
    from daemon.reports import read_report

    async with _database(command_line, "report") as (opened, _):
        rows = await read_report(opened, of, about, timeframe)
    click.echo(
        render.as_json([dict(row) for row in rows]) if as_json else render.report_text(of, [dict(row) for row in rows])
    )


@main.command()
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

    async with _database(command_line, "verify") as (opened, settings):
        topic = await find_topic(opened, topic_name)
        total = await count(opened, topic, keys)
        with _progress(f"verifying {topic.name}", min(total, sample or total)) as advanced:
            verifier = Verifier(opened, topic, repair, settings.history_days > 0, advanced)
            verdict = await verifier.run(keys, sample=sample)
    click.echo(render.as_json(asdict(verdict)) if as_json else render.verdict_text(verdict))
    if not verdict.is_good:
        click.get_current_context().exit(1)


@main.command()
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

    async with _database(command_line, "backfill") as (opened, settings):
        topic = await find_topic(opened, topic_name)
        total = await count(opened, topic, keys)
        if dry_run:
            click.echo(render.as_json({"key_count": total}) if as_json else f"would recalculate {total:,} keys")
            return
        with _progress(f"backfilling {topic.name}", total) as advanced:
            tally = await Backfiller(opened, topic, settings.history_days > 0, advanced).run(keys)
    click.echo(render.as_json(asdict(tally)) if as_json else render.tally_text(tally))
    if tally.failed:
        click.get_current_context().exit(1)


@main.command()
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

    async with _database(command_line, "replay") as (opened, _):
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


if __name__ == "__main__":
    main(prog_name="recalcd")
