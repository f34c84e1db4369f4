"""The report of ``smartpipe doctor``: its formats, ignored findings, exit codes, and the page about its codes."""

from __future__ import annotations

import json
import re
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import ConfigError
from smartpipe.ci_formats import Place
from smartpipe.cli.app import app
from smartpipe.doctor.findings import RULES, Finding
from smartpipe.doctor.ignores import Ignore, apply_ignores, read_ignores
from smartpipe.doctor.report import Report, render_github, render_json, render_sarif, render_text, sort_findings

if TYPE_CHECKING:
    from collections.abc import Sequence

TODAY = date(2026, 11, 27)
PAGE = Path(__file__).parents[2] / "docs" / "doctor.md"


def make_finding(code: str = "SP101", resource: str = "handler pay", **options: Any) -> Finding:
    return Finding(**{"code": code, "resource": resource, "message": "it is slow", "remedy": "be fast"} | options)


def test_the_text_has_the_message_the_remedy_the_page_and_the_facts_that_were_not_seen() -> None:
    finding = make_finding(place=Place("Dockerfile", 3))

    assert render_text(Report([finding], ["the weather"], 2, 1)) == (
        "SP101  warning: handler pay  (Dockerfile:3)\n"
        "       it is slow\n"
        "       remedy: be fast\n"
        "       page: docs/doctor.md#sp101\n"
        "\n"
        "not seen: the weather\n"
        "Examined 2 services and 1 manifest: 0 errors, 1 warning, 0 notes.\n"
    )


def test_json_has_every_field_of_a_finding() -> None:
    finding = make_finding(figures={"timeout_seconds": 900}, place=Place("a.yaml", 3))

    document = json.loads(render_json(Report([finding], ["the weather"], 1, 0)))

    assert document["not_seen"] == ["the weather"]
    assert document["findings"] == [
        {
            "code": "SP101",
            "severity": "warning",
            "title": RULES["SP101"].title,
            "resource": "handler pay",
            "message": "it is slow",
            "figures": {"timeout_seconds": 900},
            "remedy": "be fast",
            "page": "docs/doctor.md#sp101",
            "file": "a.yaml",
            "line": 3,
            "ignored": None,
        }
    ]


def test_annotations_for_github_name_file_and_line() -> None:
    first, *_ = render_github(Report([make_finding(place=Place("a.yaml", 3))], [], 1, 1)).splitlines()

    assert first.startswith("::warning title=SP101 handler pay,file=a.yaml,line=3::it is slow%0A")


def test_sarif_has_a_rule_for_each_code_and_the_place_of_each_finding() -> None:
    [run] = json.loads(render_sarif(Report([make_finding(place=Place("a.yaml", 3))], [], 1, 1), "1.0"))["runs"]

    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == list(RULES)
    [result] = run["results"]
    assert result["locations"][0]["physicalLocation"]["region"] == {"startLine": 3}
    assert "suppressions" not in result


def test_control_characters_from_names_and_files_are_escaped() -> None:
    report = Report([make_finding(resource="a\x1b[2J\nb")], [], 1, 0)

    assert "\x1b" not in render_text(report) + render_json(report)


def test_errors_come_first_and_ignored_findings_last() -> None:
    findings = [
        make_finding("SP107"),
        make_finding("SP100", ignored="known"),
        make_finding("SP101"),
        make_finding("SP102"),
    ]

    assert [one.code for one in sort_findings([*findings, *findings])] == ["SP102", "SP101", "SP107", "SP100"]


def test_a_finding_fails_the_command_from_its_threshold_on() -> None:
    warning, note = (Report([make_finding(code)], [], 1, 0) for code in ("SP101", "SP107"))

    assert (warning.fails("error"), warning.fails("warning"), note.fails("warning")) == (False, True, False)
    assert not Report([make_finding("SP100", ignored="known")], [], 1, 0).fails("warning")


def ignore(findings: Sequence[Finding], *ignores: Ignore) -> list[tuple[str, str | None]]:
    return [(one.code, one.ignored) for one in apply_ignores(findings, ignores, TODAY)]


def test_an_entry_ignores_the_findings_of_its_code_and_resource() -> None:
    entry = Ignore("SP101", "handler pay", "it resumes", TODAY)

    assert ignore([make_finding(), make_finding(resource="handler b")], entry) == [
        ("SP101", "it resumes"),
        ("SP101", None),
    ]


