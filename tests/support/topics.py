"""Find topics on the environment's broker, with boto3."""

from __future__ import annotations

import os
from typing import Any

import boto3


def list_topic_arns() -> list[str]:
    """Return the ARNs of all topics. A page of the response has 100, and the tests of a broker create more."""
    sns: Any = boto3.client("sns")
    return [one["TopicArn"] for page in sns.get_paginator("list_topics").paginate() for one in page["Topics"]]


def find_topic_arn(name: str) -> str:
    """Return the ARN of the topic with this logical name, under the environment's prefix."""
    ending = f":{os.environ['SMARTPIPE_PREFIX']}{name}"
    [arn] = [arn for arn in list_topic_arns() if arn.endswith(ending)]
    return arn
