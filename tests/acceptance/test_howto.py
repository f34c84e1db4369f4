"""The how-to pages: their examples are the files in examples/howto, and print what the pages say."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from smartpipe.idempotency.stores.migrate import migrate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.servers import PostgresServer

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "howto").glob("*.md"))
EXAMPLES = sorted((ROOT / "examples" / "howto").glob("*.py"))


def examples_of(page: Path) -> list[Path]:
    """Return the examples of a page, in its order; each is followed by its code and by what it prints."""
    paths: list[str] = re.findall(r"`(?:python|pytest) (examples/howto/\w+\.py)`", page.read_text())
    return [ROOT / path for path in paths]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def run(*command: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "SMARTPIPE_"))}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env={**environment, **more}, timeout=50
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_shows_its_examples_as_they_are(page: Path) -> None:
    examples = [example.read_text() for example in examples_of(page)]

    assert examples
    assert blocks(page, "python")[: len(examples)] == examples


def test_every_example_has_its_page() -> None:
    assert sorted(example for page in PAGES for example in examples_of(page)) == EXAMPLES


OUTPUTS = [
    pytest.param(example, output, id=example.stem)
    for page in PAGES
    if page.stem != "testing"
    for example, output in zip(examples_of(page), blocks(page, "text"), strict=False)
]


@pytest.mark.parametrize(("example", "output"), OUTPUTS)
def test_an_example_prints_what_its_page_says(example: Path, output: str, request: pytest.FixtureRequest) -> None:
    environment = {}
    if "SMARTPIPE_IDEMPOTENCY_URL" in example.read_text():
        environment["SMARTPIPE_IDEMPOTENCY_URL"] = request.getfixturevalue("database")

    result = run(sys.executable, str(example), **environment)

    assert result.returncode == 0, result.stderr
    assert result.stdout == output


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[str]:
    """An empty database with smartpipe's tables."""
    with postgres_server.database() as url:
        asyncio.run(migrate(url))
        yield url


def test_the_example_of_tests_passes() -> None:
    [example] = examples_of(ROOT / "docs" / "howto" / "testing.md")
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
