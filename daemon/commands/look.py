"""`recalcd status` and `report`: commands that only look."""

import asyncio
from typing import Any
from uuid import UUID

import click

from daemon.commands.base import asynchronous, database, json_option


def limit_options(command: Any) -> Any:
    """Add the thresholds of what counts as unhealthy; their defaults are those of daemon.threats.Thresholds."""
    seconds, count = click.FloatRange(min=0), click.IntRange(min=0)
    for name, kind, default, what in (
        ("dead-rows", count, 200_000, "So many dead rows in outbox.event."),
        ("notify-queue", click.FloatRange(0, 1), 0.25, "The NOTIFY queue this full."),
        ("horizon-xids", count, 1_000_000, "A slot or a standby has held the horizon for so many transactions."),
        ("horizon-s", seconds, 300.0, "A transaction has held the horizon for so many seconds."),
        ("dead-keys", count, 0, "More dead keys than this in a topic."),
        ("unseen-s", seconds, 30.0, "A daemon was not seen for so many seconds."),
        ("late-s", seconds, 60.0, "A claimable event has waited so many seconds."),
    ):
        command = click.option(f"--{name}", type=kind, default=default, show_default=True, help=what)(command)
    return command


@click.command("status", epilog="Example: recalcd status --late-s 10 --watch 5")
@limit_options
@click.option(
    "--watch",
    "watch_s",
    metavar="[SECONDS]",
    type=click.FloatRange(min=0.1),
    is_flag=False,
    flag_value=2.0,
    help="Look again every so many seconds (2), until Ctrl-C.",
)
@json_option
@click.pass_obj
@asynchronous
async def show_status(
    command_line: dict[str, Any], /, *, watch_s: float | None, as_json: bool, **limits: float
) -> None:
    """Say whether it is healthy, and why not. The options say from where on something is unhealthy.

    Exit: 0 healthy, 1 not, 3 no database; 130 for --watch, which Ctrl-C ends.
    """
    from daemon import render, render_status
    from daemon.status import read_status
    from daemon.threats import Thresholds

    thresholds = Thresholds(**limits)  # type: ignore[arg-type]  # click has checked them
    async with database(command_line, "status") as (opened, _):
        found = await read_status(opened, thresholds)
        while watch_s is not None:
            click.clear()  # does nothing where stdout is no terminal
            click.echo(render.as_json(found.as_json(), indent=None) if as_json else render_status.status_text(found))
            await asyncio.sleep(watch_s)
            found = await read_status(opened, thresholds)
    click.echo(render.as_json(found.as_json()) if as_json else render_status.status_text(found))
    if found.problems:
        click.get_current_context().exit(1)


@click.command(epilog="Example: recalcd report group 0b9d2c1e-4f1a-4c63-9f2f-1f0c6f1f3a55 --timeframe Autumn")
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
