from __future__ import annotations

import errno
import subprocess
from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import EndpointConnectionError

from smartpipe import PublishError, TransportError
from smartpipe.errors import PublishFailure
from smartpipe.exhaustion import ResourceExhausted, causes, exhausted_resource, shortage_code
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


@pytest.mark.parametrize(("error", "resource", "code"), [
    (EMFILE, "file descriptors (EMFILE)", "EMFILE"),
    (OSError(errno.ENFILE, "x"), "the machine's file descriptors (ENFILE)", "ENFILE"),
    (OSError(errno.ENOMEM, "x"), "memory (ENOMEM)", "ENOMEM"),
    (OSError(errno.ENOBUFS, "x"), "the kernel's network buffers (ENOBUFS)", "ENOBUFS"),
    (OSError(errno.ENOSPC, "x"), "disk space (ENOSPC)", "ENOSPC"),
    (OSError(errno.ECONNREFUSED, "x"), None, None),
    (MemoryError(), "memory", "ENOMEM"),
    (RuntimeError("can't start new thread"), "threads", "EAGAIN"),
    (RuntimeError("can't start"), None, None),
    (ValueError("can't start new thread"), None, None),
    (ResourceExhausted("x"), "threads", None),
    (not_published("EAGAIN"), "threads", None),
    (not_published("ENOSPC"), "disk space (ENOSPC)", None),
    (TransportError("EAGAIN", "x", retryable=True), "threads", None),
    (TransportError("Throttling", "x", retryable=True), None, None),
], ids=repr)  # fmt: skip
def test_a_resource_and_its_code_are_named(error: BaseException, resource: str | None, code: str | None) -> None:
    assert exhausted_resource(error) == resource
    assert shortage_code(error) == code


def test_the_first_code_of_a_publish_that_names_a_resource_counts() -> None:
    failures = [PublishFailure(ADA, "1", code, "why", retryable=True) for code in ("Throttling", "EMFILE", "ENOSPC")]

    assert exhausted_resource(PublishError(failures)) == "file descriptors (EMFILE)"


def test_causes_come_once_each_and_a_cause_hides_the_context() -> None:
    shared = ValueError("shared")
    error = in_context(caused(KeyError("first"), shared), LookupError("hidden"))
    group = BaseExceptionGroup("of tasks", [error, shared, in_context(TypeError("plain"), shared)])

    assert [type(one).__name__ for one in causes(group)].count("ValueError") == 1
    assert {type(one).__name__ for one in causes(group)} == {"ExceptionGroup", "KeyError", "ValueError", "TypeError"}
    assert next(causes(group)) is group


def test_the_error_inside_one_of_botocore_is_a_cause() -> None:
    error = EndpointConnectionError(endpoint_url="http://x", error=EMFILE)

    assert exhausted_resource(error) == "file descriptors (EMFILE)"
    assert len(list(causes(EndpointConnectionError(endpoint_url="http://x", error="text")))) == 1


@pytest.mark.parametrize(("count", "found"), [(100, True), (101, False)])
def test_a_long_chain_is_searched_for_its_first_hundred_errors(count: int, found: bool) -> None:
    error: BaseException = MemoryError()
    for number in range(count - 1):
        error = caused(ValueError(number), error)

    assert len(list(causes(error))) == 100
    assert bool(exhausted_resource(error)) is found


@pytest.mark.parametrize(("module", "counts"), [
    ({"__name__": "multiprocessing.popen_fork"}, True), ({"__name__": "subprocessing"}, False), ({}, False),
])  # fmt: skip
def test_eagain_of_another_module_is_the_handlers(module: dict[str, object], counts: bool) -> None:
    exec("def start(error):\n    raise error", module)
    error = BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    caught = raised(lambda: module["start"](error))  # type: ignore[operator]

    assert (exhausted_resource(caught) is not None) is counts


def test_eagain_that_was_never_raised_is_the_handlers() -> None:
    assert exhausted_resource(BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")) is None
