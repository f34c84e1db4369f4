"""Recognizes failures that were caused by a resource that this process, or its machine, has run out of.

The message is not the cause of such a failure. It is deferred, which does not count as an attempt of its retry policy.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from smartpipe.errors import PublishError, TransportError

if TYPE_CHECKING:
    from collections.abc import Iterator

THREADS = "threads"
_BY_ERRNO = {
    errno.EMFILE: "file descriptors (EMFILE)",
    errno.ENFILE: "the machine's file descriptors (ENFILE)",
    errno.ENOMEM: "memory (ENOMEM)",
    errno.ENOBUFS: "the kernel's network buffers (ENOBUFS)",
    errno.ENOSPC: "disk space (ENOSPC)",
}
_BY_CODE = {**{errno.errorcode[number]: resource for number, resource in _BY_ERRNO.items()}, "EAGAIN": THREADS}
"""Keys are codes of a TransportError or a PublishFailure."""
_NO_THREAD = "can't start new thread"
"""CPython raises a RuntimeError with this text, without an errno, when the operating system refuses a thread."""
_STARTS_PROCESSES = frozenset({"subprocess", "multiprocessing"})
_MAX_ERRORS = 100


class ResourceExhausted(Exception):
    """A handler call was not started, because this process cannot run another one at present."""


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield *error*, its causes and contexts, and the members of exception groups; each once, as a chain can loop."""
    pending, seen = [error], set[int]()
    while pending and len(seen) < _MAX_ERRORS:
        one = pending.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        if isinstance(one, BaseExceptionGroup):
            pending += one.exceptions
        details = getattr(one, "kwargs", None)
        if isinstance(details, dict) and isinstance(details.get("error"), BaseException):
            pending.append(details["error"])  # where botocore keeps the error of a failed connection
        if one.__cause__ is not None:
            pending.append(one.__cause__)
        elif one.__context__ is not None and not one.__suppress_context__:
            pending.append(one.__context__)


def exhausted_resource(error: BaseException) -> str | None:
    """Return the name of the resource that ran out, or None for any other failure.

    It also searches the causes and contexts of *error*, and the members of exception groups. EAGAIN counts only if a
    process could not be started, because a lock that is taken or a socket that is not ready raises it as well.
    """
    return next(filter(None, map(_resource, causes(error))), None)


def shortage_code(error: BaseException) -> str | None:
    """Return the name of the errno, such as ``EMFILE``, if *error* was caused by a resource that ran out.

    It is ENOMEM for memory, and EAGAIN for a thread that cannot start, as for malloc(3) and pthread_create(3).
    """
    return next(filter(None, map(_code, causes(error))), None)


def _code(error: BaseException) -> str | None:
    if isinstance(error, MemoryError):
        return "ENOMEM"
    if isinstance(error, RuntimeError) and _NO_THREAD in str(error):
        return "EAGAIN"
    return errno.errorcode[error.errno] if isinstance(error, OSError) and error.errno in _BY_ERRNO else None


def _resource(error: BaseException) -> str | None:
    if isinstance(error, OSError):
        if error.errno == errno.EAGAIN and _was_starting_a_process(error):
            return "processes (EAGAIN)"
        return _BY_ERRNO.get(error.errno or 0)
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, ResourceExhausted):
        return THREADS
    if isinstance(error, RuntimeError) and _NO_THREAD in str(error):
        return THREADS
    if isinstance(error, PublishError):
        return next((_BY_CODE[one.code] for one in error.failures if one.code in _BY_CODE), None)
    return _BY_CODE.get(error.code) if isinstance(error, TransportError) else None


def _was_starting_a_process(error: BaseException) -> bool:
    """Return whether the innermost frame belongs to a module that starts processes."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    module = str(traceback.tb_frame.f_globals.get("__name__", "")) if traceback is not None else ""
    return module.partition(".")[0] in _STARTS_PROCESSES
