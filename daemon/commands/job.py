"""`recalcd job`: backfills and replays, from any terminal."""

from typing import Any

import click

from daemon.commands.base import asynchronous, confirm, database, dry_run_option, json_option, yes_option

id_argument = click.argument("job_id", metavar="ID", type=click.IntRange(min=1))


@click.group("job")
def job() -> None:
    """Show backfills and replays; pause, resume and cancel them."""


@job.command("list", epilog="Example: recalcd job list")
@json_option
@click.pass_obj
@asynchronous
async def list_jobs(command_line: dict[str, Any], *, as_json: bool) -> None:
    """Show the jobs.

    All that have not ended, and the last twenty that have. One that is interrupted is run by nobody: resume it.

    Exit: 0 done.
    """
    from daemon import jobs, render, render_jobs

    async with database(command_line, "job") as (opened, _):
        found = await jobs.list_jobs(opened)
    click.echo(render.as_json([each.as_json() for each in found]) if as_json else render_jobs.jobs_text(found))


@job.command(epilog="Example: recalcd job show 7")
@id_argument
@json_option
@click.pass_obj
@asynchronous
async def show(command_line: dict[str, Any], *, job_id: int, as_json: bool) -> None:
    """Show how far a job has come.

    And how fast it goes, how long it will take, and why it was given up, if it was.

    Exit: 0 done, 1 it has failed keys or is interrupted, 2 no such job.
    """
    from daemon import jobs, render, render_jobs

    async with database(command_line, "job") as (opened, _):
        found = await jobs.find(opened, job_id)
    click.echo(render.as_json(found.as_json()) if as_json else render_jobs.job_text(found))
    if found.failed_count or found.status == "interrupted":
        click.get_current_context().exit(1)


@job.command(epilog="Example: recalcd job pause 7")
@id_argument
@dry_run_option
@click.pass_obj
@asynchronous
async def pause(command_line: dict[str, Any], *, job_id: int, dry_run: bool) -> None:
    """Let a job wait until it is resumed.

    Its process finishes the chunk in hand, a quarter of a second of work as a rule.

    Exit: 0 done, also when it was paused already; 2 no such job, or it has ended.
    """
    from daemon import jobs

    async with database(command_line, "job") as (opened, _):
        was = await jobs.change(opened, job_id, "paused", dry_run=dry_run)
    if dry_run:
        click.echo(f"would pause job {job_id}")
    else:
        click.echo(f"job {job_id} was paused already" if was.state == "paused" else f"paused job {job_id}")


@job.command(epilog="Example: recalcd job resume 7")
@id_argument
@dry_run_option
@json_option
@click.pass_obj
@asynchronous
async def resume(command_line: dict[str, Any], *, job_id: int, dry_run: bool, as_json: bool) -> None:
    """Go on with a job.

    In the terminal where it waits, if it was paused; here, when nobody runs it.

    Exit: 0 done, 1 some keys failed, or it was cancelled; 2 no such job, it has ended, or it is running.
    """
    from daemon import jobs, render
    from daemon.commands.running import run_here

    async with database(command_line, "job", own_session=True) as (opened, settings):
        was = await jobs.change(opened, job_id, "running", dry_run=dry_run)
        if dry_run:
            click.echo(f"would resume job {job_id} at {was.done_count:,} of {was.key_count:,} keys")
        elif was.status == "paused" and was.is_held:
            resumed = await jobs.find(opened, job_id)
            click.echo(render.as_json(resumed.as_json()) if as_json else f"resumed job {job_id}, where it waits")
        else:
            await run_here(opened, settings, was, as_json=as_json, patience_s=jobs.PATIENCE_S)


@job.command(epilog="Example: recalcd job cancel 7")
@id_argument
@yes_option
@dry_run_option
@click.pass_obj
@asynchronous
async def cancel(command_line: dict[str, Any], *, job_id: int, yes: bool, dry_run: bool) -> None:
    """End a job for good.

    After the chunk in hand; what it has done stays done.

    Exit: 0 done, 1 not confirmed, 2 no such job, or it has ended.
    """
    from daemon import jobs

    async with database(command_line, "job") as (opened, _):
        was = await jobs.change(opened, job_id, "cancelled", dry_run=True)
        left = f"job {job_id} with {was.key_count - was.done_count:,} of {was.key_count:,} keys to do"
        if dry_run:
            click.echo(f"would cancel {left}")
            return
        confirm(f"This will cancel {left}.", yes=yes)
        await jobs.change(opened, job_id, "cancelled")
    click.echo(f"cancelled {left}")
