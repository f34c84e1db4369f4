"""The files of example messages, the golden messages: ``<type>/<version>.fixtures.json`` in a schema directory.

A file has a JSON array. Each item has a ``name``, which is unique in the file, and a ``message``: the body of an SQS
message, as an object.
"""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003 - Pydantic reads the annotations of Fixture
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from smartpipe.contracts.files import CONTRACT, FIXTURES
from smartpipe.errors import ConfigError


class Fixture(BaseModel):
    """An example message."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    message: dict[str, Any]

    @property
    def type(self) -> str:
        """The type of its event."""
        return str(self.message.get("type"))

    @property
    def version(self) -> str:
        """The version of its event."""
        return str(self.message.get("dataversion", "1.0"))

    @property
    def major(self) -> int:
        """The major version of its event; -1 if it has none."""
        major = self.version.partition(".")[0]
        return int(major) if major.isdecimal() else -1


_FILE = TypeAdapter(list[Fixture])


def read_fixtures(directory: Path) -> dict[Path, list[Fixture]]:
    """Return the messages of each file below a schema directory, except those of retired versions.

    Raises:
        ConfigError: There is no such directory, or a file is wrong. Each error has a sentence.
    """
    if not directory.is_dir():
        raise ConfigError(f"schema directory {str(directory)!r} does not exist; run `smartpipe schema fixtures`")
    found: dict[Path, list[Fixture]] = {}
    errors: list[str] = []
    for path in sorted(directory.glob(f"*/*{FIXTURES}")):
        try:
            if not _is_retired(path):
                found[path] = read_fixture_file(path)
        except ConfigError as error:
            errors += error.problems
    if errors:
        raise ConfigError(errors)
    return found


def find_retired(directory: Path) -> set[tuple[str, int]]:
    """Return the types and major versions in a schema directory of which every version is retired.

    Raises:
        ConfigError: A file is wrong.
    """
    found: dict[tuple[str, int], bool] = {}
    for path in sorted(directory.glob(f"*/*{CONTRACT}")):
        value = _read_contract(path)
        type_, major = str(value.get("type")), str(value.get("version")).partition(".")[0]
        if major.isdecimal():
            key = (type_, int(major))
            found[key] = found.get(key, True) and value.get("retired") is True
    return {key for key, retired in found.items() if retired}


def read_fixture_file(path: Path) -> list[Fixture]:
    """Return the messages of one file.

    Raises:
        ConfigError: The file is wrong.
    """
    try:
        return _FILE.validate_json(path.read_text(encoding="utf-8", errors="replace"))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigError(f"{path}: {where}: {first['msg']}; run `smartpipe schema fixtures` to write it") from None


def _is_retired(path: Path) -> bool:
    return _read_contract(path.with_name(path.name.removesuffix(FIXTURES) + CONTRACT)).get("retired") is True


def _read_contract(path: Path) -> dict[str, Any]:
    """Return the content of a contract file; an empty dict if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:  # other teams may pass on the messages alone
        return {}
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: the file is not JSON: {error}") from None
    return value if isinstance(value, dict) else {}


def render_fixtures(fixtures: list[Fixture]) -> str:
    """Return the text of a file. The fields of a message keep their order."""
    return json.dumps(_FILE.dump_python(fixtures), indent=2, ensure_ascii=False) + "\n"
