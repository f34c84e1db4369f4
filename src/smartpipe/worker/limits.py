"""The operating system's limits of this process."""

from __future__ import annotations

import logging
import resource

log = logging.getLogger("smartpipe.limits")

MOST_FILES = 1_048_576
"""Some systems have a hard limit of a thousand million, and programs that a handler starts may try each number."""


def raise_file_limit() -> None:
    """Raise the soft limit of open files to the hard limit, or to 1,048,576 if that is less.

    The soft limit is often 1,024 for the sake of programs that use select(2), which this one does not
    (systemd, "File Descriptor Limits"). Child processes inherit it. A system that refuses keeps its limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as error:  # macOS refuses what is above its OPEN_MAX
        log.debug("Cannot raise the limit of open files from %d to %d: %s", soft, wanted, error)
        return
    log.debug("Raised the limit of open files from %d to %d", soft, wanted)
