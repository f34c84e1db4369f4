from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from smartpipe import ConfigError
from smartpipe.worker.supervisor import SourceWatcher
from smartpipe.worker.supervisor.supervisor import format_paths
from tests.support.waiting import DEADLINE_SECONDS

if TYPE_CHECKING:
    from pathlib import Path


async def test_changed_sources_are_reported_and_other_files_are_not(tmp_path: Path) -> None:
    for name in (".venv", "app", "__pycache__"):
        (tmp_path / name).mkdir()
    found = set[str]()

    async with SourceWatcher(tmp_path) as watcher:
        for name in (".venv/lib.py", "__pycache__/a.py", "notes.txt", "app/handlers.py", "pyproject.toml"):
            (tmp_path / name).write_text("x")
        async with asyncio.timeout(DEADLINE_SECONDS):
            while found != {"app/handlers.py", "pyproject.toml"}:
                await watcher.changed.wait()
                found |= set(watcher.take_paths())
                assert not watcher.changed.is_set()


async def test_a_further_file_is_reported_only_if_it_is_named(tmp_path: Path) -> None:
    found = set[str]()

    async with SourceWatcher(tmp_path, also=(".env",)) as watcher:
        for name in (".env.old", ".env", "app.py"):
            (tmp_path / name).write_text("x")
        async with asyncio.timeout(DEADLINE_SECONDS):
            while found != {".env", "app.py"}:
                await watcher.changed.wait()
                found |= set(watcher.take_paths())


async def test_without_watchfiles_the_error_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smartpipe.worker.supervisor.watch.find_spec", lambda _: None)

    with pytest.raises(ConfigError, match=r"--reload needs watchfiles; run pip install 'smartpipe\[local\]'"):
        SourceWatcher(tmp_path)


@pytest.mark.parametrize(
    ("paths", "sentence"),
    [(["a.py"], "a.py"), (["a.py", "b.py", "c.py"], "a.py, b.py, c.py"), (list("abcde"), "a, b, c and 2 more")],
)
def test_only_the_first_three_changed_files_are_named(paths: list[str], sentence: str) -> None:
    assert format_paths(paths) == sentence
