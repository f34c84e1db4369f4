"""Asking before anything is changed."""

from __future__ import annotations

import sys

import typer

from smartpipe.errors import ConfigError


def ask(question: str, *, yes: bool, as_json: bool, look: str = "look at the plan") -> None:
    """Go on only if somebody wants it.

    Args:
        look: How to see what would be done, where nobody can answer.

    Raises:
        ConfigError: Nobody can answer.
        Exit: The answer is no; with code 1.
    """
    if yes:
        return
    if as_json or not sys.stdin.isatty():
        msg = f"it asks before it changes anything, and nobody can answer here: {look}, then add --yes"
        raise ConfigError(msg)
    try:
        agreed = typer.confirm(question)
    except typer.Abort:  # Ctrl-C, or the end of the input
        typer.echo()
        agreed = False
    if not agreed:
        typer.echo("nothing was changed")
        raise typer.Exit(1)
