"""Exceptions: findings that a person has accepted, with the reason and the date, in a file that git keeps."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from smartpipe.contracts.files import ACCEPTED_FILE, write_text
from smartpipe.contracts.findings import RULES
from smartpipe.contracts.schemas import render_json
from smartpipe.errors import ConfigError
from smartpipe.events import parse_version

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from smartpipe.contracts.findings import Finding


class Accepted(BaseModel):
    """An accepted finding.

    Args:
        path: The field, as findings show it; None for every field of the event.
        versions: The versions of the event whose findings were accepted. In a later version of the same major, the
            finding is accepted too, if it affects only versions before these. Empty, by hand: every version.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    code: str
    type: str
    reason: str
    date: date
    path: str | None = None
    versions: list[Annotated[str, Field(pattern=r"^\d+\.\d+$")]] = []

    def covers(self, finding: Finding) -> bool:
        """Return whether the finding is accepted."""
        if (self.code, self.type) != (finding.code, finding.type) or self.path not in {None, finding.path}:
            return False
        if not self.versions or finding.version in self.versions:
            return True
        accepted, version = map(parse_version, self.versions), parse_version(finding.version)
        last = max((one for one in accepted if one[0] == version[0]), default=(0,))
        return bool(finding.against) and all(parse_version(one) < last for one in finding.against)


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


def check_exception(code: str, reason: str) -> None:
    """Refuse an exception that nobody would understand.

    Raises:
        ConfigError: There is no such code, or the reason is empty.
    """
    if code not in RULES:
        raise ConfigError(f"code {code!r} does not exist; the codes are {', '.join(RULES)}")
    if not reason.strip():
        raise ConfigError("--reason is empty; say why the change is safe, for the people who read it later")


def add_accepted(directory: Path, findings: Sequence[Finding], reason: str, path: str | None) -> Path:
    """Add an exception for *findings* of one code and type to the file, with today's date; return the file's path.

    One that exists for this code, type and *path* is replaced.

    Raises:
        ConfigError: The file is wrong.
    """
    code, type_ = findings[0].code, findings[0].type
    added = Accepted(
        code=code,
        type=type_,
        reason=reason.strip(),
        date=date.today(),  # noqa: DTZ011 - local
        path=path,
        versions=sorted({one.version for one in findings}, key=parse_version),
    )
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
            if one.covers(finding):
                finding.accepted = (one.reason, one.date)
                if one in unused:
                    unused.remove(one)
    return unused
