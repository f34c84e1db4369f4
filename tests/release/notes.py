"""The version and its section of the changelog. Pure."""

from __future__ import annotations

import re

_HEADING = re.compile(r"^## \[?(?P<version>[^\]\s]+)\]?(?: - (?P<date>\S+))?\s*$", re.MULTILINE)
_VERSION = re.compile(r"\d+\.\d+\.\d+((a|b|rc)\d+)?")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


def find_notes(changelog: str, version: str) -> str:
    """Return the section of a version, without its heading.

    Raises:
        ValueError: It is missing, is empty, or has no date, or the version is not one that a release may have.
    """
    if not _VERSION.fullmatch(version):
        raise ValueError(
            f"version {version!r} in src/smartpipe/version.py is not MAJOR.MINOR.PATCH, as in 1.4.0 or 1.4.0rc1"
        )
    headings = list(_HEADING.finditer(changelog))
    for number, heading in enumerate(headings):
        if heading["version"] != version:
            continue
        if heading["date"] is None or not _DATE.fullmatch(heading["date"]):
            raise ValueError(f"CHANGELOG.md: the section of {version} has no date: write ## {version} - YYYY-MM-DD")
        end = headings[number + 1].start() if number + 1 < len(headings) else len(changelog)
        notes = changelog[heading.end() : end].strip()
        if not re.search(r"^- ", notes, re.MULTILINE):
            raise ValueError(f"CHANGELOG.md: the section of {version} lists no change")
        return notes + "\n"
    raise ValueError(f"CHANGELOG.md has no section ## {version} - YYYY-MM-DD: rename ## Unreleased to it")
