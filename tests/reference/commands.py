"""The page of the commands: the help of each, as the command prints it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer.main

from smartpipe.cli.app import app

if TYPE_CHECKING:
    from collections.abc import Iterator

WIDTH = 100
INTRODUCTION = """\
# Commands

The `--help` of every command. `make reference` writes this page from the code.
[Reference](../reference.md#commands) says what each command does, and what its exit codes mean.

- A TARGET is `module:attribute`, imported from your working directory. Without a TARGET, a command uses
  `[tool.smartpipe] services = [...]` in `pyproject.toml`.
- A name in brackets, as in `[SMARTPIPE_PORT, 8080]`, is the variable that sets the option, followed by its default.
  [Settings](settings.md) lists all variables.

"""


def page() -> str:
    """Return the page."""
    return INTRODUCTION + "\n".join(_sections(typer.main.get_command(app), "smartpipe", None))


def _sections(command: Any, name: str, parent: Any) -> Iterator[str]:
    context = command.context_class(
        command, info_name=name, parent=parent, terminal_width=WIDTH, max_content_width=WIDTH
    )
    text = "\n".join(line.rstrip() for line in command.get_help(context).strip().splitlines())
    yield f"## `{context.command_path}`\n\n```text\n{text}\n```\n"
    for key in command.list_commands(context) if hasattr(command, "list_commands") else ():
        yield from _sections(command.get_command(context, key), key, context)
