"""All errors that smartpipe raises, as one tree.

SmartpipeError
├─ ConfigError              settings or declarations are wrong; it lists all of them
├─ PublishError             SNS did not accept some events
│   └─ EventTooLarge        the event exceeds its topic's limit; raised before any I/O
├─ MessageError             a message cannot become an event; ``kind`` is the reason
│   ├─ DecodeError          the body is not a valid envelope, or the data does not fit its class
│   ├─ PayloadError         the body in S3 does not exist, or its encoding is unknown
│   ├─ UnknownEventType     no handler for this type and major version
│   └─ IgnoredMessage       it only tests the connection, as S3 does; the worker deletes it
├─ TopologyError            a topic, queue or subscription is missing or not allowed
├─ TransportError           AWS is unreachable, or refused the call
├─ StoreError               the idempotency store is unreachable, or refused the call
└─ raised by handlers
    ├─ Retry                deliver this message again later
    └─ Reject               dead-letter this message now
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smartpipe.limits import MAX_VISIBILITY_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from smartpipe.events import Event

# No retry mode of botocore knows all of these: measured against a scripted server, botocore 1.43.
THROTTLES = frozenset({
    "KMS.ThrottlingException", "KMSThrottling", "KMSThrottled", "KmsThrottled", "LimitExceededException", "OverLimit",
    "PriorRequestNotComplete", "ProvisionedThroughputExceededException", "RequestLimitExceeded", "RequestThrottled",
    "RequestThrottledException", "SlowDown", "Throttled", "ThrottledException", "Throttling", "ThrottlingException",
    "TooManyRequestsException",
})  # fmt: skip


class SmartpipeError(Exception):
    """Base class of every error that smartpipe raises."""


class ConfigError(SmartpipeError):
    """Settings or declarations are wrong. ``problems`` has one sentence for each mistake."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True, slots=True)
class PublishFailure:
    """One event that was not published. ``retryable`` says whether publishing it again can succeed."""

    event: Event
    event_id: str
    code: str
    detail: str
    retryable: bool


class PublishError(SmartpipeError):
    """SNS did not accept some events. All other events of the call were published.

    ``failures`` has one entry for each event that was not published. A ``retryable`` entry was retried until the
    publisher's deadline. SNS may have accepted its event even so, if only the response was lost. For this reason
    consumers see events *at least* once.
    """

    def __init__(self, failures: Sequence[PublishFailure]) -> None:
        self.failures = tuple(failures)
        first = "; ".join(f"{f.event_id} ({type(f.event).__name__}): {f.code}: {f.detail}" for f in self.failures[:3])
        rest = f"; and {len(self.failures) - 3} more" if len(self.failures) > 3 else ""  # noqa: PLR2004
        noun = "event was" if len(self.failures) == 1 else "events were"
        super().__init__(f"{len(self.failures)} {noun} not published: {first}{rest}")


class EventTooLarge(PublishError):
    """The encoded event with its attributes exceeds the limit of its topic or queue. Raised before any I/O."""

    def __init__(self, event: Event, event_id: str, *, size_bytes: int, limit_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes
        detail = (
            f"the encoded event has {size_bytes:,} bytes, and its topic or queue accepts {limit_bytes:,}; "
            "shrink the event, raise the topic's limit_bytes (at most 1,048,576), or store large bodies in S3 "
            "(SMARTPIPE_CLAIM_CHECK_URL), which uses one of the ten message attributes"
        )
        super().__init__([PublishFailure(event, event_id, "EventTooLarge", detail, retryable=False)])


class MessageError(SmartpipeError):
    """A message that cannot become an event.

    Args:
        kind: The reason, as recorded in the dead-letter message and the log.
    """

    def __init__(self, kind: str, detail: str) -> None:
        self.kind = kind
        super().__init__(detail)


class DecodeError(MessageError):
    """A message body that cannot become an event. A retry cannot help, so the message is dead-lettered.

    Args:
        kind: ``not-json``, ``not-cloudevent``, ``invalid-data``, ``upcast-failed``, ``too-many-values``,
            ``not-compressed``, ``not-a-pointer`` or ``payload-not-allowed``.
        errors: If validation failed, the first 20 of Pydantic's errors, without the input values.
    """

    def __init__(self, kind: str, detail: str, errors: Sequence[dict[str, Any]] = ()) -> None:
        self.errors = tuple(errors)
        super().__init__(kind, detail)


class PayloadError(MessageError):
    """A body that cannot be read at present. The service's retry policy decides when to retry and when to dead-letter.

    Its ``kind`` is ``payload-missing`` or ``unknown-encoding``.
    """


class UnknownEventType(MessageError):
    """A valid envelope whose type and major version no handler of this queue subscribes to."""

    def __init__(self, detail: str) -> None:
        super().__init__("unknown-event-type", detail)


class IgnoredMessage(MessageError):
    """A message that only tests the connection, such as ``s3:TestEvent``. The worker deletes it."""

    def __init__(self, detail: str) -> None:
        super().__init__("ignored", detail)


class TopologyError(SmartpipeError):
    """Topics, queues or subscriptions are missing or not allowed. ``problems`` has one sentence for each."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class TransportError(SmartpipeError):
    """A call to AWS failed as a whole.

    ``code`` is the service's error code without its prefix, or the name of the connection error. ``retryable`` says
    whether the same call can succeed later without any change by an operator.
    """

    def __init__(self, code: str, detail: str, *, retryable: bool) -> None:
        self.code = code
        self.detail = detail
        self.retryable = retryable
        super().__init__(f"{code}: {detail}")


class StoreError(SmartpipeError):
    """The idempotency store is unreachable or refused the call.

    The handler was not called without protection. SQS delivers the message again.
    """


class Retry(SmartpipeError):
    """Raise it in a handler to have the message delivered again.

    It counts as one of the retry policy's attempts.

    Args:
        reason: Goes into the log and, after the last attempt, into the dead-letter message.
        after_seconds: The delay of the next delivery, 0 to 43,200. By default the retry policy decides.
    """

    def __init__(self, reason: str = "", *, after_seconds: float | None = None) -> None:
        if after_seconds is not None and not 0 <= after_seconds <= MAX_VISIBILITY_SECONDS:
            msg = f"Retry(after_seconds={after_seconds}) is outside of 0 to 43,200, the range that SQS accepts"
            raise ValueError(msg)
        self.after_seconds = after_seconds
        super().__init__(reason or "the handler asked for a retry")


class Reject(SmartpipeError):
    """Raise it in a handler if this message can never succeed. The worker dead-letters it now, with *reason*."""