def test_a_star_in_an_entry_stands_for_any_characters() -> None:
    findings = [make_finding(resource=one) for one in ("queue a", "queue b.fifo", "handler a.queue a")]
    entry = Ignore("SP101", "queue *", "Prometheus alerts us")

    assert [reason for _, reason in ignore(findings, entry)] == ["Prometheus alerts us", "Prometheus alerts us", None]
    assert ignore(findings[:1], Ignore("SP101", "queue .", "no pattern"))[1][0] == "SP002"


def test_a_valid_entry_counts_beside_an_expired_one_for_the_same_finding() -> None:
    expired = Ignore("SP101", "handler *", "long ago", date(2026, 11, 26))
    valid = Ignore("SP101", "handler pay", "it resumes")

    assert ignore([make_finding()], expired, valid) == [("SP101", "it resumes"), ("SP001", None)]


def test_an_expired_entry_ignores_nothing_and_is_a_finding() -> None:
    entry = Ignore("SP101", "handler pay", "it resumes", date(2026, 11, 26))

    assert ignore([make_finding()], entry) == [("SP101", None), ("SP001", None)]


def test_an_entry_that_ignores_nothing_is_a_note() -> None:
    assert ignore([], Ignore("SP101", "handler pay", "it resumes")) == [("SP002", None)]


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        ({"code": "SP101", "resource": "a"}, "reason is missing"),
        ({"code": "SP101", "resource": "a", "reason": " "}, "reason is missing"),
        ({"code": "SP999", "resource": "a", "reason": "b"}, "'SP999' does not exist"),
        ({"code": "SP101", "resource": "a", "reason": "b", "until": "soon"}, "until='soon' is not a day"),
        ({"code": "SP101", "resource": "a", "reason": "b", "until": 5}, "until=5 is not a day"),
        ({"code": "SP101", "resource": "a", "reason": "b", "untill": "2027-01-01"}, "'untill' is unknown"),
        ("SP101", "is not a table"),
    ],
)
def test_a_wrong_entry_is_an_error_with_its_place(entry: Any, error: str) -> None:
    good = {"code": "SP101", "resource": "a", "reason": "b", "until": "2027-01-01"}
    with pytest.raises(ConfigError, match=f"entry 2: .*{re.escape(error)}"):
        read_ignores({"tool": {"smartpipe": {"doctor": {"ignore": [good, entry]}}}})


MODULE = """
from smartpipe import Event, Service, Topic

class Paid(Event, topic=Topic("paid"), type="doctor.paid", version="1.0"):
    number: int

service = Service("shop")

@service.subscribe(Paid, timeout_seconds=900)
async def pay(event: Paid) -> None: ...
"""
IGNORED = """
[tool.smartpipe]
services = ["diagnosed_shop:service"]
[[tool.smartpipe.doctor.ignore]]
code = "SP101"
resource = "handler diagnosed_shop.pay"
reason = "it resumes"
until = 2999-12-31
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "diagnosed_shop.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("DRAIN_SECONDS", "IDEMPOTENCY_URL", "CLAIM_CHECK_URL", "COMPRESSION"):
        monkeypatch.delenv(f"SMARTPIPE_{name}", raising=False)
    return tmp_path


def run(*arguments: str) -> int:
    result = app(["doctor", *arguments], standalone_mode=False)
    return result or 0


def test_the_exit_code_follows_from_the_threshold(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("diagnosed_shop:service") == 0
    assert run("diagnosed_shop:service", "--fail-on", "warning") == 1
    assert "SP101  warning: handler diagnosed_shop.pay\n" in capsys.readouterr().out


def test_pyproject_toml_ignores_a_finding(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "pyproject.toml").write_text(IGNORED)

    assert run("--fail-on", "warning") == 0
    assert "ignored: it resumes" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--format", "--fail-on"])
def test_an_unknown_choice_is_an_error(option: str, project: Path) -> None:
    with pytest.raises(ConfigError, match=option):
        run("diagnosed_shop:service", option, "yes")


def test_every_code_has_a_section_on_its_page_and_every_section_a_code() -> None:
    sections = re.findall(r"^### (SP\d{3})$", PAGE.read_text(), re.MULTILINE)

    assert sections == list(RULES)
