"""YAML that other programs read as it was meant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from smartpipe.deploy.yaml import write_documents

if TYPE_CHECKING:
    from collections.abc import Callable

TEXTS = st.text(st.sampled_from("ab \n\t:#-{}[]'\"|>&*!%@`,?=~é\\$09."), max_size=12) | st.text(max_size=8)
VALUES = st.recursive(
    TEXTS | st.booleans() | st.integers(-9, 9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


def read_back(value: Any) -> Any:
    return yaml.safe_load(write_documents(["header"], [{"value": value, "list": [value, [value]]}]))


@given(VALUES)
def test_every_value_is_read_as_it_was_written(value: Any) -> None:
    assert read_back(value) == {"value": value, "list": [value, [value]]}


@pytest.mark.parametrize("text", ["first\n\n  second: $x\n", "first\nsecond", 'a\n\t"b" # c\n'])
def test_a_script_is_a_literal_block_unless_yaml_would_change_it(text: str) -> None:
    written = write_documents([], [{"run": text}])

    assert written.startswith("---\nrun: |") == ("\t" not in text)
    assert yaml.safe_load(written) == {"run": text}


@pytest.mark.parametrize("write", [lambda text: {text: 1}, lambda text: [text], lambda text: {"key": text}])
def test_words_with_single_spaces_need_no_quotes(write: Callable[[str], Any]) -> None:
    assert '"' not in write_documents([], [write("Find mistakes that lose messages")])
    assert '"' in write_documents([], [write("two  spaces")])
    assert '"' in write_documents([], [write("a mark: here")])
