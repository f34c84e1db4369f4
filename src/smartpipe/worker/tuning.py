"""Settings of a worker's process: the garbage collector, the event loop and the limit of open files."""

from __future__ import annotations

import gc
import logging
import resource
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

log = logging.getLogger("smartpipe.limits")

GC_THRESHOLD = 10_000
"""New containers between two collections.

CPython's default is 700, and 2,000 from 3.13 on. A few messages own that many containers. With hundreds of messages in
flight, each collection would traverse all of them.
"""
DEFAULT_GC_THRESHOLDS = (700, 2_000)
MAX_OPEN_FILES = 1_048_576
"""Some systems have a hard limit of 1,000,000,000, and some programs that a handler starts try each number up to it."""


def tune_garbage_collector() -> None:
    """Freeze the existing objects and collect less often, unless the collector's settings were changed before.

    The cost is that garbage in reference cycles is freed later: a few megabytes. Source: gc module, ``freeze`` and
    ``set_threshold``.
    """
    youngest, *others = gc.get_threshold()
    if youngest in DEFAULT_GC_THRESHOLDS and gc.isenabled():
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, *others)


def choose_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return the argument for ``asyncio.Runner``: uvloop's factory if it is installed, or None for asyncio's own loop.

    The extra ``smartpipe[speed]`` installs uvloop.
    """
    if find_spec("uvloop") is None:
        return None
    return cast("Callable[[], asyncio.AbstractEventLoop]", import_module("uvloop").new_event_loop)


def raise_file_limit() -> None:
    """Raise the soft limit of open files to the hard limit, or to 1,048,576 if that is less.

    The soft limit is often 1,024 for programs that use select(2) (systemd, "File Descriptor Limits"). This process does
    not use it. Child processes inherit the limit. If the system refuses, the limit stays as it is.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as error:  # macOS refuses values above its OPEN_MAX
        log.debug("Cannot raise the limit of open files from %d to %d: %s", soft, wanted, error)
        return
    log.debug("Raised the limit of open files from %d to %d", soft, wanted)
