"""Findings as text for people, JSON for programs, annotations for GitHub, and SARIF for code scanning. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from smartpipe.ci_formats import Annotation, Place, count, describe_rule, format_sarif
from smartpipe.contracts.findings import RULES
from smartpipe.escaping import escape_json, escape_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from smartpipe.contracts.findings import Finding

MAX_EXAMPLE_CHARACTERS = 400


class Report(NamedTuple):
    """The result of a check.

    Args:
        compared: The numbers of events, and of versions that they were compared with.
        notes: Sentences about the check itself.
        places: Of the classes, by type and version.
    """

    findings: Sequence[Finding]
    compared: tuple[int, int]
    notes: Sequence[str]
    places: Mapping[tuple[str, str], Place]

    @property
    def fails(self) -> bool:
        """Whether a finding is an error that nobody has accepted."""
        return any(finding.fails for finding in self.findings)

    def find_place(self, finding: Finding) -> Place | None:
        """Return the place of a finding's class or, if its version is not in code, of another class of its type."""
        others = (place for (type_, _), place in self.places.items() if type_ == finding.type)
        return self.places.get((finding.type, finding.version)) or next(others, None)


def render_text(report: Report) -> str:
    """Return the report for a terminal."""
    lines: list[str] = []
    shown = None
    for finding in report.findings:
        event = f"{finding.type} {finding.version}"
        if event != shown:
            place = report.find_place(finding)
            lines += [*([""] if shown else []), f"{event}  ({place.file}:{place.line})" if place else event]
            shown = event
        lines += _render_finding(finding)
    end = [""] if lines else []
    return _join([*lines, *end, *report.notes, summarize_report(report)])


def summarize_report(report: Report) -> str:
    """Return the last line of the report."""
    events, versions = report.compared
    accepted = sum(finding.accepted is not None for finding in report.findings)
    errors = sum(finding.fails for finding in report.findings)
    warnings = len(report.findings) - errors - accepted
    counts = f"{count(errors, 'error')}, {count(warnings, 'warning')}"
    more = f", {accepted} accepted" if accepted else ""
    return f"Compared {count(events, 'event')} with {count(versions, 'version')}: {counts}{more}."


def render_json_report(report: Report) -> str:
    """Return the report as one JSON object."""
    document = json.dumps(
        {
            "compared": dict(zip(("events", "versions"), report.compared, strict=True)),
            "notes": list(report.notes),
            "findings": [_to_dict(finding, report.find_place(finding)) for finding in report.findings],
        },
        ensure_ascii=False,
    )
    return escape_json(document)


def render_github(report: Report) -> str:
    """Return a workflow command for each finding, and the last line of the report."""
    lines = []
    for finding in report.findings:
        level = "error" if finding.fails else "warning" if finding.accepted is None else "notice"
        place = report.find_place(finding)
        text = "\n".join([finding.message, *(f"{label}: {value}" for label, value in _details(finding))])
        lines.append(str(Annotation(level, f"{finding.code} {finding.type}", text, place)))
    return _join([*lines, *report.notes, summarize_report(report)])


def render_sarif(report: Report, version: str) -> str:
    """Return the report in SARIF 2.1.0. *version* is that of smartpipe."""
    rules = [describe_rule(code, rule.title, rule.remedy, rule.severity) for code, rule in RULES.items()]
    results = [_to_sarif(finding, report) for finding in report.findings]
    return escape_json(format_sarif("smartpipe schema check", version, rules, results))


def _join(lines: Sequence[str]) -> str:
    """Return the lines as text. A text of a schema file cannot begin a line, and so no command of GitHub either."""
    return "".join(f"{escape_text(line)}\n" for line in lines)


def _render_finding(finding: Finding) -> Iterator[str]:
    severity = "accepted" if finding.accepted else finding.rule.severity
    yield f"  {finding.code}  {severity}: {finding.rule.title}"
    yield f"         {finding.message}"
    for label, value in _details(finding):
        yield f"         {label}: {value}"


def _details(finding: Finding) -> Iterator[tuple[str, str]]:
    if len(finding.against) > 1:
        yield "against", ", ".join(finding.against)
    for affected in finding.affected:
        yield "affects", affected
    example = finding.example
    if example is not None:
        data = json.dumps(example.data, ensure_ascii=False)
        short = data if len(data) <= MAX_EXAMPLE_CHARACTERS else f"{data[:MAX_EXAMPLE_CHARACTERS]}…"
        yield "example", f"{short} is refused: {example.reason.removeprefix(': ')}"
        if example.proof == "schema":
            yield "note", "the class itself may read this message; other languages go by the schema"
    if finding.accepted:
        yield "accepted", f"on {finding.accepted[1].isoformat()}: {finding.accepted[0]}"
    else:
        yield "remedy", finding.rule.remedy


def _to_dict(finding: Finding, place: Place | None) -> dict[str, Any]:
    example, accepted = finding.example, finding.accepted
    return {
        "code": finding.code,
        "severity": finding.rule.severity,
        "title": finding.rule.title,
        "type": finding.type,
        "version": finding.version,
        "path": finding.path,
        "against": finding.against,
        "directions": sorted(finding.directions),
        "message": finding.message,
        "remedy": finding.rule.remedy,
        "producers": list(finding.parties.producers),
        "consumers": list(finding.parties.consumers),
        "example": example and example._asdict(),
        "accepted": accepted and {"reason": accepted[0], "date": accepted[1].isoformat()},
        "file": place and place.file,
        "line": place and place.line,
    }


def _to_sarif(finding: Finding, report: Report) -> dict[str, Any]:
    place = report.find_place(finding)
    text = "\n".join([finding.message, *(f"{label}: {value}" for label, value in _details(finding))])
    found: dict[str, Any] = {
        "ruleId": finding.code,
        "level": finding.rule.severity,
        "message": {"text": text},
        "partialFingerprints": {"finding/v1": f"{finding.code}/{finding.type}/{finding.path}"},
    }
    if place is not None:
        found["locations"] = [place.as_sarif()]
    if finding.accepted is not None:
        found["suppressions"] = [{"kind": "external", "justification": finding.accepted[0]}]
    return found
