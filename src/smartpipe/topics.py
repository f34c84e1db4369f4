"""Topics and queues as users declare them, by logical name: the environment's prefix comes later."""

from __future__ import annotations

import re
import warnings
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING

from smartpipe.errors import ConfigError
from smartpipe.limits import (
    DEFAULT_TOPIC_LIMIT_BYTES,
    MAX_DELAY_SECONDS,
    MAX_MESSAGE_BYTES,
    MAX_QUEUE_NAME_LENGTH,
    MAX_RECEIVES,
    MAX_TOPIC_NAME_LENGTH,
    MAX_VISIBILITY_SECONDS,
    MIN_MESSAGE_LIMIT_BYTES,
)
from smartpipe.names import is_arn, name_in
from smartpipe.tags import tag_problems

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smartpipe.filter_policy import FilterPolicy

DEAD_LETTER_SUFFIX = "-dlq"
FIFO_SUFFIX = ".fifo"
"""What SNS and SQS want FIFO names to end with; it counts for their length."""
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_ARN = re.compile(r"arn:aws[a-z-]*:(sns|sqs):[a-z0-9-]+:\d{12}:[A-Za-z0-9_-]+(\.fifo)?")


@dataclass(frozen=True)
class Topic:
    """An SNS topic: ours by its name, or somebody else's by its ARN.

    Args:
        name: Its name without the environment's prefix (``SMARTPIPE_PREFIX``). A FIFO topic's ends with
            ``.fifo``, which is added if it is missing. With an ``arn``, the ARN.
        fifo: Keep the events of one ``key`` in order, all the way to FIFO queues.
        limit_bytes: The largest message, and the largest batch of messages, that it takes: 1,024 to
            1,048,576; SNS's own default is 262,144. Above that SNS allows 100 subscriptions at most.
        arn: Of a topic that another team, account or region owns: published and subscribed to as it
            is, never created nor changed. In another account it has to allow ``sns:Subscribe``.
        kms_key: Id, ARN or alias of the KMS key that encrypts it; None leaves it to SNS. Publishers
            then need ``kms:GenerateDataKey`` and ``kms:Decrypt``.
        high_throughput: Of a FIFO topic: its quota counts for each group (``FifoThroughputScope=
            MessageGroup``), which AWS never takes back.
        tags: Besides smartpipe's own.

    Raises:
        ConfigError: What AWS would refuse.
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
        """Check everything, and report it together."""
        problems = []
        if self.arn is None:
            object.__setattr__(self, "name", _suffixed(self.name, fifo=self.fifo))
            problems += name_problems("topic", self.name, MAX_TOPIC_NAME_LENGTH, fifo=self.fifo)
        else:
            problems += _foreign_topic_problems(self)
            object.__setattr__(self, "name", self.arn)
            object.__setattr__(self, "fifo", self.arn.endswith(FIFO_SUFFIX))
        if not MIN_MESSAGE_LIMIT_BYTES <= self.limit_bytes <= MAX_MESSAGE_BYTES:
            problems.append(f"topic {self.name!r}: limit_bytes={self.limit_bytes} is outside of 1,024 to 1,048,576")
        problems += _common_problems("topic", self)
        if problems:
            raise ConfigError(problems)

    def __hash__(self) -> int:
        """Hash the name alone: each publish looks its destination up."""
        return hash(self.name)

    @property
    def given(self) -> bool:
        """Whether it is somebody else's."""
        return self.arn is not None


