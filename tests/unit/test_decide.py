from __future__ import annotations

import asyncio

import pytest
from tenacity import wait_fixed, wait_incrementing

from smartpipe import ConfigError, DecodeError, Reject, Retry, RetryPolicy, UnknownEventType
from smartpipe.consumer.decide import Ack, DeadLetter, RetryAfter, UnknownEvents, decide

FAULT = ValueError("broken")
FIVE = RetryPolicy(attempts=5, wait=wait_fixed(7))


@pytest.mark.parametrize(
    ("error", "receive_count", "expected"),
    [
        (None, 1, Ack()),
        (None, 99, Ack()),
        (FAULT, 1, RetryAfter(7, FAULT)),
        (FAULT, 4, RetryAfter(7, FAULT)),
        (FAULT, 5, DeadLetter("retries-exhausted", FAULT)),
        (FAULT, 6, DeadLetter("retries-exhausted", FAULT)),
    ],
)
def test_a_failure_is_retried_until_the_attempts_are_over(
    error: Exception | None, receive_count: int, expected: object
) -> None:
    assert decide(error, receive_count, FIVE) == expected


def test_a_rejected_message_is_dead_lettered_at_its_first_delivery() -> None:
    error = Reject("no such account")

    assert decide(error, 1, FIVE) == DeadLetter("rejected", error)


def test_a_body_that_cannot_be_decoded_is_never_retried() -> None:
    error = DecodeError("not-json", "x")

    assert decide(error, 1, FIVE) == DeadLetter("not-json", error)


@pytest.mark.parametrize(("seconds", "expected"), [(None, 7), (0, 0), (90.5, 91)])
def test_a_handler_may_choose_when_to_retry(seconds: float | None, expected: int) -> None:
    error = Retry("later", after_seconds=seconds)

    assert decide(error, 1, FIVE) == RetryAfter(expected, error)
    assert decide(error, 5, FIVE) == DeadLetter("retries-exhausted", error)


@pytest.mark.parametrize("seconds", [-1, 43_201])
def test_a_retry_beyond_the_range_of_sqs_is_an_error_at_the_call(seconds: float) -> None:
    with pytest.raises(ValueError, match="outside of 0 to 43,200"):
        Retry(after_seconds=seconds)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("dead-letter", DeadLetter), ("ignore", Ack), ("retry", RetryAfter)],
)
def test_fault_56_the_service_decides_about_unknown_events(choice: UnknownEvents, expected: type) -> None:
    outcome = decide(UnknownEventType("x"), 1, FIVE, choice)

    assert isinstance(outcome, expected)
    assert getattr(outcome, "ignored", True)


def test_an_exception_in_never_on_is_dead_lettered_immediately() -> None:
    policy = RetryPolicy(never_on=(ValueError,))

    assert decide(FAULT, 1, policy) == DeadLetter("permanent-error", FAULT)
    assert isinstance(decide(KeyError("x"), 1, policy), RetryAfter)


def test_an_exception_group_with_one_member_is_decided_by_that_member() -> None:
    error = Reject("inside")

    assert decide(ExceptionGroup("unhandled", [ExceptionGroup("again", [error])]), 1, FIVE) == DeadLetter(
        "rejected", error
    )


def test_a_cancelled_error_raised_by_the_handler_is_a_failure() -> None:
    assert isinstance(decide(asyncio.CancelledError(), 1, FIVE), RetryAfter)


@pytest.mark.parametrize(("receive_count", "ceiling"), [(1, 2), (2, 4), (3, 8), (4, 10), (400, 10)])
def test_waits_have_full_jitter_and_double_up_to_the_maximum(receive_count: int, ceiling: float) -> None:
    policy = RetryPolicy(attempts=500, base_seconds=2, max_seconds=10)  # 2·2^(n-1), at most 10

    waits = [policy.seconds_until_retry(FAULT, receive_count) for _ in range(300)]

    numbers = [wait for wait in waits if wait is not None]
    assert len(numbers) == 300
    assert min(numbers) < 0.2 * ceiling  # 300 uniform draws miss the lowest fifth once in 10^29
    assert 0.8 * ceiling < max(numbers) <= ceiling


def test_any_tenacity_wait_can_be_used_within_the_range_of_sqs() -> None:
    policy = RetryPolicy(attempts=9, wait=wait_incrementing(start=10, increment=20_000))

    assert policy.seconds_until_retry(FAULT, 1) == 10
    assert policy.seconds_until_retry(FAULT, 8) == 43_200


def test_every_value_out_of_range_is_reported() -> None:
    with pytest.raises(ConfigError) as caught:
        RetryPolicy(attempts=0, base_seconds=-1, max_seconds=50_000)

    assert len(caught.value.problems) == 3
