"""The findings that ``[tool.smartpipe.doctor] ignore`` in pyproject.toml ignores, each with a reason and a last day."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from smartpipe.doctor.findings import RULES, Finding
from smartpipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

EXAMPLE = '{code = "SP101", resource = "handler shop.pay", reason = "it resumes", until = 2027-06-30}'


class Ignore(NamedTuple):
    """One entry. It holds up to and including the day *until*, forever if that is None.

    Args:
        resource: The resource of the finding; ``*`` stands for any characters.
    """

    code: str
    resource: str
    reason: str
    until: date | None = None

    def matches(self, finding: Finding) -> bool:
        """Return whether it is about this finding."""
        pattern = ".*".join(map(re.escape, self.resource.split("*")))
        return self.code == finding.code and re.fullmatch(pattern, finding.resource, re.DOTALL) is not None

    def is_valid(self, today: date) -> bool:
        """Return whether it has not expired."""
        return self.until is None or self.until >= today


def read_ignores(pyproject: dict[str, Any]) -> list[Ignore]:
    """Return the entries of a parsed pyproject.toml.

    Raises:
        ConfigError: With a sentence for each wrong entry.
    """
    tool: Any = pyproject
    for name in ("tool", "smartpipe", "doctor"):
        tool = tool.get(name, {}) if isinstance(tool, dict) else {}
    entries = tool.get("ignore", []) if isinstance(tool, dict) else []
    if not isinstance(entries, list):
        raise ConfigError(f"[tool.smartpipe.doctor] ignore={entries!r} is not a list: write ignore = [{EXAMPLE}]")
    found, errors = [], []
    for place, entry in enumerate(entries, 1):
        if error := _find_error(entry):
            errors.append(f"[tool.smartpipe.doctor] ignore, entry {place}: {error}")
        else:
            until = entry.get("until")
            day = date.fromisoformat(until) if isinstance(until, str) else until
            found.append(Ignore(entry["code"], entry["resource"], entry["reason"], day))
    if errors:
        raise ConfigError(errors)
    return found


def apply_ignores(findings: Iterable[Finding], ignores: Sequence[Ignore], today: date) -> list[Finding]:
    """Return the findings, those with a valid entry marked as ignored, and a finding for each invalid entry."""
    kept: list[Finding] = []
    used: set[Ignore] = set()
    for finding in findings:
        matching = [one for one in ignores if one.matches(finding)]
        used.update(matching)
        valid = next((one for one in matching if one.is_valid(today)), None)
        kept.append(replace(finding, ignored=valid.reason) if valid else finding)
    for one in ignores:
        if one not in used:
            kept.append(_report_unused(one))
        elif one.until is not None and not one.is_valid(today):
            kept.append(_report_expired(one, one.until))
    return kept


def _find_error(entry: Any) -> str | None:
    if not isinstance(entry, dict):
        return f"{entry!r} is not a table: write {EXAMPLE}"
    unknown = sorted(entry.keys() - {"code", "resource", "reason", "until"})
    if unknown:
        return f"{unknown[0]!r} is unknown: use code, resource, reason and until"
    for name in ("code", "resource", "reason"):
        value = entry.get(name)
        if not (isinstance(value, str) and value.strip()):
            return f"{name} is missing or empty: write {EXAMPLE}"
    if entry["code"] not in RULES:
        return f"code {entry['code']!r} does not exist: use a code of the report, such as SP101"
    until = entry.get("until")
    if isinstance(until, str):
        try:
            date.fromisoformat(until)
        except ValueError:
            return f"until={until!r} is not a day: write until = 2027-06-30"
    elif until is not None and (not isinstance(until, date) or isinstance(until, datetime)):
        return f"until={until!s} is not a day: write until = 2027-06-30"
    return None


def _report_expired(one: Ignore, until: date) -> Finding:
    return Finding(
        code="SP001",
        resource=f"ignore {one.code} {one.resource}",
        message=f"{one.code} of {one.resource} was ignored until {until.isoformat()}: {one.reason}",
        remedy="fix the finding, or set a later until in [tool.smartpipe.doctor] of pyproject.toml",
        figures={"until": until.isoformat()},
    )


def _report_unused(one: Ignore) -> Finding:
    return Finding(
        code="SP002",
        resource=f"ignore {one.code} {one.resource}",
        message=f"no finding {one.code} of {one.resource} exists any more, or its services or manifests are not "
        "examined here",
        remedy="remove the entry from [tool.smartpipe.doctor] in pyproject.toml",
    )
