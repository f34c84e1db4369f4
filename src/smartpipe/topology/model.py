"""Topics and queues as users declare them, by logical name: the environment's prefix comes later."""

from __future__ import annotations

import re
import warnings
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple, TypeAlias

from smartpipe.errors import ConfigError

TYPE_ATTRIBUTE = "type"
"""The message attribute that carries an event's type, for filter policies to match."""
DEAD_LETTER_SUFFIX = "-dlq"
FIFO_SUFFIX = ".fifo"
"""What SNS and SQS want FIFO names to end with; it counts for their length."""
MAX_QUEUE_NAME_LENGTH = 80
MAX_TOPIC_NAME_LENGTH = 256
QUEUE_LIMIT_BYTES = 1_048_576
DEFAULT_TOPIC_LIMIT_BYTES = 262_144
MAX_DELAY_SECONDS = 900
"""SQS: the longest DelaySeconds, of a queue or of one message."""
_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Topic:
    """An SNS topic.

    Args:
        name: Its name without the environment's prefix (``SMARTPIPE_PREFIX``). A FIFO topic's ends with
            ``.fifo``, which is added if it is missing.
        fifo: Keep the events of one ``key`` in order, all the way to FIFO queues.
        limit_bytes: The largest message, and the largest batch of messages, that it takes: 1,024 to
            1,048,576; SNS's own default is 262,144. Above that SNS allows 100 subscriptions at most.

    Raises:
        ConfigError: A name or limit that AWS would refuse.
    """

    name: str
    _: KW_ONLY
    fifo: bool = False
    limit_bytes: int = DEFAULT_TOPIC_LIMIT_BYTES

    def __post_init__(self) -> None:
        """Check everything, and report it together."""
        object.__setattr__(self, "name", _suffixed(self.name, fifo=self.fifo))
        problems = name_problems("topic", self.name, MAX_TOPIC_NAME_LENGTH, fifo=self.fifo)
        if not 1_024 <= self.limit_bytes <= 1_048_576:  # noqa: PLR2004 - SNS: MaximumMessageSize
            problems.append(f"topic {self.name!r}: limit_bytes={self.limit_bytes} is outside of 1,024 to 1,048,576")
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True)
class Queue:
    """An SQS queue; its dead-letter queue has the same name with ``-dlq`` behind it.

    Args:
        name: Its name without the environment's prefix (``SMARTPIPE_PREFIX``). A FIFO queue's ends with
            ``.fifo``, which is added if it is missing; its dead-letter queue is then called ``NAME-dlq.fifo``.
        fifo: Hand out the messages of one group in order, and no two of them at once.
        delay_seconds: 0 to 900: how long SQS hides each new message.
        visibility_timeout_seconds: 1 to 43,200: how long a crashed worker's messages stay hidden, and
            the lease that heartbeats renew. A short one costs requests, a long one costs recovery time.
        retention_seconds: 60 to 1,209,600: what is not handled by then, SQS deletes. Default 4 days,
            as SQS has it; the dead-letter queue always keeps 14 days.
        max_receive_count: 1 to 1,000: after so many deliveries SQS itself moves a message to the
            dead-letter queue, without a reason. It is the backstop for crashes, and by default three
            times the attempts of the retry policies on this queue (at least 10), because deliveries
            count that were never failures: drains, crashes, lost replies. On a FIFO queue it is twelve
            times: a message is received again whenever one of up to nine before it is tried again.

    Raises:
        ConfigError: A value that SQS would refuse.
    """

    name: str
    _: KW_ONLY
    fifo: bool = False
    visibility_timeout_seconds: int = 30
    retention_seconds: int = 345_600
    max_receive_count: int | None = None
    delay_seconds: int = 0

    def __post_init__(self) -> None:
        """Check everything, and report it together."""
        object.__setattr__(self, "name", _suffixed(self.name, fifo=self.fifo))
        problems = name_problems("queue", self.name, MAX_QUEUE_NAME_LENGTH - len(DEAD_LETTER_SUFFIX), fifo=self.fifo)
        ranges = (
            ("visibility_timeout_seconds", self.visibility_timeout_seconds, 1, 43_200),
            ("retention_seconds", self.retention_seconds, 60, 1_209_600),
            ("max_receive_count", self.max_receive_count, 1, 1_000),
            ("delay_seconds", self.delay_seconds, 0, MAX_DELAY_SECONDS),
        )
        problems += [
            f"queue {self.name!r}: {label}={value} is outside of {low:,} to {high:,}"
            for label, value, low, high in ranges
            if value is not None and not low <= value <= high
        ]
        if problems:
            raise ConfigError(problems)
        if self.max_receive_count == 1:
            warnings.warn(
                f"queue {self.name!r}: max_receive_count=1 dead-letters a message whose first delivery was lost on "
                "the way, though nobody ever saw it; use 2 or more",
                stacklevel=3,
            )

    @property
    def limit_bytes(self) -> int:
        """The largest message, and batch of messages, that SQS takes."""
        return QUEUE_LIMIT_BYTES

    @property
    def dead_letter_name(self) -> str:
        """The logical name of its dead-letter queue."""
        return _suffixed(self.name.removesuffix(FIFO_SUFFIX) + DEAD_LETTER_SUFFIX, fifo=self.fifo)


def _suffixed(name: str, *, fifo: bool) -> str:
    return name if not fifo or name.endswith(FIFO_SUFFIX) else name + FIFO_SUFFIX


def name_problems(kind: str, name: str, max_length: int, *, fifo: bool = False) -> list[str]:
    """Say what AWS would refuse about *name*: its characters and its length (CreateQueue, CreateTopic)."""
    problems = []
    if name.endswith(FIFO_SUFFIX) and not fifo:
        problems.append(f"{kind} name {name!r} is a FIFO {kind}'s: add fifo=True")
    elif not _NAME.fullmatch(name.removesuffix(FIFO_SUFFIX)):
        problems.append(f"{kind} name {name!r} may have only letters, digits, hyphens and underscores")
    if len(name) > max_length:
        problems.append(f"{kind} name {name!r} has {len(name)} characters; AWS takes at most {max_length}")
    return problems


class Topology(NamedTuple):
    """Topics, queues and subscriptions with their AWS attributes: what is wanted, or what is there.

    Attributes have AWS's names; those that AWS takes as JSON text are plain values here.

    Args:
        topics: By ARN.
        queues: By ARN; a dead-letter queue stands before the queue that redrives to it.
        subscriptions: By topic ARN and queue ARN.
    """

    topics: dict[str, Attributes]
    queues: dict[str, Attributes]
    subscriptions: dict[tuple[str, str], Attributes]


Attributes: TypeAlias = dict[str, Any]
