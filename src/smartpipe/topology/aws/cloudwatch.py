"""How long the oldest message of a queue has waited, which only CloudWatch knows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from smartpipe.topology.aws.read import retrying

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.transports.aws.transport import AwsTransport

QUERIES_AT_ONCE = 500
"""CloudWatch: GetMetricData."""
WINDOW = timedelta(minutes=10)
"""SQS reports once a minute, with a few minutes' delay, and not at all of queues idle for hours."""


async def oldest_ages(transport: AwsTransport, names: Sequence[str]) -> dict[str, float]:
    """Return the age in seconds of each queue's oldest message, minutes late as CloudWatch is; of some it knows none.

    Raises:
        TransportError: CloudWatch could not be asked.
    """
    client = await transport.client("cloudwatch")
    end = datetime.now(UTC)
    found: dict[str, float] = {}
    for start in range(0, len(names), QUERIES_AT_ONCE):
        part = names[start : start + QUERIES_AT_ONCE]
        queries = [_query(f"q{number}", name) for number, name in enumerate(part)]
        call = partial(client.get_metric_data, MetricDataQueries=queries, StartTime=end - WINDOW, EndTime=end)
        answer = await retrying(call, "cloudwatch:GetMetricData", "*")
        for result in answer.get("MetricDataResults", []):
            if result.get("Values"):
                latest = max(zip(result["Timestamps"], result["Values"], strict=True))
                found[part[int(result["Id"][1:])]] = float(latest[1])
    return found


def _query(id_: str, name: str) -> dict[str, object]:
    metric = {
        "Namespace": "AWS/SQS",
        "MetricName": "ApproximateAgeOfOldestMessage",
        "Dimensions": [{"Name": "QueueName", "Value": name}],
    }
    return {"Id": id_, "MetricStat": {"Metric": metric, "Period": 60, "Stat": "Maximum"}, "ReturnData": True}
