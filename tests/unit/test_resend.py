from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe.batching.resend import retry, send_with_retries, send_with_retries_blocking
from smartpipe.errors import TransportError
from tests.support.fakes import UNREACHABLE, refused, throttled
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from smartpipe.message import Failure


class Service:
    """Returns one scripted list of failures, or raises one error, for each call; then accepts everything."""

    def __init__(self, *script: list[Failure] | TransportError) -> None:
        self.script = list(script)
        self.calls: list[list[str]] = []

    def answer(self, entries: list[str]) -> list[Failure]:
        self.calls.append(list(entries))
        scripted = self.script.pop(0) if self.script else []
        if isinstance(scripted, TransportError):
            raise scripted
        return scripted

    async def __call__(self, entries: list[str]) -> list[Failure]:
        return self.answer(entries)


def test_fault_04_only_entries_with_a_temporary_failure_are_sent_again() -> None:
    service = Service([throttled(1), refused(2)], [throttled(0)])

    failed = run_virtually(send_with_retries(service, ["a", "b", "c", "d"], deadline_seconds=30))

    assert service.calls == [["a", "b", "c", "d"], ["b"], ["b"]]
    assert failed == [("c", refused(2))]


def test_a_call_that_fails_as_a_whole_is_repeated() -> None:
    service = Service(UNREACHABLE, UNREACHABLE)

    assert run_virtually(send_with_retries(service, ["a", "b"], deadline_seconds=30)) == []
    assert service.calls == [["a", "b"]] * 3


def test_a_call_with_a_permanent_error_is_not_repeated() -> None:
    service = Service(TransportError("AccessDenied", "no", retryable=False))

    failed = run_virtually(send_with_retries(service, ["a", "b"], deadline_seconds=30))

    assert [(entry, failure.code) for entry, failure in failed] == [("a", "AccessDenied"), ("b", "AccessDenied")]
    assert len(service.calls) == 1


def test_after_the_deadline_the_remaining_entries_are_reported_with_their_last_failure() -> None:
    service = Service(*[[throttled(0)]] * 1_000)

    async def timed() -> tuple[list[tuple[str, Failure]], float]:
        failed = await send_with_retries(service, ["a"], deadline_seconds=30)
        return failed, asyncio.get_running_loop().time()

    failed, seconds = run_virtually(timed())

    assert failed == [("a", throttled(0))]
    assert 20 < seconds <= 30
    assert 5 < len(service.calls) < 100


def test_without_a_deadline_there_is_one_attempt() -> None:
    service = Service([throttled(0)], [throttled(0)], [throttled(0)])

    failed = run_virtually(send_with_retries(service, ["a"], deadline_seconds=0))

    assert failed == [("a", throttled(0))]
    assert len(service.calls) == 1


def test_a_call_that_hangs_is_cut_off_at_the_deadline() -> None:
    async def hang(_: list[str]) -> list[Failure]:
        await asyncio.sleep(1_000)
        return []

    async def timed() -> tuple[list[tuple[str, Failure]], float]:
        return await send_with_retries(hang, ["a"], deadline_seconds=30), asyncio.get_running_loop().time()

    failed, seconds = run_virtually(timed())

    assert [failure.code for _, failure in failed] == ["DeadlineExceeded"]
    assert seconds == 30


def test_a_call_that_hangs_leaves_time_for_another_if_calls_have_a_limit() -> None:
    calls = list[float]()

    async def hang_once(_: list[str]) -> list[Failure]:
        calls.append(asyncio.get_running_loop().time())
        if len(calls) == 1:
            await asyncio.sleep(1_000)
        return []

    failed = run_virtually(send_with_retries(hang_once, ["a"], deadline_seconds=10, call_seconds=3))

    assert failed == []
    assert 3 <= calls[1] <= 4


def test_a_later_call_that_hangs_is_cut_off_at_the_deadline_of_the_first() -> None:
    calls = list[float]()

    async def hang_later(_: list[str]) -> list[Failure]:
        calls.append(asyncio.get_running_loop().time())
        if len(calls) == 1:
            return [throttled(0)]
        await asyncio.sleep(1_000)
        return []

    async def timed() -> float:
        await asyncio.sleep(100)  # the clock of a loop does not begin at 0
        await send_with_retries(hang_later, ["a"], deadline_seconds=30)
        return asyncio.get_running_loop().time()

    assert run_virtually(timed()) == 130
    assert len(calls) == 2


@pytest.mark.parametrize("limits", [{"deadline_seconds": 0}, {"deadline_seconds": 30, "call_seconds": 0.1}])
def test_a_call_that_hangs_has_at_least_one_second(limits: dict[str, Any]) -> None:
    ended = list[float]()

    async def hang(_: list[str]) -> list[Failure]:
        try:
            await asyncio.sleep(1_000)
        finally:
            ended.append(asyncio.get_running_loop().time())
        return []

    failed = run_virtually(send_with_retries(hang, ["a"], **limits))

    assert ended[0] == 1
    assert [failure.code for _, failure in failed] == ["DeadlineExceeded"]


