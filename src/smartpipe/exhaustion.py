"""Recognizes failures whose cause is that this process, or its machine, has run out of a resource.

Such a failure says nothing about the message: it is deferred, and spends no attempt of its retry policy.
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
"""By the code of a TransportError, or of an event that was not published."""
_NO_THREAD = "can't start new thread"
"""CPython raises a RuntimeError with this text, without an errno, when the operating system refuses a thread."""
_STARTS_PROCESSES = frozenset({"subprocess", "multiprocessing"})
_MAX_ERRORS = 100


class ResourceExhausted(Exception):
    """A handler call was not begun because this process cannot take on another one."""


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield *error* and everything that led to it, each once; a chain may be a circle."""
    pending, seen = [error], set[int]()
    while pending and len(seen) < _MAX_ERRORS:
        one = pending.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        if isinstance(one, BaseExceptionGroup):
            pending += one.exceptions
        kept = getattr(one, "kwargs", None)
        if isinstance(kept, dict) and isinstance(kept.get("error"), BaseException):
            pending.append(kept["error"])  # botocore's way to keep the error that a connection failed by
        if one.__cause__ is not None:
            pending.append(one.__cause__)
        elif one.__context__ is not None and not one.__suppress_context__:
            pending.append(one.__context__)


def exhausted_resource(error: BaseException) -> str | None:
    """Return which resource ran out, or None for any other failure.

    The causes and contexts of *error* are searched too, and the members of exception groups. EAGAIN counts only
    where a process could not be started, because a lock that is taken or a socket that is not ready raises it as well.
    """
    return next(filter(None, map(_resource, causes(error))), None)


def shortage_code(error: BaseException) -> str | None:
    """Return the name of the errno, as in ``EMFILE``, if *error* was caused by a resource that ran out.

    For memory it is ENOMEM and for a thread that cannot start EAGAIN, as malloc(3) and pthread_create(3) have it.
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
    """Whether the innermost frame is of a module that starts processes."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    module = str(traceback.tb_frame.f_globals.get("__name__", "")) if traceback is not None else ""
    return module.partition(".")[0] in _STARTS_PROCESSES
