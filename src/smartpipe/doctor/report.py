"""The report of ``smartpipe doctor`` as text, JSON, annotations for GitHub, and SARIF. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from smartpipe.ci_formats import Annotation, count, describe_rule, format_sarif
from smartpipe.doctor.findings import PAGE, RULES
from smartpipe.escaping import escape_json, escape_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.doctor.findings import Finding, Severity

RANKS: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2}


class Report(NamedTuple):
    """The findings, ordered by severity, and the facts that doctor could not see.

    Args:
        services: The number of services that were examined.
        manifests: The number of files that were examined.
        account: The account and region that were examined, for people; None if none was.
    """

    findings: Sequence[Finding]
    not_seen: Sequence[str]
    services: int
    manifests: int
    account: str | None = None

    def fails(self, threshold: Severity) -> bool:
        """Return whether a finding that is not ignored is at least as bad as *threshold*."""
        return any(RANKS[one.severity] <= RANKS[threshold] for one in self.findings if one.ignored is None)


def sort_findings(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings without duplicates: errors first, ignored ones last, then by code and resource."""
    distinct = {(one.code, one.resource, one.message, one.place): one for one in findings}
    return sorted(
        distinct.values(),
        key=lambda one: (one.ignored is not None, RANKS[one.severity], one.code, one.place or ("", 0), one.resource),
    )


def render_text(report: Report) -> str:
    """Return the report for a terminal."""
    lines: list[str] = []
    for finding in report.findings:
        where = f"  ({finding.place.file}:{finding.place.line})" if finding.place else ""
        kind = "ignored" if finding.ignored is not None else finding.severity
        lines += [
            f"{finding.code}  {kind}: {finding.resource}{where}",
            f"       {finding.message}",
            f"       remedy: {finding.remedy}",
            f"       page: {finding.page}" if finding.ignored is None else f"       ignored: {finding.ignored}",
            "",
        ]
    lines += [f"not seen: {one}" for one in report.not_seen]
    return "".join(f"{escape_text(line)}\n" for line in [*lines, summarize(report)])


def summarize(report: Report) -> str:
    """Return the last line of the report."""
    counted = [one for one in report.findings if one.ignored is None]
    numbers = [count(sum(one.severity == severity for one in counted), severity) for severity in RANKS]
    ignored = len(report.findings) - len(counted)
    more = f", {ignored} ignored" if ignored else ""
    examined = f"{count(report.services, 'service')} and {count(report.manifests, 'manifest')}"
    if report.account:
        examined = f"{count(report.services, 'service')}, {count(report.manifests, 'manifest')} and {report.account}"
    return f"Examined {examined}: {', '.join(numbers)}{more}."


def render_json(report: Report) -> str:
    """Return the report as one JSON object."""
    document = {
        "services": report.services,
        "manifests": report.manifests,
        "account": report.account,
        "not_seen": list(report.not_seen),
        "findings": [_to_dict(one) for one in report.findings],
    }
    return escape_json(json.dumps(document, ensure_ascii=False)) + "\n"


def render_github(report: Report) -> str:
    """Return a workflow command for each finding, and the last line of the report."""
    lines = []
    for one in report.findings:
        level = "notice" if one.ignored is not None or one.severity == "note" else one.severity
        text = f"{one.message}\nremedy: {one.remedy}\npage: {one.page}"
        lines.append(str(Annotation(level, f"{one.code} {one.resource}", text, one.place)))
    facts = (f"not seen: {one}" for one in report.not_seen)
    return "".join(f"{line}\n" for line in map(escape_text, [*lines, *facts, summarize(report)]))


def render_sarif(report: Report, version: str) -> str:
    """Return the report in SARIF 2.1.0. *version* is that of smartpipe."""
    rules = [describe_rule(code, rule.title, f"{PAGE}#{code.lower()}", rule.severity) for code, rule in RULES.items()]
    results = [_to_sarif(one) for one in report.findings]
    return escape_json(format_sarif("smartpipe doctor", version, rules, results)) + "\n"


def _to_dict(finding: Finding) -> dict[str, Any]:
    return {
        "code": finding.code,
        "severity": finding.severity,
        "title": RULES[finding.code].title,
        "resource": finding.resource,
        "message": finding.message,
        "figures": dict(finding.figures),
        "remedy": finding.remedy,
        "page": finding.page,
        "file": finding.place and finding.place.file,
        "line": finding.place and finding.place.line,
        "ignored": finding.ignored,
    }


def _to_sarif(finding: Finding) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": finding.code,
        "level": finding.severity,
        "message": {"text": f"{finding.resource}: {finding.message}\nremedy: {finding.remedy}"},
        "partialFingerprints": {"finding/v1": f"{finding.code}/{finding.resource}"},
    }
    if finding.place is not None:
        result["locations"] = [finding.place.as_sarif()]
    if finding.ignored is not None:
        result["suppressions"] = [{"kind": "external", "justification": finding.ignored}]
    return result