@dataclass(frozen=True)
class Queue:
    """An SQS queue; its dead-letter queue has the same name with ``-dlq`` behind it.

    Args:
        name: Its name without the environment's prefix (``SMARTPIPE_PREFIX``). A FIFO queue's ends with
            ``.fifo``, which is added if it is missing; its dead-letter queue is then called ``NAME-dlq.fifo``.
            An existing one may be named by its ARN, of another account too; then it gets no prefix.
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
        existing: It is another team's: checked at the worker's start and in a plan, never changed nor subscribed.
        dead_letter: The name of its dead-letter queue, where that is not ``NAME-dlq``; for existing queues.
        direct: Nothing subscribes it: it gets what is sent to it by name, ``publish(..., queue=...)``.
        filter_policy: What else events must be to get here.
        kms_key: Id, ARN or alias of the KMS key that encrypts it and its dead-letter queue; by default SQS's
            own keys do (SSE-SQS). SNS has to be allowed in the key's policy: a plan prints the statement.
        high_throughput: Of a FIFO queue: quota and deduplication count for each group.
        tags: Besides smartpipe's own, on the dead-letter queue too.

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
        """Check everything, and report it together."""
        object.__setattr__(self, "name", _suffixed(self.name, fifo=self.fifo))
        problems = _queue_name_problems(self)
        ranges = (
            ("visibility_timeout_seconds", self.visibility_timeout_seconds, 1, MAX_VISIBILITY_SECONDS),
            ("retention_seconds", self.retention_seconds, 60, 1_209_600),
            ("max_receive_count", self.max_receive_count, 1, MAX_RECEIVES),
            ("delay_seconds", self.delay_seconds, 0, MAX_DELAY_SECONDS),
        )
        problems += [
            f"queue {self.name!r}: {label}={value} is outside of {low:,} to {high:,}"
            for label, value, low, high in ranges
            if value is not None and not low <= value <= high
        ]
        problems += _common_problems("queue", self)
        if problems:
            raise ConfigError(problems)
        if self.max_receive_count == 1:
            warnings.warn(
                f"queue {self.name!r}: max_receive_count=1 dead-letters a message whose first delivery was lost on "
                "the way, though nobody ever saw it; use 2 or more",
                stacklevel=3,
            )

    def __hash__(self) -> int:
        """Hash the name alone: each publish looks its destination up."""
        return hash(self.name)

    @property
    def limit_bytes(self) -> int:
        """The largest message, and batch of messages, that SQS takes."""
        return MAX_MESSAGE_BYTES

    @property
    def dead_letter_name(self) -> str:
        """The logical name, or the ARN, of its dead-letter queue."""
        if self.dead_letter is None:
            return _suffixed(self.name.removesuffix(FIFO_SUFFIX) + DEAD_LETTER_SUFFIX, fifo=self.fifo)
        name = _suffixed(self.dead_letter, fifo=self.fifo)
        beside = is_arn(self.name) and not is_arn(name)
        return f"{self.name.rpartition(':')[0]}:{name}" if beside else name


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


def _foreign_topic_problems(topic: Topic) -> list[str]:
    problems = []
    if not _ARN.fullmatch(topic.arn or "") or ":sns:" not in (topic.arn or ""):
        problems.append(f"topic arn={topic.arn!r} is no topic's ARN, as in arn:aws:sns:eu-west-1:123456789012:orders")
    if topic.name:
        problems.append(f"topic {topic.name!r}: with an arn it needs no name; write Topic(arn=...)")
    if topic.tags or topic.kms_key or topic.high_throughput:
        problems.append(f"topic {topic.arn!r} is somebody else's: its tags, key and throughput are theirs to set")
    return problems


def _queue_name_problems(queue: Queue) -> list[str]:
    if not is_arn(queue.name):
        own = DEAD_LETTER_SUFFIX if queue.dead_letter is None else ""
        problems = name_problems("queue", queue.name, MAX_QUEUE_NAME_LENGTH - len(own), fifo=queue.fifo)
    else:
        problems = name_problems("queue", name_in(queue.name), MAX_QUEUE_NAME_LENGTH, fifo=queue.fifo)
        if not _ARN.fullmatch(queue.name) or ":sqs:" not in queue.name:
            problems.append(f"queue {queue.name!r} is no queue's ARN, as in arn:aws:sqs:eu-west-1:123456789012:mailer")
        if not queue.existing:
            problems.append(
                f"queue {queue.name!r}: an ARN is of a queue that is there; add existing=True, or use a name"
            )
    if queue.existing and (queue.filter_policy or queue.kms_key or queue.tags or queue.high_throughput or queue.direct):
        problems.append(
            f"queue {queue.name!r} is somebody else's: its filter, key, tags and throughput are theirs to set"
        )
    if queue.dead_letter is not None:
        if not queue.existing:
            problems.append(f"queue {queue.name!r}: dead_letter= is for existing queues; ours is always called -dlq")
        problems += name_problems(
            "queue", name_in(_suffixed(queue.dead_letter, fifo=queue.fifo)), MAX_QUEUE_NAME_LENGTH, fifo=queue.fifo
        )
    return problems


def _common_problems(kind: str, declared: Topic | Queue) -> list[str]:
    problems = [f"{kind} {declared.name!r}: {problem}" for problem in tag_problems(declared.tags)]
    if declared.high_throughput and not declared.fifo:
        problems.append(
            f"{kind} {declared.name!r}: high_throughput counts by group, and only FIFO has groups: fifo=True"
        )
    if declared.kms_key is not None and not declared.kms_key.strip():
        problems.append(f"{kind} {declared.name!r}: kms_key={declared.kms_key!r} is empty; leave it out for none")
    return problems
