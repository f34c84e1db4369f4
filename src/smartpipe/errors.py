"""Every error smartpipe raises, as one tree.

SmartpipeError
├─ ConfigError              wrong settings or declarations, all of them at once
├─ PublishError             events that SNS did not take
│   └─ EventTooLarge        refused before any I/O
├─ MessageError             a message that cannot become an event; ``kind`` says why
│   ├─ DecodeError          the body is not a valid envelope, or the data does not fit its class
│   ├─ PayloadError         the body in S3 does not exist, or its encoding is unknown
│   └─ UnknownEventType     no handler for this type and major version
├─ TopologyError            a topic, queue or subscription that is missing or not allowed
├─ TransportError           AWS unreachable, or it refused the call
├─ StoreError               the idempotency store unreachable, or it refused the call
└─ raised by handlers
    ├─ Retry                try this delivery again later
    └─ Reject               dead-letter this delivery now
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smartpipe.limits import MAX_VISIBILITY_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from smartpipe.events import Event


class SmartpipeError(Exception):
    """Base of every error that smartpipe raises."""


class ConfigError(SmartpipeError):
    """Wrong settings or declarations; ``problems`` holds each of them, one sentence apiece."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True, slots=True)
class PublishFailure:
    """One event that was not published, and whether publishing it again can help."""

    event: Event
    event_id: str
    code: str
    detail: str
    retryable: bool


class PublishError(SmartpipeError):
    """SNS did not take some events; every other event of the call was published.

    ``failures`` has one entry per event that was not published. An entry that is ``retryable`` was
    retried until the publisher's deadline; its event may have been taken by SNS even so, if only
    the answer was lost, which is why consumers see events *at least* once.
    """

    def __init__(self, failures: Sequence[PublishFailure]) -> None:
        self.failures = tuple(failures)
        shown = "; ".join(f"{f.event_id} ({type(f.event).__name__}): {f.code}: {f.detail}" for f in self.failures[:3])
        rest = f"; and {len(self.failures) - 3} more" if len(self.failures) > 3 else ""  # noqa: PLR2004
        noun = "event was" if len(self.failures) == 1 else "events were"
        super().__init__(f"{len(self.failures)} {noun} not published: {shown}{rest}")


class EventTooLarge(PublishError):
    """The encoded event with its attributes exceeds its topic's limit. Raised before any I/O."""

    def __init__(self, event: Event, event_id: str, *, size_bytes: int, limit_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes
        detail = (
            f"the encoded event is {size_bytes:,} bytes and its topic or queue takes {limit_bytes:,}; "
            "shrink the event, raise the topic's limit_bytes (at most 1,048,576), or let large bodies wait in S3 "
            "(SMARTPIPE_CLAIM_CHECK_URL), which takes one of the ten attributes"
        )
        super().__init__([PublishFailure(event, event_id, "EventTooLarge", detail, retryable=False)])


class MessageError(SmartpipeError):
    """A message that cannot become an event.

    Args:
        kind: The reason, as the dead-letter message and the log have it.
    """

    def __init__(self, kind: str, detail: str) -> None:
        self.kind = kind
        super().__init__(detail)


class DecodeError(MessageError):
    """A message body that cannot become an event. Retrying cannot help, so it is dead-lettered.

    Args:
        kind: ``not-json``, ``not-cloudevent``, ``invalid-data``, ``too-many-values``, ``not-compressed``,
            ``not-a-pointer`` or ``payload-not-allowed``.
        errors: The first 20 of Pydantic's errors, without the input values, where validation failed.
    """

    def __init__(self, kind: str, detail: str, errors: Sequence[dict[str, Any]] = ()) -> None:
        self.errors = tuple(errors)
        super().__init__(kind, detail)


class PayloadError(MessageError):
    """A body that cannot be read now. The service's retry policy decides when to retry and when to dead-letter.

    Its ``kind`` is ``payload-missing`` or ``unknown-encoding``.
    """


class UnknownEventType(MessageError):
    """A valid envelope whose type and major version no handler of this queue subscribes to."""

    def __init__(self, detail: str) -> None:
        super().__init__("unknown-event-type", detail)


class TopologyError(SmartpipeError):
    """Topics, queues or subscriptions that are missing or not allowed; one problem a line."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class TransportError(SmartpipeError):
    """A call to AWS failed as a whole.

    ``code`` is the service's error code without prefix, or the name of the connection fault;
    ``retryable`` says whether the same call can succeed later without anybody changing anything.
    """

    def __init__(self, code: str, detail: str, *, retryable: bool) -> None:
        self.code = code
        self.detail = detail
        self.retryable = retryable
        super().__init__(f"{code}: {detail}")


class StoreError(SmartpipeError):
    """The idempotency store could not be asked, or refused. The message comes again; it was not handled unprotected."""


class Retry(SmartpipeError):
    """Raised by a handler: deliver this message again.

    It counts as one of the retry policy's attempts.

    Args:
        reason: For the log and, should the attempts run out, for the dead letter.
        after_seconds: When to deliver it again, 0 to 43,200; by the retry policy if not given.
    """

    def __init__(self, reason: str = "", *, after_seconds: float | None = None) -> None:
        if after_seconds is not None and not 0 <= after_seconds <= MAX_VISIBILITY_SECONDS:
            msg = f"Retry(after_seconds={after_seconds}) is outside of 0 to 43,200, the range SQS knows"
            raise ValueError(msg)
        self.after_seconds = after_seconds
        super().__init__(reason or "the handler asked for a retry")


class Reject(SmartpipeError):
    """Raised by a handler: this message can never succeed, dead-letter it at once with *reason*."""
