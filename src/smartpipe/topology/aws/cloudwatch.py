"""The metrics of queues and topics, which only CloudWatch knows, such as the age of a queue's oldest message."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from smartpipe.topology.aws.calls import call_with_retries

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from smartpipe.transports.aws.session import AwsSession

    Ask: TypeAlias = Callable[[Callable[[], Awaitable[Any]], str, str], Awaitable[Any]]
    """Makes a call with the IAM action and the resource of the call; None if IAM refuses it, or raises an error."""

MAX_QUERIES = 500
"""CloudWatch: the number of queries in one GetMetricData."""
WINDOW = timedelta(minutes=10)
"""SQS reports the age once a minute, a few minutes late, and not for queues that have been idle for hours."""
DIMENSIONS = {"AWS/SQS": "QueueName", "AWS/SNS": "TopicName"}


class Metric(NamedTuple):
    """A metric of one queue or topic.

    Args:
        namespace: ``AWS/SQS`` or ``AWS/SNS``.
        resource: The physical name of the queue or topic.
    """

    namespace: Literal["AWS/SQS", "AWS/SNS"]
    name: str
    resource: str
    statistic: Literal["Sum", "Maximum", "Minimum"]
    period_seconds: int = 60


class Point(NamedTuple):
    """The value of a metric in the period that begins at a moment."""

    moment: datetime
    value: float


async def read_metrics(
    session: AwsSession, metrics: Iterable[Metric], window: timedelta, ask: Ask = call_with_retries
) -> dict[Metric, list[Point]]:
    """Return the values of each metric in the *window* until now, in order of time.

    Metrics for which CloudWatch has no value are left out, and all of them if *ask* returns None.

    Raises:
        TransportError: CloudWatch could not be asked.
    """
    client = await session.client("cloudwatch")
    end = datetime.now(UTC)
    wanted = list(dict.fromkeys(metrics))
    found: dict[Metric, list[Point]] = {}
    for start in range(0, len(wanted), MAX_QUERIES):
        part = wanted[start : start + MAX_QUERIES]
        queries = [_build_query(f"q{number}", metric) for number, metric in enumerate(part)]
        token: dict[str, str] = {}
        while True:
            call = partial(
                client.get_metric_data, MetricDataQueries=queries, StartTime=end - window, EndTime=end, **token
            )
            page = await ask(call, "cloudwatch:GetMetricData", "*")
            if page is None:
                return {}
            for result in page.get("MetricDataResults", []):
                if result.get("Values"):
                    points = map(Point, result["Timestamps"], map(float, result["Values"]))
                    found.setdefault(part[int(result["Id"][1:])], []).extend(points)
            if not page.get("NextToken"):
                break
            token = {"NextToken": page["NextToken"]}
    return {metric: sorted(points) for metric, points in found.items()}


async def oldest_ages(session: AwsSession, names: Sequence[str]) -> dict[str, float]:
    """Return the age in seconds of each queue's oldest message, a few minutes late.

    Queues for which CloudWatch has no value are left out.

    Raises:
        TransportError: CloudWatch could not be asked.
    """
    metrics = [Metric("AWS/SQS", "ApproximateAgeOfOldestMessage", name, "Maximum") for name in names]
    found = await read_metrics(session, metrics, WINDOW)
    return {metric.resource: points[-1].value for metric, points in found.items()}


def _build_query(id_: str, metric: Metric) -> dict[str, object]:
    described = {
        "Namespace": metric.namespace,
        "MetricName": metric.name,
        "Dimensions": [{"Name": DIMENSIONS[metric.namespace], "Value": metric.resource}],
    }
    stat = {"Metric": described, "Period": metric.period_seconds, "Stat": metric.statistic}
    return {"Id": id_, "MetricStat": stat, "ReturnData": True}
