"""Manifests that are unusual, broken or hostile: ``smartpipe doctor`` always makes a report."""

from __future__ import annotations

import copy
import json
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe.ci_formats import Place
from smartpipe.doctor import examine as layer
from smartpipe.doctor.lookup import to_bytes, to_number, to_quantity, to_seconds
from smartpipe.doctor.manifests import Document, read_documents
from smartpipe.doctor.report import Report, render_github, render_json, render_sarif, render_text, sort_findings
from smartpipe.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smartpipe.doctor.findings import Finding

pytest.importorskip("yaml", reason="needs the extra doctor")

MANIFESTS = Path(__file__).parents[1] / "support" / "manifests"
WORKER = "{name: worker, command: [smartpipe, worker]}"
KILLED = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: shop}
spec:
  template:
    spec:
      terminationGracePeriodSeconds: 5
      containers: [{name: worker, command: [smartpipe, worker]}]
"""
LAUGHS = "".join(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 12))
MERGES = "".join(f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 9)}]}}\n" for level in range(1, 12))
WRONG: list[Any] = [
    None, True, 0, -1, 1.5, 1e308, float("nan"), float("-inf"), 10**400, "", "nan", "inf", "9" * 400, "x" * 5_000,
    "{{ x }}", "\ud800\n::error::x", [], [[]], [None], {}, {None: {}}, {"Ref": ["x"]}, {"Fn::GetAtt": [[1]]},
]  # fmt: skip


def diagnose(text: str, name: str = "manifest.yaml") -> Report:
    Path(name).write_text(text, encoding="utf-8")
    return layer.examine([], [Path(name)], (), date(2026, 11, 27))


def find_codes(text: str, name: str = "manifest.yaml") -> list[str]:
    return [one.code for one in diagnose(text, name).findings]


@pytest.fixture(autouse=True)
def _directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        f"%YAML 1.2\n---\n{KILLED}",
        f"# Written by a program.\n%TAG ! tag:example.com,2026:\n---\n{KILLED}",
        f"{KILLED}...\n",
        f"\ufeff{KILLED}".replace("\n", "\r\n"),
        f"{{kind: Pod, apiVersion: v1, spec: {{terminationGracePeriodSeconds: 5, containers: [{WORKER}]}}}}",
    ],
)
def test_each_way_to_write_yaml_is_read(text: str) -> None:
    assert find_codes(text) == ["SP201"]


@pytest.mark.parametrize("separator", ["---\n", "...\n", "...\n---\n", "...\n%YAML 1.2\n---\n"])
def test_documents_are_separated_by_any_marker(separator: str) -> None:
    report = diagnose(f"{KILLED}{separator}{KILLED}")

    lines = [one.place.line for one in report.findings if one.place]
    assert len(lines) == 2
    assert lines[1] >= 9


def test_a_template_of_helm_that_begins_with_an_action_is_to_be_rendered_first() -> None:
    [finding] = diagnose("{{- if .Values.worker }}\nkind: Deployment\n{{- end }}\n").findings

    assert finding.code == "SP200"
    assert "helm template" in finding.remedy


@pytest.mark.parametrize("bomb", [f"a0: &a0 [x]\n{LAUGHS}", f"a0: &a0 {{x: 1}}\n{MERGES}", "a: &a [*a]\n"])
def test_aliases_that_multiply_a_document_are_an_error_and_the_next_document_is_examined(bomb: str) -> None:
    last = bomb.count("\n") - 1
    report = diagnose(f"{bomb}kind: Deployment\napiVersion: v1\nmetadata: {{name: *a{last or ''}}}\n---\n{KILLED}")

    assert [one.code for one in report.findings] == ["SP200", "SP201"]
    assert "1,000,000 values" in report.findings[0].message


@pytest.mark.parametrize("value", ["!!bool foo", "!!timestamp foo", "!!int foo", "!!binary é"])
def test_a_value_that_does_not_fit_its_tag_is_an_error_and_the_next_document_is_examined(value: str) -> None:
    assert find_codes(f"a: {value}\n---\n{KILLED}") == ["SP200", "SP201"]


def test_a_number_that_python_does_not_print_has_no_value() -> None:
    assert find_codes(KILLED.replace("name: shop", f"name: 0x{'f' * 9_000}")) == ["SP201"]


@pytest.mark.parametrize("read", [to_number, to_quantity, to_seconds, to_bytes])
@pytest.mark.parametrize(
    "text", ["nan", "inf", "1e400", "9" * 400, float("nan"), float("inf"), 10**400, "9" * 400 + "s"]
)
def test_numbers_that_are_not_finite_are_not_read(read: Any, text: Any) -> None:
    assert read(text) is None


def test_a_setting_that_is_not_finite_is_not_a_traceback() -> None:
    environment = "env: [{name: SMARTPIPE_PROCESSES, value: inf}, {name: SMARTPIPE_CONCURRENCY, value: nan}]"
    resources = "resources: {limits: {memory: 1Gi, cpu: 500m}}"

    assert find_codes(KILLED.replace("worker]", f"worker], {environment}, {resources}")) == ["SP201"]


def test_facts_that_are_not_seen_cannot_forge_a_command_of_github() -> None:
    name = json.dumps("shop\n::error::forged\ud800")
    report = diagnose(f"services: {{{name}: {{image: shop, environment: {{SMARTPIPE_PREFIX: x}}}}}}")

    assert report.not_seen
    assert "\n::error" not in render_github(report)
    assert render_github(report).encode()


@pytest.mark.parametrize(
    "name", sorted(one.name for one in MANIFESTS.iterdir() if one.name.startswith("good") and "docker" not in one.name)
)
def test_a_report_is_made_whatever_replaces_a_value(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    good = [one.value for one in read_documents((MANIFESTS / name).read_text(), name) if isinstance(one, Document)]
    settings = WorkerSettings()
    documents: list[Any] = []

    def read(_: str, file: str) -> Iterator[Document | Finding]:
        yield from (Document(Place(file, 1), one) for one in documents)

    monkeypatch.setattr(layer, "read_documents", read)
    for place, document in enumerate(good):
        for path in list_paths(document):
            for wrong in WRONG:
                documents[:] = [*good[:place], replace(document, path, wrong), *good[place + 1 :]]
                found = layer.examine_manifests([MANIFESTS / name], settings, {})
                report = Report(sort_findings(found.findings), found.not_seen, 0, 1)
                json.loads(render_json(report), parse_constant=pytest.fail)
                for render in (render_text, render_github, lambda report: render_sarif(report, "1")):
                    render(report).encode()


def list_paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in pairs:
        yield from list_paths(one, (*path, key))


def replace(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    changed = copy.copy(value)
    changed[path[0]] = replace(value[path[0]], path[1:], new)
    return changed
