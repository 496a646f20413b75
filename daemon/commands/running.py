"""What the commands that run a job have in common."""

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

from daemon.commands.base import may_go_on
from daemon.errors import RecalcdError, UsageError

if TYPE_CHECKING:
    import asyncpg

    from daemon.job_runner import Step
    from daemon.jobs import Job
    from daemon.keys import Topic
    from daemon.settings import Settings

RECOVERY_S = 60.0
"""How long to wait for a server that recovers, since a key killed one of its backends."""

keys_from_option = click.option(
    "--keys-from", type=click.File("r", encoding="utf-8"), metavar="FILE", help="Keys, one on each line; - for stdin."
)


async def run_here(
    opened: "asyncpg.Connection", settings: "Settings", job: "Job", *, as_json: bool, patience_s: float = 0.0
) -> None:
    """Run a job to its end in this process, print what became of it, and set the exit code."""
    from daemon import render, render_jobs

    with _hinting(job):
        ended = await _run_through(opened, settings, job, patience_s)
    click.echo(render.as_json(ended.as_json()) if as_json else render_jobs.outcome_text(ended))
    if ended.failed_count or ended.state == "cancelled":
        click.get_current_context().exit(1)


async def _run_through(opened: "asyncpg.Connection", settings: "Settings", job: "Job", patience_s: float) -> "Job":
    """Run a job to its end. A chunk that ends its own backend is left to the daemon, and the job goes on behind it."""
    from daemon import jobs
    from daemon.backfill import SUSPECT_KEYS
    from daemon.batch import CallFailed
    from daemon.database import close
    from daemon.redaction import error_facts

    async with contextlib.AsyncExitStack() as sessions:
        while True:
            try:
                return await _run_held(opened, settings, job, patience_s)
            except CallFailed as failure:
                click.echo(f"\njob {job.job_id}: the session ended: {error_facts(failure.error).message}", err=True)
                click.echo(
                    f"its {len(failure.claim.keys):,} keys are left to the daemon, which finds a culprit", err=True
                )
                opened, patience_s = await _connect_again(settings), jobs.PATIENCE_S
                sessions.push_async_callback(close, opened)
                await opened.execute(SUSPECT_KEYS, failure.claim.topic, failure.claim.keys)


async def _connect_again(settings: "Settings") -> "asyncpg.Connection":
    """Connect; a server recovers for a while when one of its backends was killed. Raises DatabaseUnavailable."""
    from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

    from daemon.database import connect
    from daemon.errors import DatabaseUnavailable

    retrying = AsyncRetrying(
        wait=wait_random_exponential(multiplier=0.1, max=2),
        retry=retry_if_exception_type(DatabaseUnavailable),
        stop=stop_after_delay(RECOVERY_S),
        reraise=True,
    )
    return await retrying(connect, settings, application_name="recalcd job", read_write=True)


async def _run_held(opened: "asyncpg.Connection", settings: "Settings", job: "Job", patience_s: float) -> "Job":
    from daemon import jobs

    async with jobs.holding(opened, job.job_id, patience_s=patience_s) as is_held:
        if not is_held:
            raise UsageError(f"Job {job.job_id} is being run by another process already; see `recalcd job list`.")
        return await _run(opened, settings, await jobs.find(opened, job.job_id))


async def _run(opened: "asyncpg.Connection", settings: "Settings", job: "Job") -> "Job":
    from daemon.job_runner import JobRunner, pace_of
    from daemon.keys import find_topic

    topic = await find_topic(opened, job.topic)
    step = _step(opened, settings, job, topic)
    pace = pace_of(job, topic, settings.batch_target_s)
    with _bar(job) as (advanced, doing):
        return await JobRunner(opened, job, step, pace, settings.batch_target_s, advanced, doing).run()


def _step(opened: "asyncpg.Connection", settings: "Settings", job: "Job", topic: "Topic") -> "Step":
    from daemon.backfill import Backfiller
    from daemon.replay import Replayer

    if job.kind == "replay":
        return Replayer(opened, topic)
    return Backfiller(opened, topic, settings.history_days > 0)


@contextlib.contextmanager
def _hinting(job: "Job") -> Iterator[None]:
    """Say how to go on, whatever it is that ends the process before the job."""
    try:
        yield
    except UsageError:
        raise
    except (Exception, asyncio.CancelledError):
        click.echo(f"\njob {job.job_id} is interrupted; go on with: recalcd job resume {job.job_id}", err=True)
        raise


@contextlib.contextmanager
def _bar(job: "Job") -> Iterator[tuple[Callable[[int], None], Callable[[str], None]]]:
    """Show the job's progress on stderr if that is a terminal, else one line that it began."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    name = f"job {job.job_id}, {job.kind}"
    if not console.is_terminal:
        click.echo(f"{name}: {job.key_count - job.done_count:,} keys of {job.topic} to do", err=True)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(), TextColumn("{task.fields[doing]}"), console=console, disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task(name, total=job.key_count, completed=job.done_count, speed="", doing="")

        def advanced(count: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, advance=count, speed="" if speed is None else f"{speed:,.0f}/s")

        yield advanced, lambda doing: bar.update(task, doing="" if doing == "working" else doing)


def confirm_start(plan: str, *, yes: bool) -> None:
    """Say what is about to be done, and ask. Raises UsageError with nobody to ask, RecalcdError for a no."""
    if not (yes or sys.stdin.isatty()):
        raise UsageError(
            "It asks before it starts, and there is nobody to ask: say --yes, or look first with --dry-run."
        )
    click.echo(plan, err=True)
    if not (yes or may_go_on()):
        raise RecalcdError("Nothing was changed.")
