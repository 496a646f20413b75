"""What all commands have in common: how they connect, show progress, and end."""

import asyncio
import contextlib
import functools
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec

import click
from click.shell_completion import CompletionItem

from daemon.errors import Blame, DatabaseUnavailable, RecalcdError, UsageError, blame

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

    from daemon.redaction import error_facts

    said = error_facts(error).message.rstrip(".")
    if isinstance(error, asyncpg.PostgresError) and not isinstance(error, asyncpg.PostgresConnectionError):
        kind = DatabaseUnavailable if blame(error.sqlstate) is Blame.SERVER else RecalcdError
        return kind(f"The database answered: {said} ({error.sqlstate}).")
    # An InternalClientError is what asyncpg says when the end of the connection overtakes an answer.
    lost = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.InternalClientError)
    if isinstance(error, (*lost, ConnectionError, TimeoutError)):
        return DatabaseUnavailable(f"The connection to the database was lost: {said}. Try again.")
    return None


def asynchronous(command: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Let a command be a coroutine."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(command(*args, **kwargs))

    return run


@contextlib.asynccontextmanager
async def database(
    command_line: dict[str, Any], name: str, *, own_session: bool = False
) -> AsyncIterator[tuple["asyncpg.Connection", "Settings"]]:
    """Connect for a command, in a session of its own if it keeps something there, and see that the schema is ours."""
    from daemon import telemetry
    from daemon.database import connection, need_own_session
    from daemon.migration_state import check_schema
    from daemon.settings import load

    settings = load(**command_line)
    quiet = {} if "log_level" in settings.model_fields_set else {"log_level": "warning"}
    telemetry.configure(settings.model_copy(update=quiet))
    async with connection(settings, application_name=f"recalcd {name}") as opened:
        if own_session:
            await need_own_session(opened, settings)
        await check_schema(opened)
        yield opened, settings


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
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


def confirm(warning: str, *, yes: bool) -> None:
    """Ask before what can't be undone, on stderr. Raises UsageError with nobody to ask, RecalcdError for a no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("This can't be undone, and there is nobody to ask: say --yes, or look first with --dry-run.")
    click.echo(warning, err=True)
    if not may_go_on():
        raise RecalcdError("Nothing was changed.")


def may_go_on() -> bool:
    """Ask, on stderr. Ctrl-C is an answer here: asyncio would keep it until the coroutine waits for something."""
    of_asyncio = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return click.confirm("Go on?", err=True)
    finally:
        signal.signal(signal.SIGINT, of_asyncio)


class TopicName(click.types.StringParamType):
    """A topic; the shell completes those that are registered."""

    name = "topic"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002  # click's
        found = asyncio.run(_topic_names(ctx.find_root().params))
        return [CompletionItem(each) for each in found if each.startswith(incomplete)]


async def _topic_names(command_line: Mapping[str, Any]) -> list[str]:
    """Ask the database, if it answers at once; a completion has nowhere to complain."""
    from daemon.database import DATABASE_ERRORS, connection
    from daemon.keys import LIST_TOPICS
    from daemon.settings import load

    with contextlib.suppress(RecalcdError, *DATABASE_ERRORS):
        settings = load(database_url=command_line.get("database_url")).model_copy(update={"connect_timeout_s": 1.0})
        async with connection(settings, application_name="recalcd completion") as opened:
            return [row["topic"] for row in await opened.fetch(LIST_TOPICS)]
    return []


TOPIC = TopicName()

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
topic_option = click.option(
    "--topic", "topic_name", type=TOPIC, default="reports.student", show_default=True, help="Which kind."
)
key_option = click.option("--key", "keys", multiple=True, help="This key; may be repeated.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Show what would be done; change nothing.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