def test_the_blocking_form_does_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    service = Service([throttled(1), refused(2)], UNREACHABLE, [throttled(0)])

    failed = send_with_retries_blocking(service.answer, ["a", "b", "c"], deadline_seconds=30)

    assert service.calls == [["a", "b", "c"], ["b"], ["b"], ["b"]]
    assert failed == [("c", refused(2))]


def test_the_first_waits_are_short_and_random_and_later_ones_at_most_five_seconds() -> None:
    gaps: list[list[float]] = []

    async def main() -> None:
        for _ in range(60):
            times: list[float] = []

            async def call(_: list[str], times: list[float] = times) -> list[Failure]:
                times.append(asyncio.get_running_loop().time())
                return [throttled(0)]

            await send_with_retries(call, ["a"], deadline_seconds=60)
            gaps.append([later - earlier for earlier, later in pairwise(times)])

    run_virtually(main())

    for number, longest in ((0, 0.1), (1, 0.2), (2, 0.4), (8, 5.0)):  # 0.1 s, doubled each time
        waits = [one[number] for one in gaps if len(one) > number]
        assert max(waits) <= longest
        assert max(waits) > longest / 2  # 60 uniform draws miss the upper half once in 10^18
    assert max(max(one) for one in gaps) <= 5.0


def test_a_refused_entry_is_reported_once_and_those_left_with_their_own_last_failures() -> None:
    service = Service([throttled(2), refused(1), throttled(0)], [throttled(1), refused(0)], *[[throttled(0)]] * 1_000)

    failed = run_virtually(send_with_retries(service, ["a", "b", "c", "d"], deadline_seconds=1))

    assert service.calls[:3] == [["a", "b", "c", "d"], ["a", "c"], ["c"]]
    assert failed == [("b", refused(1)), ("a", refused(0)), ("c", throttled(0))]


def test_after_a_call_that_failed_as_a_whole_each_entry_has_its_error() -> None:
    service = Service([refused(0)], *[UNREACHABLE] * 1_000)

    failed = run_virtually(send_with_retries(service, ["a", "b"], deadline_seconds=0))
    assert failed == [("a", refused(0))]

    failed = run_virtually(send_with_retries(service, ["b", "c"], deadline_seconds=3))
    assert [(entry, *failure) for entry, failure in failed] == [
        ("b", 0, UNREACHABLE.code, UNREACHABLE.detail, True),
        ("c", 1, UNREACHABLE.code, UNREACHABLE.detail, True),
    ]


class WallClock:
    """The clock of the thread and its sleep, on which a call takes *seconds*."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


def test_the_blocking_form_ends_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, times = WallClock(monkeypatch), list[float]()

    def call(_: list[str]) -> list[Failure]:
        times.append(clock.now)
        return [throttled(0)]

    assert send_with_retries_blocking(call, ["a"], deadline_seconds=30) == [("a", throttled(0))]
    assert 10 <= len(times) <= 60
    assert 125 <= times[-1] < 130
    assert clock.now == times[-1]  # it does not wait for an attempt that it will not make
    assert times[1] - times[0] <= 0.1


def test_the_blocking_form_makes_one_attempt_without_a_deadline_and_none_after_a_success(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, service = WallClock(monkeypatch), Service([throttled(0)])

    assert send_with_retries_blocking(service.answer, ["a"], deadline_seconds=0) == [("a", throttled(0))]
    assert send_with_retries_blocking(service.answer, ["b"], deadline_seconds=30) == []
    assert service.calls == [["a"], ["b"]]
    assert clock.now == 100


class Answers:
    """Raises each error in turn, and then returns its number of calls."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> int:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.calls


def test_a_call_is_repeated_after_temporary_errors_only() -> None:
    for error in (TransportError("AccessDenied", "no", retryable=False), ValueError("x")):
        call = Answers(UNREACHABLE, UNREACHABLE, error)
        with pytest.raises(type(error)) as raised:
            run_virtually(retry(call, deadline_seconds=30))
        assert raised.value is error
        assert call.calls == 3

    assert run_virtually(retry(Answers(UNREACHABLE, UNREACHABLE), deadline_seconds=30)) == 3


def test_a_call_is_repeated_until_its_deadline_and_its_last_error_is_raised() -> None:
    call = Answers(UNREACHABLE, UNREACHABLE)

    with pytest.raises(TransportError) as raised:
        run_virtually(retry(call, deadline_seconds=0))

    assert raised.value is UNREACHABLE
    assert call.calls == 1
