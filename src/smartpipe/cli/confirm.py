"""Ask for confirmation before a command changes resources."""

from __future__ import annotations

import sys

import typer

from smartpipe.errors import ConfigError


def confirm(question: str, *, yes: bool, as_json: bool, alternative: str = "review the plan") -> None:
    """Return if the user agrees.

    Args:
        yes: The user has agreed in advance, with ``--yes``.
        alternative: A way to see the effect without a confirmation, for the error message.

    Raises:
        ConfigError: Standard input is not a terminal, or the output is JSON.
        Exit: The user declines; exit code 1.
    """
    if yes:
        return
    if as_json or not sys.stdin.isatty():
        msg = f"this command asks for confirmation, which needs a terminal and no --json: {alternative}, then add --yes"
        raise ConfigError(msg)
    try:
        agreed = typer.confirm(question)
    except typer.Abort:  # Ctrl-C, or the end of the input
        typer.echo()
        agreed = False
    if not agreed:
        typer.echo("nothing was changed")
        raise typer.Exit(1)
