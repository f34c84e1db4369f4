"""Judges the known vulnerabilities that pip-audit finds in the dependencies.

pip-audit exits with 0 if it could not look up a package. A release must not call that clean.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from datetime import date
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


class Audit(NamedTuple):
    """The verdict over all packages.

    Args:
        audited: The number of packages that were looked up.
        vulnerable: A sentence for each vulnerability that is not accepted, and for each acceptance that has expired.
        not_audited: The packages that were not looked up.
    """

    audited: int
    vulnerable: list[str]
    not_audited: list[str]


def audit(site_packages: Path, accepted: Path, today: date) -> Audit:
    """Run pip-audit over the packages in a directory.

    Its variables, such as ``PIP_AUDIT_VULNERABILITY_SERVICE``, apply.

    Raises:
        ValueError: pip-audit failed, or the file of accepted vulnerabilities is wrong.
    """
    done = subprocess.run(
        [sys.executable, "-m", "pip_audit", "--path", site_packages, "--format", "json", "--progress-spinner", "off"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    try:
        report = json.loads(done.stdout)
    except json.JSONDecodeError:
        raise ValueError(f"pip-audit failed: {done.stderr.strip()[-500:]}") from None
    return judge(report, read_accepted(accepted.read_text(), str(accepted.name)), today)


def read_accepted(text: str, name: str) -> dict[str, tuple[str, date]]:
    """Return the reason and the last day of each accepted vulnerability, by its id.

    Raises:
        ValueError: An entry has no id, no reason or no date.
    """
    found = {}
    for entry in tomllib.loads(text).get("vulnerability", []):
        identifier, reason, until = (entry.get(key) for key in ("id", "reason", "until"))
        if not (isinstance(identifier, str) and isinstance(reason, str) and reason and type(until) is date):
            raise ValueError(f"{name}: {entry} needs id, reason and until, as in until = 2027-06-30")
        found[identifier] = (reason, until)
    return found


def judge(report: Mapping[str, Any], accepted: Mapping[str, tuple[str, date]], today: date) -> Audit:
    """Judge a report of pip-audit in JSON. smartpipe itself need not be known."""
    rows = [one for one in report["dependencies"] if one["name"] != "smartpipe"]
    return Audit(
        sum("skip_reason" not in one for one in rows),
        [sentence for one in rows for sentence in _judge_package(one, accepted, today)],
        [f"{one['name']}: {one['skip_reason']}" for one in rows if "skip_reason" in one],
    )


def _judge_package(row: Mapping[str, Any], accepted: Mapping[str, tuple[str, date]], today: date) -> Iterator[str]:
    for vulnerability in row.get("vulns", []):
        names = [vulnerability["id"], *vulnerability.get("aliases", [])]
        entry = next((accepted[name] for name in names if name in accepted), None)
        fixed = ", ".join(vulnerability.get("fix_versions", [])) or "none"
        sentence = f"{row['name']} {row['version']} has {' = '.join(names)}; versions with the fix: {fixed}"
        if entry is None:
            yield sentence
        elif entry[1] < today:
            yield f"{sentence}; it was accepted until {entry[1]}: {entry[0]}"
