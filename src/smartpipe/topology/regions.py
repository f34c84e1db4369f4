"""The service principal that SNS uses to deliver from a topic's region to a queue's region. Pure.

Source: Amazon SNS, "Sending Amazon SNS messages to an Amazon SQS queue or AWS Lambda function in a different Region";
AWS Account Management, "Enable or disable AWS Regions in your account".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smartpipe.names import partition_in, region_in

if TYPE_CHECKING:
    from collections.abc import Iterable

SNS = "sns.amazonaws.com"
ENABLED_BY_DEFAULT = (
    "ap-northeast-1", "ap-northeast-2", "ap-northeast-3", "ap-south-1", "ap-southeast-1", "ap-southeast-2",
    "ca-central-1", "eu-central-1", "eu-north-1", "eu-west-1", "eu-west-2", "eu-west-3", "sa-east-1", "us-east-1",
    "us-east-2", "us-west-1", "us-west-2",
)  # fmt: skip
"""The regions of the partition ``aws`` that every account has. The list is complete: each region launched after
20 March 2019 is opt-in, so a region that is not in the list is treated as opt-in."""
LISTED_TWICE = frozenset({"ap-northeast-3"})
"""Osaka is enabled by default, but the page of SNS lists it among the opt-in regions. Both principals are allowed."""
_PARTITION = "aws"
"""The other partitions have no opt-in regions."""


def sns_principals(topic_arns: Iterable[str], queue_region: str) -> list[str]:
    """Return the service principals that a queue's policy has to allow for deliveries from these topics.

    Within one region the principal is ``sns.amazonaws.com``. Between two regions of which one is opt-in, it is that of
    the queue's region, unless only the topic's region is opt-in. SNS drops a message that the policy refuses, without
    an error.

    Args:
        topic_arns: ARNs, or patterns of ARNs that end with ``*``.
    """
    found = {one for arn in topic_arns for one in _principals(partition_in(arn), region_in(arn), queue_region)}
    return sorted(found, key=lambda one: (one != SNS, one))


def is_opt_in(region: str) -> bool:
    """Return whether an account has to enable *region*, a region of the partition ``aws``."""
    return region not in ENABLED_BY_DEFAULT


def _principals(partition: str, topic_region: str, queue_region: str) -> set[str]:
    if partition != _PARTITION or topic_region == queue_region:
        return {SNS}
    if is_opt_in(queue_region):
        return {_regional(queue_region)}
    if is_opt_in(topic_region):
        return {_regional(topic_region)}
    return {SNS, *map(_regional, LISTED_TWICE.intersection((topic_region, queue_region)))}


def _regional(region: str) -> str:
    return f"sns.{region}.amazonaws.com"
