"""`recalcd completion`: lets a shell complete commands, options and the names of topics."""

import click
from click.shell_completion import get_completion_class

VARIABLE = "_RECALCD_COMPLETE"  # how the shell asks; click reads it
INSTALL = {
    "bash": 'eval "$(recalcd completion bash)"    # in ~/.bashrc; needs bash 4.4',
    "zsh": 'eval "$(recalcd completion zsh)"     # in ~/.zshrc, after compinit',
    "fish": "recalcd completion fish > ~/.config/fish/completions/recalcd.fish",
}


@click.command(epilog='Example: eval "$(recalcd completion bash)"')
@click.argument("shell", type=click.Choice(list(INSTALL)))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that teaches SHELL to complete recalcd; topics are asked of the database.

    Exit: 0 done, 2 no such shell.
    """
    kind = get_completion_class(shell)
    if kind is None:  # click lost a shell that it had
        raise click.UsageError(f"This click can't complete {shell}.")
    program = kind(context.find_root().command, {}, "recalcd", VARIABLE)
    click.echo(f"# {INSTALL[shell]}")
    click.echo(program.source_template % program.source_vars())
