"""The ages of messages, from a CloudWatch on loopback."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import boto3

from smartpipe.transport import Depth
from smartpipe.transports.measured import measure
from smartpipe.transports.open import open_aws_transport
from smartpipe.worker.queue_ages import QueueAges, session_of
from tests.conftest import lead_to

if TYPE_CHECKING:
    import pytest

    from smartpipe import EmbeddedBroker


def put_age(queue: str, seconds: float) -> None:
    datum = {
        "MetricName": "ApproximateAgeOfOldestMessage",
        "Dimensions": [{"Name": "QueueName", "Value": queue}],
        "Value": seconds,
        "Timestamp": datetime.now(UTC) - timedelta(minutes=2),  # as late as CloudWatch, and not in an unfinished minute
    }
    boto3.client("cloudwatch").put_metric_data(Namespace="AWS/SQS", MetricData=[datum])


async def test_the_age_of_a_queue_is_found_by_its_name_in_the_account(
    moto: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead_to(moto.environment, monkeypatch)
    monkeypatch.setenv("SMARTPIPE_PREFIX", "staging-")
    put_age("staging-mail", 42.0)
    put_age("mail", 99.0)
    transport = open_aws_transport()
    ages = QueueAges(session_of(measure(transport)), 60)
    try:
        await ages.read({"mail": Depth(1, 0, 0), "mail-dlq": Depth(0, 0, 0)})
    finally:
        await transport.aclose()

    assert ages.values == {"mail": 42.0, "mail-dlq": 0.0}
