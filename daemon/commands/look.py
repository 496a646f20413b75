"""`recalcd status` and `report`: commands that only look."""

from typing import Any
from uuid import UUID

import click

from daemon.commands.base import asynchronous, database, json_option


@click.command("status")
@json_option
@click.pass_obj
@asynchronous
async def show_status(command_line: dict[str, Any], *, as_json: bool) -> None:
    """Say whether it is healthy, and why not. Exit: 0 healthy, 1 not, 3 no database."""
    from daemon import render
    from daemon.status import read_status

    async with database(command_line, "status") as (opened, _):
        found = await read_status(opened)
    click.echo(render.as_json(found.as_json()) if as_json else render.status_text(found))
    if found.problems:
        click.get_current_context().exit(1)


@click.command()
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

    async with database(command_line, "report") as (opened, _):
        rows = await read_report(opened, of, about, timeframe)
    click.echo(
        render.as_json([dict(row) for row in rows]) if as_json else render.report_text(of, [dict(row) for row in rows])
    )
