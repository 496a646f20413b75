"""`recalcd migrate`."""

import asyncio
import functools
import json
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import click

from daemon.commands.base import asynchronous, dry_run_option
from daemon.errors import RecalcdError, UsageError
from daemon.migration_files import SET_NAMES

set_option = click.option("--set", "set_name", type=click.Choice(SET_NAMES), help="Only this set; default: all.")


@click.group()
def migrate() -> None:
    """Bring the database to this release's tables and routines, and back."""


@migrate.command(epilog="Example: recalcd migrate up --set outbox --dry-run")
@click.option(
    "--set",
    "set_name",
    type=click.Choice(SET_NAMES),
    help="Only this set; default: those that are there, in a new database all.",
)
@click.option("--to", metavar="VERSION", type=click.IntRange(min=1), help="Stop there. Needs --set.")
@dry_run_option
@click.pass_obj
def up(command_line: dict[str, Any], *, set_name: str | None, to: int | None, dry_run: bool) -> None:
    """Apply what is pending. Exit: 0 done, 1 a file failed, 2 usage, 3 no database, 4 not ours to migrate."""
    from daemon import migrations

    set_names = (set_name,) if set_name else None
    asyncio.run(_migrate(command_line, migrations.up, set_names=set_names, to=to, dry_run=dry_run))


@migrate.command(epilog="Example: recalcd migrate down --set reports --to 3")
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
    from daemon.database import connection, need_own_session
    from daemon.migrations import Audience
    from daemon.settings import load

    audience = Audience(tell=click.echo, warn=functools.partial(click.echo, err=True))
    settings = load(**command_line)
    async with connection(settings, application_name="recalcd migrate", read_write=not arguments["dry_run"]) as opened:
        await need_own_session(opened, settings)
        return await direction(opened, audience=audience, **arguments)


@migrate.command(epilog="Example: recalcd migrate status --json")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
@asynchronous
async def status(command_line: dict[str, Any], as_json: bool) -> None:
    """Show what the database holds, file by file. Exit: 0 all of what is there is applied, 1 not all, 3 no database."""
    from daemon import migration_report
    from daemon.database import connection
    from daemon.migration_state import expected, read_status
    from daemon.settings import load

    async with connection(load(**command_line), application_name="recalcd migrate") as opened:
        sets = await read_status(opened)
    click.echo(json.dumps(migration_report.as_json(sets), indent=2) if as_json else migration_report.as_table(sets))
    if not all(each.is_current for each in expected(sets)):
        click.get_current_context().exit(1)


@migrate.command(epilog="Example: recalcd migrate dump > recalcd.sql")
@set_option
def dump(set_name: str | None) -> None:
    """Print one idempotent SQL file that psql, Supabase, dbmate or Flyway can run instead of `migrate up`."""
    from daemon import migration_dump

    click.echo(migration_dump.dump(_names(set_name)), nl=False)


def _names(set_name: str | None) -> tuple[str, ...]:
    return SET_NAMES if set_name is None else (set_name,)
