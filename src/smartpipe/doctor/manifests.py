"""Reads manifests: Dockerfiles, and files with YAML or JSON documents. A broken document does not hide the others."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from smartpipe.ci_formats import Place
from smartpipe.doctor.findings import Finding
from smartpipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SEPARATOR = re.compile(r"^(?:---|\.\.\.)(?=\s|$)", re.MULTILINE)
MAX_BITS = 64
MAX_VALUES = 1_000_000
"""A document has fewer values, unless its aliases multiply them, as in the attack "billion laughs"."""


class Document(NamedTuple):
    """A parsed document, and its first line."""

    place: Place
    value: Any


def read_text(path: Path) -> str | Finding:
    """Return the text of a file, or a finding if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"it is not UTF-8 text ({error.reason} at byte {error.start})"
    except IsADirectoryError:
        return _report_unreadable(
            Place(name_file(path), 1), "it is a directory", "name the files in it, each with --manifest"
        )
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
    return _report_unreadable(Place(name_file(path), 1), reason, "name a file that exists and that you may read")


def name_file(path: Path) -> str:
    """Return the path, relative to the working directory if it is below it."""
    here = Path.cwd()
    return (path.relative_to(here) if path.is_relative_to(here) else path).as_posix()


def read_documents(text: str, file: str) -> Iterator[Document | Finding]:
    """Yield each document of a file, and a finding for each that cannot be parsed.

    Raises:
        ConfigError: The file is YAML, and PyYAML is not installed.
    """
    if text.lstrip().startswith(("{", "[")):
        found = _parse_json(text, Place(file, 1))
        if isinstance(found, Document) or file.lower().endswith(".json"):
            yield found
            return  # otherwise it may be YAML in flow style, or a template
    for start, end in _split_documents(text):
        part = text[start:end]
        blank = len(part) - len(part.lstrip())
        found = _parse_yaml(part, Place(file, text.count("\n", 0, start + blank) + 1), text.count("\n", 0, start))
        if isinstance(found, Finding) or found.value is not None:
            yield found


def _split_documents(text: str) -> Iterator[tuple[int, int]]:
    """Yield the start and the end of each document. Directives such as ``%YAML 1.2`` belong to the next one."""
    start = 0
    for separator in _SEPARATOR.finditer(text):
        rows = text[start : separator.start()].splitlines()
        if separator[0] == "---" and any(rows) and all(not row or row[0] in "%#" for row in rows):
            continue
        yield start, separator.start()
        start = separator.end()
    yield start, len(text)


def _parse_json(text: str, place: Place) -> Document | Finding:
    try:
        return Document(place, json.loads(text))
    except json.JSONDecodeError as error:
        return _report_unreadable(Place(place.file, error.lineno), f"it is not JSON: {error.msg}", _advise(text))
    except (ValueError, RecursionError) as error:
        return _report_unreadable(place, f"it is not JSON: {error}", _advise(text))


def _parse_yaml(text: str, place: Place, lines_before: int) -> Document | Finding:
    try:
        import yaml
    except ModuleNotFoundError:
        raise ConfigError(f"reading {place.file} needs PyYAML: pip install 'smartpipe[doctor]'") from None
    try:
        loader = _make_loader()(text)
        node = loader.get_single_node()
        if _has_too_many_values(node):
            return _report_unreadable(
                place, f"it has more than {MAX_VALUES:,} values, or an alias inside of its own anchor", "remove aliases"
            )
        return Document(place, None if node is None else loader.construct_document(node))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = lines_before + mark.line + 1 if mark else place.line
        return _report_unreadable(Place(place.file, line), f"it is not YAML: {error.problem}", _advise(text))
    except (KeyError, AttributeError):  # PyYAML raises them for tags such as !!bool and !!timestamp
        return _report_unreadable(place, "it is not YAML: a value does not fit its tag", _advise(text))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return _report_unreadable(place, f"it is not YAML: {error}", _advise(text))


def _has_too_many_values(node: Any) -> bool:
    """Return whether a document has too many values after each alias is replaced by the values of its anchor."""
    import yaml

    rest, number = [node], 0
    while rest and number + len(rest) <= MAX_VALUES:
        one = rest.pop()
        number += 1
        if isinstance(one, yaml.MappingNode):
            rest += [part for pair in one.value for part in pair]
        elif isinstance(one, yaml.SequenceNode):
            rest += one.value
    return bool(rest)


def _make_loader() -> Any:
    """Return a safe loader that reads the short functions of CloudFormation, such as ``!Ref``, as tables."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc] # yaml has no types
        """SafeLoader with further tags."""

    def construct(loader: Any, suffix: str, node: Any) -> Any:
        if isinstance(node, yaml.ScalarNode):
            value: Any = loader.construct_scalar(node)
        elif isinstance(node, yaml.SequenceNode):
            value = loader.construct_sequence(node, deep=True)
        else:
            value = loader.construct_mapping(node, deep=True)
        if suffix == "GetAtt" and isinstance(value, str):
            value = value.split(".", 1)
        return {suffix if suffix in {"Ref", "Condition"} else f"Fn::{suffix}": value}

    def construct_integer(loader: Any, node: Any) -> float:
        number: int = loader.construct_yaml_int(node)
        return number if number.bit_length() <= MAX_BITS else math.inf  # Python does not print each large number

    Loader.add_multi_constructor("!", construct)
    Loader.add_constructor("tag:yaml.org,2002:int", construct_integer)
    return Loader


def _advise(text: str) -> str:
    return "render the template first, as with helm template" if "{{" in text else "correct the syntax"


def _report_unreadable(place: Place, reason: str, remedy: str) -> Finding:
    return Finding(code="SP200", resource=place.file, message=f"cannot read it: {reason}", remedy=remedy, place=place)
