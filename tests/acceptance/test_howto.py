"""The how-to pages: their examples are the files in examples/howto, and print what the pages say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "howto").glob("*.md"))
EXAMPLES = sorted((ROOT / "examples" / "howto").glob("*.py"))


def example_of(page: Path) -> Path:
    path: str
    [path] = re.findall(r"`(?:python|pytest) (examples/howto/\w+\.py)`", page.read_text())
    return ROOT / path


def block(page: Path, language: str) -> str:
    found: str = re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)[0]
    return found


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "SMARTPIPE_"))}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment, timeout=50)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_shows_its_example_as_it_is(page: Path) -> None:
    assert block(page, "python") == example_of(page).read_text()


def test_every_example_has_its_page() -> None:
    assert sorted(example_of(page) for page in PAGES) == EXAMPLES


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "testing"], ids=lambda page: page.stem)
def test_an_example_prints_what_its_page_says(page: Path) -> None:
    result = run(sys.executable, str(example_of(page)))

    assert result.returncode == 0, result.stderr
    assert result.stdout == block(page, "text")


def test_the_example_of_tests_passes() -> None:
    example = example_of(ROOT / "docs" / "howto" / "testing.md")
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        "asyncio_mode=auto",
        "--rootdir",
        str(example.parent),
        "-c",
        "/dev/null",
    ]

    result = run(sys.executable, "-m", "pytest", *options, str(example))

    assert result.returncode == 0, result.stdout
    assert "4 passed" in result.stdout
