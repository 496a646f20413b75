"""The command line. click only: parse, call daemon/, print, exit code.

stdout is the answer, stderr is the log. Exit codes: 0 done, 1 the answer is bad news, 2 usage, 3 no database, 4 schema
missing or of another version, 78 a setting is wrong, 130 interrupted.
"""

import click

from daemon import __version__
from daemon.commands.backfill import backfill
from daemon.commands.base import Commands
from daemon.commands.completion import completion
from daemon.commands.demo import demo
from daemon.commands.doctor import doctor
from daemon.commands.explain import explain
from daemon.commands.failures import failures
from daemon.commands.forget import forget
from daemon.commands.job import job
from daemon.commands.look import report, show_status
from daemon.commands.migrate import migrate
from daemon.commands.replay import replay
from daemon.commands.serve import config, run
from daemon.commands.tail import tail
from daemon.commands.top import top
from daemon.commands.topic import topic
from daemon.commands.verify import verify
from daemon.redaction import redact


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
    if database_url and redact(database_url) != database_url:
        raise click.UsageError(
            "--database-url holds a password, which other users can read in the process list. "
            "Set RECALCD_DATABASE_URL instead, or let PGPASSFILE name a file that holds the password."
        )
    context.obj = {"database_url": database_url}  # what daemon.settings.load() takes


for command in (
    demo,
    run,
    show_status,
    verify,
    backfill,
    replay,
    job,
    report,
    explain,
    failures,
    forget,
    tail,
    top,
    topic,
    doctor,
    migrate,
    config,
    completion,
):
    main.add_command(command)


if __name__ == "__main__":
    main()
