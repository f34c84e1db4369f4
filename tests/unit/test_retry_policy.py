"""The number of attempts, and the waits between them."""

from __future__ import annotations

from typing import Any

import pytest
from tenacity import wait_exception, wait_fixed
from tenacity.wait import wait_base

from smartpipe import ConfigError, RetryPolicy
from smartpipe.retry import OUTAGE_WAITS, backoff_seconds

ERROR = ValueError("no")


def test_a_policy_has_its_documented_defaults() -> None:
    policy = RetryPolicy()

    assert (policy.attempts, policy.base_seconds, policy.max_seconds) == (8, 2.0, 300.0)
    assert (policy.never_on, policy.on_exhausted) == ((), "dead-letter")


@pytest.mark.parametrize(
    ("name", "low", "high", "step"),
    [("attempts", 1, 1_000, 1), ("base_seconds", 0, 43_200, 0.1), ("max_seconds", 0, 43_200, 0.1)],
)
def test_a_value_may_be_at_either_end_of_its_range_and_no_further(
    name: str, low: float, high: float, step: float
) -> None:
    policy: Any = RetryPolicy
    for value in (low, high):
        assert getattr(policy(**{name: value}), name) == value
    for value in (low - step, high + step):
        with pytest.raises(ConfigError, match=f"{name}={value} must be {low} to {high:,}"):
            policy(**{name: value})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"never_on": ValueError}, "must be a tuple of exception classes"),
        ({"never_on": [ValueError]}, "must be a tuple of exception classes"),
        ({"never_on": (ValueError, "KeyError")}, "must be a tuple of exception classes"),
        ({"on_exhausted": "drop"}, "on_exhausted='drop' must be"),
    ],
)
def test_a_value_of_another_kind_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        RetryPolicy(**options)


def test_all_errors_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        RetryPolicy(attempts=0, base_seconds=-1, max_seconds=-1, never_on=5, on_exhausted="x")  # type: ignore[arg-type]

    assert len(caught.value.problems) == 5


@pytest.mark.parametrize("attempts", [1, 2, 8])
def test_the_last_attempt_is_that_of_the_policy(attempts: int) -> None:
    policy = RetryPolicy(attempts=attempts, wait=wait_fixed(5))

    assert [policy.seconds_until_retry(ERROR, count) for count in range(1, attempts)] == [5] * (attempts - 1)
    assert policy.seconds_until_retry(ERROR, attempts) is None
    assert policy.seconds_until_retry(ERROR, attempts + 1) is None


def test_an_error_that_no_retry_can_help_ends_the_attempts_at_once() -> None:
    policy = RetryPolicy(never_on=(LookupError, TypeError))

    assert policy.seconds_until_retry(KeyError("a subclass"), 1) is None
    assert policy.seconds_until_retry(ERROR, 1) is not None


def longest(policy: RetryPolicy, receive_count: int) -> float:
    waits = [policy.seconds_until_retry(ERROR, receive_count) for _ in range(300)]
    return max(wait for wait in waits if wait is not None)


@pytest.mark.parametrize(("base", "maximum", "expected"), [
    (2.0, 300.0, [2, 4, 8, 16, 32, 64, 128]), (3.0, 10.0, [3, 6, 10, 10]), (0.0, 300.0, [0, 0]), (5.0, 0.0, [0, 0]),
])  # fmt: skip
def test_waits_are_random_below_a_limit_that_doubles(base: float, maximum: float, expected: list[float]) -> None:
    policy = RetryPolicy(base_seconds=base, max_seconds=maximum)

    for receive_count, limit in enumerate(expected, 1):
        assert limit * 0.8 <= longest(policy, receive_count) <= limit


def test_the_default_limits_reach_five_minutes_only_after_the_default_attempts() -> None:
    policy = RetryPolicy(attempts=20)

    assert longest(policy, 8) <= 256
    assert 299.01 < max(longest(policy, 15) for _ in range(40)) <= 300


@pytest.mark.parametrize(("wait", "expected"), [(-5, 0), (0, 0), (43_200, 43_200), (43_201, 43_200)])
def test_a_strategy_of_ones_own_waits_within_the_range_of_sqs(wait: float, expected: float) -> None:
    assert RetryPolicy(wait=wait_fixed(wait)).seconds_until_retry(ERROR, 1) == expected


def test_a_strategy_of_ones_own_may_read_the_attempt_and_its_error() -> None:
    class Reading(wait_base):
        def __call__(self, retry_state: Any) -> float:
            return float(100 * retry_state.attempt_number + retry_state.idle_for + retry_state.seconds_since_start)

    by_error = RetryPolicy(wait=wait_exception(lambda error: 7 if error is ERROR else 1))

    assert RetryPolicy(wait=Reading()).seconds_until_retry(ERROR, 3) == 300
    assert by_error.seconds_until_retry(ERROR, 1) == 7


@pytest.mark.parametrize(("attempt", "limit"), [(1, 0.5), (2, 1), (3, 2), (6, 16), (7, 30), (1_000, 30)])
def test_in_an_outage_waits_grow_to_half_a_minute_and_are_never_zero(attempt: int, limit: float) -> None:
    waits = [backoff_seconds(OUTAGE_WAITS, attempt, ERROR) for _ in range(300)]

    assert min(waits) >= 0.2
    assert limit * 0.8 <= max(waits) <= limit
