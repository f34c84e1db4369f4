"""The age of the oldest message in a queue, which only CloudWatch knows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from smartpipe.topology.aws.calls import call_with_retries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.transports.aws.session import AwsSession

MAX_QUERIES = 500
"""CloudWatch: the number of queries in one GetMetricData."""
WINDOW = timedelta(minutes=10)
"""SQS reports the age once a minute, a few minutes late, and not for queues that have been idle for hours."""


async def oldest_ages(session: AwsSession, names: Sequence[str]) -> dict[str, float]:
    """Return the age in seconds of each queue's oldest message, a few minutes late.

    Queues for which CloudWatch has no value are left out.

    Raises:
        TransportError: CloudWatch could not be asked.
    """
    client = await session.client("cloudwatch")
    end = datetime.now(UTC)
    found: dict[str, float] = {}
    for start in range(0, len(names), MAX_QUERIES):
        part = names[start : start + MAX_QUERIES]
        queries = [_build_query(f"q{number}", name) for number, name in enumerate(part)]
        call = partial(client.get_metric_data, MetricDataQueries=queries, StartTime=end - WINDOW, EndTime=end)
        response = await call_with_retries(call, "cloudwatch:GetMetricData", "*")
        for result in response.get("MetricDataResults", []):
            if result.get("Values"):
                latest = max(zip(result["Timestamps"], result["Values"], strict=True))
                found[part[int(result["Id"][1:])]] = float(latest[1])
    return found


def _build_query(id_: str, name: str) -> dict[str, object]:
    metric = {
        "Namespace": "AWS/SQS",
        "MetricName": "ApproximateAgeOfOldestMessage",
        "Dimensions": [{"Name": "QueueName", "Value": name}],
    }
    return {"Id": id_, "MetricStat": {"Metric": metric, "Period": 60, "Stat": "Maximum"}, "ReturnData": True}
