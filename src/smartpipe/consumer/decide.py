"""Decides the outcome of a delivery. Pure: no clock and no client. ``settle`` carries the outcome out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from smartpipe.errors import DecodeError, IgnoredMessage, MessageError, PayloadError, Reject, Retry, UnknownEventType

if TYPE_CHECKING:
    from smartpipe.consumer.breaker import Circuit
    from smartpipe.retry import RetryPolicy

UnknownEvents: TypeAlias = Literal["dead-letter", "ignore", "retry"]


class WorkerLost(Exception):
    """Several deliveries of a message ended without a result: it probably killed its worker each time."""


class Ack(NamedTuple):
    """Delete the message. *ignored*: no handler takes it, or it only tests the connection."""

    ignored: bool = False


class RetryAfter(NamedTuple):
    """Make the message visible again in *seconds*, a whole number as in SQS. The delivery failed with *error*."""

    seconds: int
    error: BaseException


class DeadLetter(NamedTuple):
    """Move the message to the dead-letter queue.

    *kind* is ``rejected``, ``permanent-error`` (the policy's ``never_on``), ``retries-exhausted``, ``worker-lost``,
    ``unknown-event-type``, or a DecodeError's or PayloadError's kind.
    """

    kind: str
    error: BaseException


class Halt(NamedTuple):
    """Keep the message and its FIFO group where they are: visible again in *seconds*, with an error in the log."""

    seconds: int
    kind: str
    error: BaseException


class Defer(NamedTuple):
    """Make the message visible again in *seconds*. Nothing has failed, and no attempt is used up."""

    seconds: int
    error: BaseException


class Release(NamedTuple):
    """Make the message visible again in *seconds*, without a result.

    *reason* is ``skipped`` (no handler has seen it), ``cancelled`` (the worker stops) or ``internal-error``.
    """

    seconds: float
    reason: Literal["skipped", "cancelled", "internal-error"]
    error: BaseException | None = None


ACK = Ack()
Outcome: TypeAlias = Ack | RetryAfter | DeadLetter | Halt | Defer | Release


def decide(
    error: BaseException | None, receive_count: int, policy: RetryPolicy, unknown_events: UnknownEvents = "dead-letter"
) -> Outcome:
    """Return the outcome of a delivery that ended with *error*, by the policy of the handler that failed."""
    outcome = _decide(error, receive_count, policy, unknown_events)
    if policy.on_exhausted == "halt" and isinstance(outcome, DeadLetter) and outcome.kind != "rejected":
        return Halt(max(1, math.ceil(policy.max_seconds)), outcome.kind, outcome.error)
    return outcome


def _decide(
    error: BaseException | None, receive_count: int, policy: RetryPolicy, unknown_events: UnknownEvents
) -> Outcome:
    if error is None:
        return ACK
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]  # a TaskGroup in the handler has wrapped its only failure
    if isinstance(error, Reject):
        return DeadLetter("rejected", error)
    if isinstance(error, DecodeError):
        return DeadLetter(error.kind, error)
    if isinstance(error, WorkerLost):
        return DeadLetter("worker-lost", error)
    if isinstance(error, IgnoredMessage):
        return Ack(ignored=True)
    if isinstance(error, UnknownEventType):
        if unknown_events == "ignore":
            return Ack(ignored=True)
        if unknown_events == "dead-letter":
            return DeadLetter(error.kind, error)
    seconds = policy.seconds_until_retry(error, receive_count)
    if seconds is None:
        if isinstance(error, PayloadError):
            return DeadLetter(error.kind, error)
        return DeadLetter("permanent-error" if isinstance(error, policy.never_on) else "retries-exhausted", error)
    if isinstance(error, Retry) and error.after_seconds is not None:
        seconds = error.after_seconds
    return RetryAfter(math.ceil(seconds), error)


def describe_error(error: BaseException) -> str:
    """Return the type and text of *error* for a log line, even if its ``__str__`` raises."""
    if isinstance(error, (Reject, MessageError)):
        return str(error)
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - a broken __str__ must not keep a message from its dead-letter queue
        return type(error).__name__


def retry_while_open(circuit: Circuit | None, outcome: Outcome) -> Outcome:
    """Return a message to the queue if an outage would push it into the dead-letter queue."""
    if circuit is None or circuit.closed or not isinstance(outcome, (DeadLetter, Halt)):
        return outcome
    return RetryAfter(round(circuit.reset_seconds), outcome.error) if outcome.kind == "retries-exhausted" else outcome
