"""Writes the pages of docs/reference that follow from the code. ``make reference`` runs it, and a test compares."""

from __future__ import annotations

from pathlib import Path

DIRECTORY = Path(__file__).parents[2] / "docs" / "reference"


def pages() -> dict[str, str]:
    """Return the text of each generated page, by the name of its file."""
    from tests.reference import api, commands, settings

    return {"api.md": api.page(), "commands.md": commands.page(), "settings.md": settings.page()}
