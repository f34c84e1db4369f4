"""Scenarios side by side: each lane is a process with servers of its own, and plays one after the other."""

from __future__ import annotations

import signal
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING

from tests.chaos.driver import Outcome, play
from tests.chaos.stand import Stand

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.chaos.stand import Extent

_open: list[Stand] = []
"""This lane's stand, while it has one."""


def play_all(keys: Sequence[str], *, seed: int, extent: Extent, lanes: int) -> Iterator[Outcome]:
    """Yield each outcome as it comes. What cannot be played is an outcome too, and the others go on."""
    pool = ProcessPoolExecutor(lanes, mp_context=get_context("spawn"), initializer=_prepare)
    try:
        waiting = {pool.submit(_play, key, seed, extent): key for key in keys}
        for future in as_completed(waiting):
            try:
                yield future.result()
            except Exception as error:  # noqa: BLE001 - the lane itself is gone
                yield Outcome(key=waiting[future], not_played=_said(error))
    finally:
        pool.shutdown(cancel_futures=True)


def versions() -> dict[str, str]:
    """Ask servers, started for it, what they are."""
    with Stand() as stand:
        return {"PostgreSQL": stand.postgres_version, "Redis": stand.redis_version}


def _prepare() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of every __exit__, which end the processes
    Finalize(None, _close, exitpriority=1)


def _play(key: str, seed: int, extent: Extent) -> Outcome:
    try:
        if not _open:
            _open.append(Stand().__enter__())
        return play(_open[0], key, seed=seed, extent=extent)
    except Exception as error:  # noqa: BLE001 - told in the table
        _close()  # the next gets servers that nobody has touched
        return Outcome(key=key, not_played=_said(error))


def _close() -> None:
    while _open:
        with suppress(Exception):
            _open.pop().__exit__()


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'without words'}"[:200]
