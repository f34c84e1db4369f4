"""Everything that the rules of the live layer read, as plain values. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence  # noqa: TC003 - fields of a named tuple
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal, NamedTuple

from smartpipe.names import name_in
from smartpipe.topology.aws.cloudwatch import Metric, Point
from smartpipe.topology.resources import dead_letter_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from smartpipe.names import Naming
    from smartpipe.topology.changes import Change
    from smartpipe.topology.checks import Note
    from smartpipe.topology.resources import Attributes, Denial, Topology

DAY_SECONDS = 86_400
RECENT_SECONDS = 300
"""The periods of the two groups of metrics: sums of whole days, and the last hours in detail."""
FILTER_DELAY = timedelta(minutes=15)
"""How long SNS may use an old filter policy."""
AGE = "ApproximateAgeOfOldestMessage"
DEPTH = "ApproximateNumberOfMessagesVisible"
EMPTY_RECEIVES = "NumberOfEmptyReceives"
SENT = "NumberOfMessagesSent"
NOISY_GROUPS = "ApproximateNumberOfNoisyGroups"
GROUPS_IN_FLIGHT = "ApproximateNumberOfGroupsWithInflightMessages"
FAILED = "NumberOfNotificationsFailed"
NOT_REDRIVEN = "NumberOfNotificationsFailedToRedriveToDlq"


class Alarm(NamedTuple):
    """A CloudWatch alarm.

    Args:
        metrics: Namespace, metric, and name of the queue or topic of each metric that it watches.
        state: ``OK``, ``ALARM`` or ``INSUFFICIENT_DATA``.
        notifies: Whether it has an action that is enabled.
        searches: Whether it finds its metrics with a query or a search, so that ``metrics`` may not have all of them.
        scales: Whether it only changes the number of tasks. It informs nobody, and need not have data at all times.
    """

    name: str
    metrics: frozenset[tuple[str, str, str]]
    state: str
    notifies: bool = True
    searches: bool = False
    scales: bool = False


class Key(NamedTuple):
    """A KMS key.

    Args:
        manager: ``CUSTOMER``, or ``AWS`` for a key whose policy cannot be changed.
        state: ``Enabled`` if it can be used.
        policy: Its policy as JSON; None if it could not be read.
    """

    manager: str
    state: str
    policy: str | None


class Clock(NamedTuple):
    """The time here and that in AWS's response to the same call."""

    here: datetime
    there: datetime

    @property
    def skew(self) -> timedelta:
        """How far the clock here is ahead."""
        return self.here - self.there


class Environment(NamedTuple):
    """Where and as whom this process calls AWS.

    Args:
        region: The region of this environment.
        urls: Addresses that name a region, by the name of the variable or queue that they belong to.
        account_id: The account of the credentials; None if AWS did not say.
        expiry: When the credentials of the environment expire; None if that is not known.
        temporary: Whether the credentials of the environment expire.
    """

    region: str
    urls: Mapping[str, str]
    account_id: str | None = None
    clock: Clock | None = None
    expiry: datetime | None = None
    temporary: bool = False


class Account(NamedTuple):
    """The resources of an account that services need, with their metrics, alarms and keys.

    Args:
        desired: The declared topology, without the resources that could not be read.
        changes: The plan for it.
        errors: The reasons why the plan is not possible.
        notes: Warnings of the plan.
        metrics: Values of each metric; metrics for which CloudWatch has no value are missing.
        alarms: None if they could not be read.
        keys: The keys of queues, by the name in the queue's attributes.
        pending: Subscriptions that wait for a confirmation, by topic and endpoint.
        filter_changes: When the filter policy of a subscription was changed, by the ARN of the subscription.
    """

    naming: Naming
    desired: Topology
    actual: Topology
    now: datetime
    changes: Sequence[Change] = ()
    errors: Sequence[str] = ()
    notes: Sequence[Note] = ()
    metrics: Mapping[Metric, Sequence[Point]] = {}
    alarms: Sequence[Alarm] | None = None
    keys: Mapping[str, Key] = {}
    pending: frozenset[tuple[str, str]] = frozenset()
    filter_changes: Mapping[str, datetime] = {}
    denials: Sequence[Denial] = ()

    @property
    def own_queues(self) -> dict[str, Attributes]:
        """The declared queues that exist and are not external, by ARN, with their deployed attributes."""
        return {
            arn: self.actual.queues[arn]
            for arn in self.desired.queues
            if arn in self.actual.queues and arn not in self.desired.external
        }

    @property
    def own_topics(self) -> dict[str, Attributes]:
        """The same for topics."""
        return {
            arn: self.actual.topics[arn]
            for arn in self.desired.topics
            if arn in self.actual.topics and arn not in self.desired.external
        }

    def list_queues(self) -> Iterator[tuple[str, str | None]]:
        """Yield the ARN of each declared queue that exists, and that of its dead-letter queue."""
        for arn, wanted in self.desired.queues.items():
            if "RedrivePolicy" in wanted and arn in self.actual.queues:
                yield arn, dead_letter_of(self.actual.queues[arn])

    def read(self, metric: Metric, combine: Callable[[list[float]], float]) -> float | None:
        """Return the values of a metric, in order of time, combined into one; None if CloudWatch has no value."""
        points = self.metrics.get(metric)
        return combine([point.value for point in points]) if points else None


def choose_last(values: list[float]) -> float:
    """Return the last value, for ``Account.read``."""
    return values[-1]


def list_daily_metrics(desired: Topology) -> list[Metric]:
    """Return the metrics whose sums of 14 days the rules read."""
    dead_letters = {dead_letter_of(one) for one in desired.queues.values()}
    found = [sum_of_days(SENT, arn) for arn in desired.queues if arn in dead_letters]
    found += [sum_of_days(EMPTY_RECEIVES, arn) for arn, one in desired.queues.items() if "RedrivePolicy" in one]
    for arn in desired.topics:
        if arn not in desired.external:
            found += [sum_of_days(name, arn) for name in (FAILED, NOT_REDRIVEN)]
    return found


def list_recent_metrics(desired: Topology) -> list[Metric]:
    """Return the metrics of which the rules read the last hours."""
    dead_letters = {dead_letter_of(one) for one in desired.queues.values()}
    found = [
        metric
        for arn in desired.queues
        if arn in dead_letters
        for metric in (recent(AGE, arn, "Maximum"), recent(DEPTH, arn, "Minimum"))
    ]
    for arn, attributes in desired.queues.items():
        if "RedrivePolicy" not in attributes:
            continue
        found.append(recent(AGE, arn, "Maximum"))
        if attributes.get("FifoQueue") == "true":
            found += [recent(DEPTH, arn, "Minimum"), recent(GROUPS_IN_FLIGHT, arn, "Maximum")]
        else:
            found.append(recent(NOISY_GROUPS, arn, "Maximum"))
    return found


def sum_of_days(name: str, arn: str) -> Metric:
    """Return the sum of a metric of a queue or topic in each day."""
    return Metric("AWS/SNS" if ":sns:" in arn else "AWS/SQS", name, name_in(arn), "Sum", DAY_SECONDS)


def recent(name: str, arn: str, statistic: Literal["Maximum", "Minimum"]) -> Metric:
    """Return the highest or lowest value of a queue's metric in each five minutes."""
    return Metric("AWS/SQS", name, name_in(arn), statistic, RECENT_SECONDS)
