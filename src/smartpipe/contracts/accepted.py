"""Exceptions: findings that a person has accepted, with the reason and the date, in a file that git keeps."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from smartpipe.contracts.files import ACCEPTED_FILE, write_text
from smartpipe.contracts.findings import RULES
from smartpipe.contracts.schemas import render_json
from smartpipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from smartpipe.contracts.findings import Finding


class Accepted(BaseModel):
    """An accepted finding.

    Args:
        path: The field, as findings show it; None for every field of the event.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    code: str
    type: str
    reason: str
    date: date
    path: str | None = None


_FILE = TypeAdapter(list[Accepted])


def read_accepted(directory: Path) -> list[Accepted]:
    """Return the exceptions in the file of a schema directory; none if there is no file.

    Raises:
        ConfigError: The file is wrong.
    """
    path = directory / ACCEPTED_FILE
    if not path.exists():
        return []
    try:
        return _FILE.validate_json(path.read_text(encoding="utf-8", errors="replace"))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(f"{path}: {'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}") from None


def add_accepted(directory: Path, code: str, type_: str, reason: str, path: str | None) -> Path:
    """Add an exception to the file, with today's date, and return the path of the file. One that exists is replaced.

    Raises:
        ConfigError: There is no such code, the reason is empty, or the file is wrong.
    """
    if code not in RULES:
        raise ConfigError(f"code {code!r} does not exist; the codes are {', '.join(RULES)}")
    if not reason.strip():
        raise ConfigError("--reason is empty; say why the change is safe, for the people who read it later")
    added = Accepted(code=code, type=type_, reason=reason.strip(), date=date.today(), path=path)  # noqa: DTZ011 - local
    others = [one for one in read_accepted(directory) if (one.code, one.type, one.path) != (code, type_, path)]
    entries = sorted([*others, added], key=lambda one: (one.type, one.code, one.path or ""))
    file = directory / ACCEPTED_FILE
    write_text(file, render_json(_FILE.dump_python(entries, mode="json", exclude_none=True)))
    return file


def apply_accepted(findings: Iterable[Finding], accepted: Iterable[Accepted]) -> list[Accepted]:
    """Mark the findings that are accepted, and return the exceptions that no finding needs."""
    unused = list(accepted)
    known = list(unused)
    for finding in findings:
        for one in known:
            if one.code == finding.code and one.type == finding.type and one.path in {None, finding.path}:
                finding.accepted = (one.reason, one.date)
                if one in unused:
                    unused.remove(one)
    return unused
