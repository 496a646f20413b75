"""docs/cli.md, written from the commands themselves: `make docs`. A test compares them."""

from collections.abc import Iterator

import click

HEAD = """\
# recalcd, command by command

Written by `make docs` from what the commands say of themselves; do not edit. stdout is the answer, stderr the log.
"""
WIDTH = 100


def manual(main: click.Group) -> str:
    """Return the manual page of a command and of all below it, as Markdown."""
    root = click.Context(main, info_name=main.name, **{**main.context_settings, "terminal_width": WIDTH})
    return "\n".join([HEAD, *_sections(root)])


def leaves(main: click.Group) -> Iterator[click.Context]:
    """Yield every command that does something, with its path."""
    for context in _tree(click.Context(main, info_name=main.name)):
        if not isinstance(context.command, click.Group):
            yield context


def _tree(context: click.Context) -> Iterator[click.Context]:
    yield context
    if isinstance(context.command, click.Group):
        for name, command in sorted(context.command.commands.items()):
            yield from _tree(click.Context(command, info_name=name, parent=context))


def _sections(root: click.Context) -> Iterator[str]:
    for context in _tree(root):
        yield f"## {context.command_path}\n\n```text\n{context.get_help()}\n```\n"


if __name__ == "__main__":
    from cli import main

    click.echo(manual(main), nl=False)
