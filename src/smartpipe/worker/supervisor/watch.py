"""Notices that sources change, by watchfiles: for development."""

from __future__ import annotations

import asyncio
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Self

from smartpipe.errors import ConfigError

if TYPE_CHECKING:
    from types import TracebackType

log = logging.getLogger("smartpipe.supervisor")


def can_watch() -> bool:
    """Return whether changes can be noticed at all."""
    return find_spec("watchfiles") is not None


class Changes:
    """Gathers what changed below a directory: Python files and pyproject.toml, not those of environments and caches.

    Use it as an async context manager, in a running event loop.

    Raises:
        ConfigError: watchfiles is not installed.
    """

    def __init__(self, directory: Path) -> None:
        if not can_watch():
            msg = "--reload needs watchfiles; run pip install 'smartpipe[local]'"
            raise ConfigError(msg)
        self.happened = asyncio.Event()
        self._directory = directory
        self._paths: set[Path] = set()
        self._stop = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin to watch."""
        self._watching = asyncio.create_task(self._watch())
        await asyncio.sleep(0)  # its first step asks the system
        log.info("watching sources below %s", self._directory)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Watch no more."""
        self._stop.set()
        if self._watching is not None:
            await self._watching

    def take(self) -> list[str]:
        """Return the changed files, relative to the directory, and forget them."""
        self.happened.clear()
        taken = sorted(path.relative_to(self._directory).as_posix() for path in self._paths)
        self._paths.clear()
        return taken

    async def _watch(self) -> None:
        from watchfiles import Change, DefaultFilter, awatch

        outer = f"{self._directory}/"  # a project may itself lie below a directory of such a name
        ignored = DefaultFilter(ignore_dirs=(*DefaultFilter.ignore_dirs, "venv", ".nox", ".ruff_cache"))

        def is_source(change: Change, path: str) -> bool:
            return path.endswith((".py", "/pyproject.toml")) and ignored(change, path.removeprefix(outer))

        batches = awatch(self._directory, watch_filter=is_source, stop_event=self._stop, ignore_permission_denied=True)
        try:
            async for batch in batches:
                self._paths |= {Path(path) for _, path in batch}
                self.happened.set()
        except OSError as error:
            log.error("files are not watched any more, and nothing is reloaded: %s", error)  # noqa: TRY400
