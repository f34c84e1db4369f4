"""docs/reference: the generated pages are those that the code yields, and the index of errors is complete."""

from __future__ import annotations

import ast
import inspect
import re
from typing import TYPE_CHECKING

import pytest

import smartpipe
from smartpipe import settings
from tests.reference import DIRECTORY, api, errors, pages

if TYPE_CHECKING:
    from pathlib import Path

REFERENCE = DIRECTORY.parent / "reference.md"
ERRORS = errors.PAGE.read_text()


@pytest.mark.parametrize("name", ["api.md", "commands.md", "settings.md"])
def test_a_generated_page_is_as_the_code_yields_it(name: str) -> None:
    assert (DIRECTORY / name).read_text() == pages()[name], "run `make reference`"


def test_every_parameter_has_a_description() -> None:
    """Describe it in Args of its docstring or, if the sentence above it does, in tests/reference/api.py."""
    rows = [line for line in api.page().splitlines() if line.endswith(f"| {api.UNDESCRIBED} |")]

    assert rows == []


def test_the_index_of_errors_lists_every_message_and_no_other() -> None:
    listed, known = errors.rows().keys(), errors.messages().keys()

    assert len(known) > 300
    assert known - listed == set(), "run `make reference`, and describe these in docs/reference/errors.md"
    assert listed - known == set(), "nothing says these any more: run `make reference`"


def test_the_index_of_errors_names_a_cause_and_a_remedy_for_each_message() -> None:
    assert [row.message for row in errors.rows().values() if not row.cause.strip() or not row.remedy.strip()] == []


def test_a_row_is_read_as_it_is_written() -> None:
    lines = set(ERRORS.splitlines())

    assert [row for row in errors.rows().values() if errors.format_row(row) not in lines] == []


def test_make_reference_removes_old_messages_and_adds_new_ones_for_you_to_describe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "errors.md"
    page.write_text("# Errors\n\n## Events\n\n| `is not … said` | Why. | Do. |\n| `is said … still` | Why. | Do. |\n")
    monkeypatch.setattr(errors, "PAGE", page)
    monkeypatch.setattr(errors, "messages", lambda: {"is said … still": {"a.py"}, "run `one | two` now": {"b.py"}})

    assert errors.update() == (1, 1)
    assert errors.update() == (0, 0)
    assert errors.rows() == {
        "is said … still": errors.Row("is said … still", "Why.", "Do."),
        "run `one | two` now": errors.Row("run `one | two` now", "", ""),
    }
    monkeypatch.setattr(errors, "messages", lambda: {text: {"b.py"} for text in [*errors.rows(), "is a second one"]})
    assert errors.update() == (0, 1)
    assert page.read_text().count("## New") == 1
    assert list(errors.rows()) == ["is said … still", "run `one | two` now", "is a second one"]


def test_the_index_of_errors_has_every_code_that_smartpipe_sets() -> None:
    listed = set(re.findall(r"`([A-Z][A-Za-z]+)`", ERRORS))

    assert errors.codes() - listed == set()


def test_the_index_of_errors_has_every_kind_of_a_dead_letter_message() -> None:
    [section] = re.findall(r"## Kinds of dead-letter messages\n(.*?)\n## ", ERRORS, re.DOTALL)
    [row] = re.findall(r"^\| `kind` \| (.*) \|$", REFERENCE.read_text(), re.MULTILINE)

    assert set(re.findall(r"^\| `([a-z-]+)`", section, re.MULTILINE)) == set(re.findall(r"`([a-z-]+)`", row))


def test_the_reference_explains_every_setting() -> None:
    known = {f"{settings.ENV_PREFIX}{name.upper()}" for cls in settings._ALL for name in cls.model_fields}

    assert known - set(re.findall(r"`(SMARTPIPE_[A-Z_]+)`", REFERENCE.read_text())) == set()


def _sections() -> list[tuple[str, str]]:
    found = re.findall(r"^### `(\w+)`\n(.*?)(?=^##)", REFERENCE.read_text(), re.MULTILINE | re.DOTALL)
    return [(name, " ".join(text.split())) for name, text in found]


SIGNATURES = [
    (name, signature) for name, text in _sections() for signature in re.findall(rf"`({name}\([^`]*\))`", text)[:1]
]


@pytest.mark.parametrize(("name", "signature"), SIGNATURES)
def test_a_signature_in_the_reference_has_the_parameters_of_the_class(name: str, signature: str) -> None:
    cls = getattr(smartpipe, name)
    actual = list(inspect.signature(cls).parameters.values())
    spelled = ast.parse(f"def {signature}: ...").body[0]
    assert isinstance(spelled, ast.FunctionDef)
    arguments = spelled.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = [*zip(positional, defaults, strict=True), *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]

    assert [one.arg for one, _ in pairs] == [one.name for one in actual]
    for (one, default), parameter in zip(pairs, actual, strict=True):
        assert (default is None) == (parameter.default is parameter.empty), one.arg
        if default is not None and "FACTORY" not in type(parameter.default).__name__:
            assert ast.literal_eval(default) == parameter.default, one.arg
