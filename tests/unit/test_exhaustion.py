from __future__ import annotations

import errno
import subprocess
from typing import TYPE_CHECKING

import pytest

from smartpipe import PublishError, TransportError
from smartpipe.errors import PublishFailure
from smartpipe.exhaustion import ResourceExhausted, exhausted_resource, shortage_code
from tests.support.events import ADA

if TYPE_CHECKING:
    from collections.abc import Callable

EMFILE = OSError(errno.EMFILE, "Too many open files")


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def in_context(error: BaseException, context: BaseException, *, suppressed: bool = False) -> BaseException:
    error.__context__ = context
    error.__suppress_context__ = suppressed
    return error


def raised(call: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - each test says which
        call()
    return caught.value


def not_published(code: str) -> PublishError:
    return PublishError([PublishFailure(ADA, "1", code, "why", retryable=True)])


@pytest.mark.parametrize(
    "error",
    [
        EMFILE,
        OSError(errno.ENFILE, "Too many open files in system"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        OSError(errno.ENOBUFS, "No buffer space available"),
        OSError(errno.ENOSPC, "No space left on device"),
        MemoryError(),
        RuntimeError("can't start new thread"),
        ResourceExhausted("too many overdue calls"),
        caused(ValueError("wrapped"), EMFILE),
        in_context(ValueError("raised meanwhile"), EMFILE),
        caused(KeyError("a"), caused(ValueError("b"), MemoryError())),
        ExceptionGroup("of a TaskGroup", [ValueError("one"), ExceptionGroup("inner", [EMFILE])]),
        not_published("EMFILE"),
        TransportError("ENOMEM", "Cannot allocate memory", retryable=True),
    ],
    ids=repr,
)
def test_a_resource_that_ran_out_is_recognized_however_it_is_wrapped(error: BaseException) -> None:
    assert exhausted_resource(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no such user"),
        RuntimeError("cannot start"),
        OSError(errno.ECONNREFUSED, "Connection refused"),
        OSError("without a number"),
        BlockingIOError(errno.EAGAIN, "a lock is taken"),
        in_context(ValueError("raised from None"), EMFILE, suppressed=True),
        not_published("Throttling"),
        TransportError("Throttling", "slow down", retryable=True),
    ],
    ids=repr,
)
def test_any_other_failure_is_the_handlers(error: BaseException) -> None:
    assert exhausted_resource(error) is None


def test_a_chain_of_causes_may_be_a_circle() -> None:
    one, other = ValueError("one"), KeyError("other")
    one.__cause__, other.__cause__ = other, one

    assert exhausted_resource(one) is None


def test_eagain_counts_where_a_process_could_not_be_started() -> None:
    # What the kernel does at its limit of processes, which does not bind root, as whom tests often run.
    error = BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
    code = compile("def start(error):\n    raise error", "subprocess.py", "exec")
    module = {"__name__": subprocess.__name__}
    exec(code, module)

    assert exhausted_resource(raised(lambda: module["start"](error))) == "processes (EAGAIN)"  # type: ignore[operator]


def test_the_code_of_a_shortage_is_the_name_of_its_errno() -> None:
    assert shortage_code(caused(ValueError("wrapped"), EMFILE)) == "EMFILE"
    assert shortage_code(ConnectionRefusedError(errno.ECONNREFUSED, "refused")) is None
    assert shortage_code(MemoryError()) == "ENOMEM"
    assert shortage_code(RuntimeError("can't start new thread")) == "EAGAIN"
