"""``smartpipe doctor --live`` as its users run it, on a broker with real trouble."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import boto3
import pytest

from tests.acceptance.conftest import TARGET
from tests.support.processes import smartpipe

if TYPE_CHECKING:
    from tests.acceptance.conftest import Command
    from tests.support.queues import Queues


def prefixed(name: str) -> str:
    return os.environ["SMARTPIPE_PREFIX"] + name


@pytest.mark.usefixtures("fast_broker")
def test_a_message_in_the_dead_letter_queue_an_open_policy_and_a_missing_subscription_are_found(
    inside: Command, queues: Queues
) -> None:
    assert inside("topology", "apply", "--yes", TARGET).returncode == 0
    healthy = smartpipe("doctor", "--live", TARGET)
    queues.send("jobs-dlq", "poison")
    sqs, sns = boto3.client("sqs"), boto3.client("sns")
    policy = {"Statement": [{"Sid": "oops", "Effect": "Allow", "Principal": "*", "Action": "sqs:*", "Resource": "*"}]}
    sqs.set_queue_attributes(QueueUrl=queues.url("jobs"), Attributes={"Policy": json.dumps(policy)})
    for page in sns.get_paginator("list_subscriptions").paginate():
        for one in page["Subscriptions"]:
            if one["TopicArn"].endswith(prefixed("jobs")):
                sns.unsubscribe(SubscriptionArn=one["SubscriptionArn"])

    ill = smartpipe("doctor", "--live", "--format", "json", TARGET)

    assert healthy.returncode == 0, healthy.stdout
    assert "and account 000000000000 in us-east-1: 0 errors" in healthy.stdout.splitlines()[-1]
    assert ill.returncode == 1
    report = json.loads(ill.stdout)
    found = {(one["code"], one["severity"], one["resource"]) for one in report["findings"]}
    assert {
        ("SP301", "warning", f"queue {prefixed('jobs-dlq')}"),
        ("SP303", "error", f"queue {prefixed('jobs')}"),
        ("SP306", "error", f"subscription {prefixed('jobs')} → {prefixed('jobs')}"),
        ("SP306", "warning", f"queue {prefixed('jobs')}"),
    } <= found
    assert queues.depth("jobs-dlq") == (1, 0)  # it has only been read
    assert report["account"] == "account 000000000000 in us-east-1"


@pytest.mark.usefixtures("fast_broker")
@pytest.mark.parametrize(
    ("variables", "code", "text"),
    [
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, 1, "SP300  error: account\n"),
        ({"AWS_ENDPOINT_URL": "localhost"}, 2, "must begin with http:// or https://"),
        ({"AWS_PROFILE": "nope", "AWS_CONFIG_FILE": "/dev/null"}, 2, "AWS configuration: The config profile (nope)"),
        ({"AWS_REGION": "", "AWS_DEFAULT_REGION": ""}, 2, "no AWS region: set AWS_REGION"),
    ],
)
def test_an_account_that_cannot_be_read_is_an_error_without_a_traceback(
    variables: dict[str, str], code: int, text: str
) -> None:
    result = smartpipe("doctor", "--live", TARGET, **variables)

    assert result.returncode == code
    assert text in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
