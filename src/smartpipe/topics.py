"""Declarations of topics and queues, by logical name. The environment's prefix is added later."""

from __future__ import annotations

import re
import warnings
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING

from smartpipe.characters import character_error
from smartpipe.errors import ConfigError
from smartpipe.limits import (
    DEFAULT_TOPIC_LIMIT_BYTES,
    MAX_DELAY_SECONDS,
    MAX_MESSAGE_BYTES,
    MAX_QUEUE_NAME_LENGTH,
    MAX_RECEIVES,
    MAX_RETENTION_SECONDS,
    MAX_TOPIC_NAME_LENGTH,
    MAX_VISIBILITY_SECONDS,
    MIN_MESSAGE_LIMIT_BYTES,
)
from smartpipe.names import is_arn, name_in
from smartpipe.tags import tag_errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smartpipe.filter_policy import FilterPolicy

DEAD_LETTER_SUFFIX = "-dlq"
FIFO_SUFFIX = ".fifo"
"""The suffix that SNS and SQS require of FIFO names. It counts towards their length."""
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_ARN = re.compile(r"arn:aws[a-z-]*:(sns|sqs):[a-z0-9-]+:\d{12}:[A-Za-z0-9_-]+(\.fifo)?")


@dataclass(frozen=True)
class Topic:
    """An SNS topic: your own, declared by its name, or an external one, declared by its ARN.

    Args:
        name: Its name without the environment's prefix (``SMARTPIPE_PREFIX``). The name of a FIFO topic ends with
            ``.fifo``, which is added if it is missing. With ``arn``, the name is the ARN.
        fifo: Keep the events of one ``key`` in order, up to FIFO queues.
        limit_bytes: The maximum size of a message, and of a batch of messages: 1,024 to 1,048,576. The default of
            SNS is 262,144. Above that, SNS allows at most 100 subscriptions.
        arn: The ARN of an external topic, which another team, account or region owns. You can publish and subscribe
            to it; it is never created or changed. A topic in another account must allow ``sns:Subscribe``.
        kms_key: Id, ARN or alias of the KMS key that encrypts the topic; None leaves it to SNS. With a key, publishers
            need ``kms:GenerateDataKey`` and ``kms:Decrypt``.
        high_throughput: For a FIFO topic: apply its quota to each group (``FifoThroughputScope=MessageGroup``). AWS
            does not allow you to undo this.
        tags: Further tags, besides those of smartpipe.

    Raises:
        ConfigError: AWS would refuse the declaration.
    """

    name: str = ""
    _: KW_ONLY
    fifo: bool = False
    limit_bytes: int = DEFAULT_TOPIC_LIMIT_BYTES
    arn: str | None = None
    kms_key: str | None = None
    high_throughput: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the declaration, and report all errors together."""
        errors = []
        if self.arn is None:
            object.__setattr__(self, "name", _add_suffix(self.name, fifo=self.fifo))
            errors += name_errors("topic", self.name, MAX_TOPIC_NAME_LENGTH, fifo=self.fifo)
        else:
            errors += _external_topic_errors(self)
            object.__setattr__(self, "name", self.arn)
            object.__setattr__(self, "fifo", self.arn.endswith(FIFO_SUFFIX))
        if not MIN_MESSAGE_LIMIT_BYTES <= self.limit_bytes <= MAX_MESSAGE_BYTES:
            errors.append(f"topic {self.name!r}: limit_bytes={self.limit_bytes} is outside of 1,024 to 1,048,576")
        errors += _common_errors("topic", self)
        if errors:
            raise ConfigError(errors)

    def __hash__(self) -> int:
        """Hash only the name, because each publish looks up its destination."""
        return hash(self.name)

    @property
    def external(self) -> bool:
        """Whether it was declared by its ARN, so that smartpipe never creates or changes it."""
        return self.arn is not None


@dataclass(frozen=True)
class Queue:
    """An SQS queue. Its dead-letter queue has the same name with the suffix ``-dlq``.

    Args:
        name: Its name without the environment's prefix (``SMARTPIPE_PREFIX``). The name of a FIFO queue ends with
            ``.fifo``, which is added if it is missing; its dead-letter queue is then called ``NAME-dlq.fifo``.
            An existing queue, also of another account, can be declared by its ARN, and gets no prefix.
        fifo: Deliver the messages of one group in order, one at a time.
        delay_seconds: How long SQS hides each new message: 0 to 900.
        visibility_timeout_seconds: How long a crashed worker's messages stay hidden, which is also the lease that
            heartbeats renew: 1 to 43,200. A short timeout costs requests, a long one costs recovery time.
        retention_seconds: How long SQS keeps a message that is not handled: 60 to 1,209,600. The default is 4 days,
            as in SQS. The dead-letter queue always keeps messages for 14 days.
        max_receive_count: The number of deliveries, 1 to 1,000, after which SQS itself moves a message to the
            dead-letter queue, without a reason. It is the backstop for crashes. The default is three times the
            attempts of the retry policies on this queue (at least 10), because SQS also counts deliveries that did
            not fail, such as those lost in drains, crashes and lost replies. On a FIFO queue the default is twelve
            times the attempts: a message is received again each time one of up to nine messages before it is retried.
        existing: Another team owns the queue. It is checked in a plan and when the worker starts, but never changed
            or subscribed.
        dead_letter: The name of the dead-letter queue of an existing queue, if it is not ``NAME-dlq``.
        direct: The queue has no subscriptions. It gets only messages sent to it by name, ``publish(..., queue=...)``.
        filter_policy: A further condition for events to be delivered to this queue.
        kms_key: Id, ARN or alias of the KMS key that encrypts the queue and its dead-letter queue; by default SQS
            uses its own keys (SSE-SQS). The key's policy must allow SNS to use it: a plan prints the statement.
        high_throughput: For a FIFO queue: apply quota and deduplication to each group.
        tags: Further tags of the queue and its dead-letter queue, besides those of smartpipe.

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
    existing: bool = False
    dead_letter: str | None = None
    direct: bool = False
    filter_policy: FilterPolicy | None = None
    kms_key: str | None = None
    high_throughput: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the declaration, and report all errors together."""
        object.__setattr__(self, "name", _add_suffix(self.name, fifo=self.fifo))
        errors = _queue_name_errors(self)
        ranges = (
            ("visibility_timeout_seconds", self.visibility_timeout_seconds, 1, MAX_VISIBILITY_SECONDS),
            ("retention_seconds", self.retention_seconds, 60, MAX_RETENTION_SECONDS),
            ("max_receive_count", self.max_receive_count, 1, MAX_RECEIVES),
            ("delay_seconds", self.delay_seconds, 0, MAX_DELAY_SECONDS),
        )
        errors += [
            f"queue {self.name!r}: {label}={value} is outside of {low:,} to {high:,}"
            for label, value, low, high in ranges
            if value is not None and not low <= value <= high
        ]
        errors += _common_errors("queue", self)
        if errors:
            raise ConfigError(errors)
        if self.max_receive_count == 1:
            warnings.warn(
                f"queue {self.name!r}: with max_receive_count=1, SQS dead-letters a message if its first delivery is "
                "lost, although no handler ever saw it; use 2 or more",
                stacklevel=3,
            )

    def __hash__(self) -> int:
        """Hash only the name, because each publish looks up its destination."""
        return hash(self.name)

    @property
    def limit_bytes(self) -> int:
        """The maximum size of a message, and of a batch of messages, in SQS."""
        return MAX_MESSAGE_BYTES

    @property
    def dead_letter_name(self) -> str:
        """The logical name, or the ARN, of its dead-letter queue."""
        if self.dead_letter is None:
            return _add_suffix(self.name.removesuffix(FIFO_SUFFIX) + DEAD_LETTER_SUFFIX, fifo=self.fifo)
        name = _add_suffix(self.dead_letter, fifo=self.fifo)
        in_same_account = is_arn(self.name) and not is_arn(name)
        return f"{self.name.rpartition(':')[0]}:{name}" if in_same_account else name


def _add_suffix(name: str, *, fifo: bool) -> str:
    return name if not fifo or name.endswith(FIFO_SUFFIX) else name + FIFO_SUFFIX


def name_errors(kind: str, name: str, max_length: int, *, fifo: bool = False) -> list[str]:
    """Return a sentence for each rule of AWS about characters and length that *name* breaks.

    Source: API references of CreateQueue and CreateTopic.
    """
    errors = []
    if name.endswith(FIFO_SUFFIX) and not fifo:
        errors.append(f"{kind} name {name!r} is the name of a FIFO {kind}: add fifo=True")
    elif not _NAME.fullmatch(name.removesuffix(FIFO_SUFFIX)):
        errors.append(f"{kind} name {name!r} may have only letters, digits, hyphens and underscores")
    if len(name) > max_length:
        errors.append(f"{kind} name {name!r} has {len(name)} characters; AWS allows at most {max_length}")
    return errors


def _external_topic_errors(topic: Topic) -> list[str]:
    errors = []
    if not _ARN.fullmatch(topic.arn or "") or ":sns:" not in (topic.arn or ""):
        errors.append(
            f"topic arn={topic.arn!r} is not the ARN of a topic, as in arn:aws:sns:eu-west-1:123456789012:orders"
        )
    if topic.name:
        errors.append(f"topic {topic.name!r}: with an arn it needs no name; write Topic(arn=...)")
    if topic.tags or topic.kms_key or topic.high_throughput:
        errors.append(f"topic {topic.arn!r} is external: only its owner can set its tags, key and throughput")
    return errors


def _queue_name_errors(queue: Queue) -> list[str]:
    if not is_arn(queue.name):
        own = DEAD_LETTER_SUFFIX if queue.dead_letter is None else ""
        errors = name_errors("queue", queue.name, MAX_QUEUE_NAME_LENGTH - len(own), fifo=queue.fifo)
    else:
        errors = name_errors("queue", name_in(queue.name), MAX_QUEUE_NAME_LENGTH, fifo=queue.fifo)
        if not _ARN.fullmatch(queue.name) or ":sqs:" not in queue.name:
            errors.append(
                f"queue {queue.name!r} is not the ARN of a queue, as in arn:aws:sqs:eu-west-1:123456789012:mailer"
            )
        if not queue.existing:
            errors.append(f"queue {queue.name!r}: an ARN names a queue that exists; add existing=True, or use a name")
    if queue.existing and (queue.filter_policy or queue.kms_key or queue.tags or queue.high_throughput or queue.direct):
        errors.append(
            f"queue {queue.name!r} is external: only its owner can set its filter policy, key, tags and throughput, or "
            "direct=True"
        )
    if queue.dead_letter is not None:
        if not queue.existing:
            errors.append(
                f"queue {queue.name!r}: dead_letter= is for existing queues; smartpipe calls its own NAME-dlq"
            )
        errors += name_errors(
            "queue", name_in(_add_suffix(queue.dead_letter, fifo=queue.fifo)), MAX_QUEUE_NAME_LENGTH, fifo=queue.fifo
        )
    return errors


def _common_errors(kind: str, declared: Topic | Queue) -> list[str]:
    errors = [f"{kind} {declared.name!r}: {error}" for error in tag_errors(declared.tags)]
    if declared.high_throughput and not declared.fifo:
        errors.append(
            f"{kind} {declared.name!r}: high_throughput applies to groups, which only FIFO has: add fifo=True"
        )
    if declared.kms_key is not None and not declared.kms_key.strip():
        errors.append(f"{kind} {declared.name!r}: kms_key={declared.kms_key!r} is empty; leave it out for no key")
    elif declared.kms_key is not None and (error := character_error(declared.kms_key, ascii_only=True)):
        errors.append(f"{kind} {declared.name!r}: kms_key={declared.kms_key!r} {error}")
    return errors
