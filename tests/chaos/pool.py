"""Run several scenarios concurrently: each process (``--lanes``) has its own servers, and runs one at a time."""

from __future__ import annotations

import signal
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING

from tests.chaos.runner import Outcome, run_scenario
from tests.chaos.servers import Servers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.chaos.servers import RunSize

_servers: list[Servers] = []
"""The servers of this process, once they have been started."""


def run_all(keys: Sequence[str], *, seed: int, size: RunSize, lanes: int) -> Iterator[Outcome]:
    """Yield each outcome when it is ready. A scenario that cannot be run yields an outcome too."""
    pool = ProcessPoolExecutor(lanes, mp_context=get_context("spawn"), initializer=_initialize)
    try:
        keys_by_future = {pool.submit(_run, key, seed, size): key for key in keys}
        for future in as_completed(keys_by_future):
            try:
                yield future.result()
            except Exception as error:  # noqa: BLE001 - the process itself has ended
                yield Outcome(key=keys_by_future[future], error=_describe(error))
    finally:
        pool.shutdown(cancel_futures=True)


def read_versions() -> dict[str, str]:
    """Start the servers, and return their versions."""
    with Servers() as servers:
        return {"PostgreSQL": servers.postgres_version, "Redis": servers.redis_version}


def _initialize() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # runs every __exit__, which end the processes
    Finalize(None, _close, exitpriority=1)


def _run(key: str, seed: int, size: RunSize) -> Outcome:
    try:
        if not _servers:
            _servers.append(Servers().__enter__())
        return run_scenario(_servers[0], key, seed=seed, size=size)
    except Exception as error:  # noqa: BLE001 - the table shows it
        _close()  # the next scenario gets new servers
        return Outcome(key=key, error=_describe(error))


def _close() -> None:
    while _servers:
        with suppress(Exception):
            _servers.pop().__exit__()


def _describe(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:200]
