"""What the commands say of themselves: docs/cli.md, an example in every --help, completion in three shells."""

import os
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest
from click.testing import CliRunner
from engine import make_ledger

from cli import main
from daemon.manual import leaves, manual

MANUAL = Path(__file__).parents[1] / "docs" / "cli.md"


def test_the_manual_is_what_the_commands_say() -> None:
    assert MANUAL.read_text("utf-8") == manual(main), "run `make docs`"


def test_every_help_shows_an_example_of_its_own() -> None:
    wrong = {
        context.command_path: context.command.epilog
        for context in leaves(main)
        if f"{context.command_path} " not in f"{context.command.epilog or ''} "
        or not str(context.command.epilog).startswith("Example: ")
    }
    assert wrong == {}


def test_every_example_uses_options_that_there_are() -> None:
    unknown = {
        context.command_path: word
        for context in leaves(main)
        for word in (context.command.epilog or "").partition(context.command_path)[2].split()
        if word.startswith("-") and word not in {name for each in context.command.params for name in each.opts}
    }
    assert unknown == {}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script(shell: str) -> None:
    answer = CliRunner().invoke(main, ["completion", shell])
    assert answer.exit_code == 0
    assert f"_RECALCD_COMPLETE={shell}_complete" in answer.stdout


def test_the_script_is_bash() -> None:
    script = CliRunner().invoke(main, ["completion", "bash"]).stdout
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_a_shell_that_nobody_knows_is_refused() -> None:
    answer = CliRunner().invoke(main, ["completion", "tcsh"])
    assert answer.exit_code == 2
    assert "'tcsh' is not one of" in answer.stderr


def completed(dsn: str, *words: str) -> set[str]:
    """Press Tab behind the last word, as bash does."""
    environment = os.environ | {
        "RECALCD_DATABASE_URL": dsn,
        "_RECALCD_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["recalcd", *words]),
        "COMP_CWORD": str(len(words)),
    }
    command = [sys.executable, "-c", "from cli import main; main(prog_name='recalcd')"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stderr == ""
    return {line.partition(",")[2] for line in run.stdout.splitlines()}


async def test_names_of_topics_come_from_the_database(db: asyncpg.Connection, dsn: str) -> None:
    await make_ledger(db)
    assert completed(dsn, "explain", "l") == {"ledger.account"}
    assert completed(dsn, "verify", "--topic", "") == {"ledger.account", "reports.student"}
    assert "--repair" in completed(dsn, "verify", "--r")


def test_without_a_database_nothing_is_completed_and_nothing_said() -> None:
    assert completed("postgresql://nobody@127.0.0.1:1/none", "explain", "l") == {
        ""
    }  # click ends its empty answer with a newline
