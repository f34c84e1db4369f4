"""Reports of ``schema check``: texts of schema files, which a pull request can bring, do no harm in them."""

from __future__ import annotations

import json

import pytest

from smartpipe.ci_formats import Place
from smartpipe.contracts.findings import Finding
from smartpipe.contracts.reports import Report, render_github, render_json_report, render_sarif, render_text

HARMFUL = "state\n::error file=x::forged\x1b[2K\u202e"


def report() -> Report:
    found = Finding("SC202", f"order.placed{HARMFUL}", "1.1", HARMFUL, f"the pattern of {HARMFUL} has changed")
    return Report([found], (1, 1), [f"{HARMFUL} has no earlier version."], {})


@pytest.mark.parametrize("render", [render_text, render_github])
def test_a_text_of_a_schema_file_begins_no_line_and_commands_no_terminal(render: object) -> None:
    assert callable(render)
    text: str = render(report())

    assert "\n::error" not in text
    assert not {"\x1b", "\u202e", "\r"} & set(text)


def test_programs_read_the_original_text() -> None:
    found = json.loads(render_json_report(report()))
    sarif = json.loads(render_sarif(report(), "1"))

    assert found["findings"][0]["path"] == HARMFUL
    assert HARMFUL in sarif["runs"][0]["results"][0]["message"]["text"]
    assert not {"\x1b", "\u202e"} & set(render_json_report(report()) + render_sarif(report(), "1"))


def test_a_finding_has_the_place_of_its_version_or_of_another_class_of_its_type() -> None:
    places = {("order.placed", "1.1"): Place("shop.py", 7), ("order.placed", "2.0"): Place("shop.py", 12)}
    findings = [Finding("SC304", type_, version, "", "") for type_, version in (*places, ("order.placed", "1.0"))]
    other = Finding("SC304", "order.sent", "1.0", "", "")

    lines = [
        one["line"]
        for one in json.loads(render_json_report(Report([*findings, other], (2, 2), [], places)))["findings"]
    ]

    assert lines == [7, 12, 7, None]
