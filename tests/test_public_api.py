from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import smartpipe
import smartpipe.blocking

ROOT = Path(__file__).parents[1]


def test_the_public_names_are_sorted_exist_and_are_few() -> None:
    assert smartpipe.__all__ == sorted(smartpipe.__all__)
    assert all(getattr(smartpipe, name) is not None for name in smartpipe.__all__)
    assert len(smartpipe.__all__) <= 31


def test_the_reference_documents_exactly_the_public_names() -> None:
    text = (ROOT / "docs" / "reference.md").read_text()
    documented = set(re.findall(r"^### `([A-Za-z_]+)`", text, re.MULTILINE))

    assert documented == set(smartpipe.__all__) - {"__version__"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Publsher'"):
        _ = smartpipe.Publsher


def test_every_public_class_and_method_has_a_docstring() -> None:
    missing = []
    for name in smartpipe.__all__:
        thing = getattr(smartpipe, name)
        if isinstance(thing, type):
            members = [(name, thing), *((f"{name}.{key}", value) for key, value in vars(thing).items())]
            missing += [
                label
                for label, member in members
                if not label.rpartition(".")[2].startswith("_") and callable(member) and not member.__doc__
            ]
    assert missing == []


@pytest.mark.parametrize("statement", ["import smartpipe", "from smartpipe import *"])
def test_importing_smartpipe_pulls_in_no_aws_library(statement: str) -> None:
    code = f"{statement}\nimport sys\nprint([m for m in ('botocore', 'boto3', 'aiobotocore') if m in sys.modules])"

    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert result.stdout.strip() == "[]"


def test_the_version_is_the_packages() -> None:
    from importlib.metadata import version

    assert smartpipe.__version__ == version("smartpipe")


def test_the_licence_is_in_the_metadata_and_in_its_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert (project["license"], project["license-files"]) == ("Apache-2.0", ["LICENSE"])
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text()
    assert "Apache License 2.0" in (ROOT / "README.md").read_text()


def test_the_lock_file_pins_every_development_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    requirements = [
        *project["dependencies"],
        *(one for name in extras if name not in ("fuzz", "mutants") for one in extras[name]),
    ]
    wanted = {re.split(r"[\[><=;]", one)[0].strip().lower() for one in requirements} - {"smartpipe"}

    pinned = set(re.findall(r"^([a-z0-9._-]+)==", (ROOT / "requirements-dev.txt").read_text(), re.MULTILINE))

    assert wanted - pinned == set(), "run make lock"


def test_the_pytest_plugin_imports_nothing_of_smartpipe_but_itself() -> None:
    code = (
        "import sys\nimport smartpipe.testing.plugin\n"
        "print(sorted(m for m in sys.modules if m.startswith(('smartpipe.', 'pydantic', 'aiohttp'))))"
    )

    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert result.stdout.strip() == "['smartpipe.testing', 'smartpipe.testing.plugin', 'smartpipe.version']"
