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
        command, capture_output=True, text=True, check=False, cwd=ROOT, env={**environment, **more}, timeout=170
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_shows_its_examples_as_they_are(page: Path) -> None:
    examples = [example.read_text() for example in examples_of(page)]

    assert examples
    assert blocks(page, "python")[: len(examples)] == examples


def test_every_example_has_its_page() -> None:
    assert sorted(example for page in PAGES for example in examples_of(page)) == EXAMPLES


def is_test(example: Path) -> bool:
    return example.stem.startswith("test_")


OUTPUTS = [
    pytest.param(example, output, id=example.stem)
    for page in PAGES
    for example, output in zip(
        [example for example in examples_of(page) if not is_test(example)], blocks(page, "text"), strict=False
    )
]

VARYING = [
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+\+00:00", "(time)"),
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "(id)"),
    (r"\b[0-9a-f]{32}\b", "(trace id)"),
    (r"\b[0-9a-f]{16}\b", "(span id)"),
    (r"143\.[89] kB", "(size of a compressed body)"),
]
"""The parts of an output that differ in each run: the times and ids of log lines, and how well ids are compressed."""


def without_varying(output: str) -> str:
    for pattern, name in VARYING:
        output = re.sub(pattern, name, output)
    return output


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("example", "output"), OUTPUTS)
def test_an_example_prints_what_its_page_says(example: Path, output: str, request: pytest.FixtureRequest) -> None:
    if "sentry_sdk" in example.read_text():
        pytest.importorskip("sentry_sdk")
    environment = {
        name: request.getfixturevalue("database")
        for name in ("SMARTPIPE_IDEMPOTENCY_URL", "SMARTPIPE_OUTBOX_URL")
        if name in example.read_text()
    }

    result = run(sys.executable, str(example), **environment)

    assert result.returncode == 0, result.stderr
    assert without_varying(result.stdout) == without_varying(output)


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[str]:
    """An empty database with smartpipe's tables."""
    with postgres_server.database() as url:
        asyncio.run(migrate(url))
        yield url


TESTS = [pytest.param(example, id=example.stem) for example in EXAMPLES if is_test(example)]


@pytest.mark.parametrize("example", TESTS)
def test_an_example_of_tests_passes(example: Path) -> None:
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
    count = len(re.findall(r"^async def test_", example.read_text(), re.MULTILINE))
    assert f"{count} passed" in result.stdout
