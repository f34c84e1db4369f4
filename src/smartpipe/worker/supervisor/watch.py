"""Watch for changes of source files with watchfiles, for development."""

from __future__ import annotations

import asyncio
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Self

from smartpipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

log = logging.getLogger("smartpipe.supervisor")


def can_watch() -> bool:
    """Return whether watchfiles is installed."""
    return find_spec("watchfiles") is not None


class SourceWatcher:
    """Collects changed Python files and pyproject.toml in a directory, except in virtual environments and caches.

    Use it as an async context manager, in a running event loop.

    Args:
        also: The names of further files in this directory.

    Raises:
        ConfigError: watchfiles is not installed.
    """

    def __init__(self, directory: Path, *, also: Sequence[str] = ()) -> None:
        if not can_watch():
            msg = "--reload needs watchfiles; run pip install 'smartpipe[local]'"
            raise ConfigError(msg)
        self.changed = asyncio.Event()
        self._directory = directory
        self._others = {str(directory / name) for name in also}
        self._paths: set[Path] = set()
        self._stop = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start to watch."""
        self._watching = asyncio.create_task(self._watch())
        await asyncio.sleep(0)  # let the task register with the operating system
        log.info("watching the sources in %s", self._directory)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop watching."""
        self._stop.set()
        if self._watching is not None:
            await self._watching

    def take_paths(self) -> list[str]:
        """Return the changed files, relative to the directory, and clear the list."""
        self.changed.clear()
        paths = sorted(path.relative_to(self._directory).as_posix() for path in self._paths)
        self._paths.clear()
        return paths

    async def _watch(self) -> None:
        from watchfiles import Change, DefaultFilter, awatch

        outer = f"{self._directory}/"  # the path of the project itself may contain such a name
        ignored = DefaultFilter(ignore_dirs=(*DefaultFilter.ignore_dirs, "venv", ".nox", ".ruff_cache"))

        def is_source(change: Change, path: str) -> bool:
            if path in self._others:
                return True
            return path.endswith((".py", "/pyproject.toml")) and ignored(change, path.removeprefix(outer))

        batches = awatch(self._directory, watch_filter=is_source, stop_event=self._stop, ignore_permission_denied=True)
        try:
            async for batch in batches:
                self._paths |= {Path(path) for _, path in batch}
                self.changed.set()
        except OSError as error:
            log.error("cannot watch the sources any longer, changes will not be reloaded: %s", error)  # noqa: TRY400
