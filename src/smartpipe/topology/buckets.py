"""The S3 bucket that large bodies wait in: what it has to be, and what one needs to be allowed. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

LIFECYCLE = "Lifecycle"
"""Stands among a bucket's attributes: what our rule says."""
RULE = "smartpipe-claim-check"

READ_ACTIONS = ("s3:GetObject",)
"""What a consumer needs on the bucket's objects."""

WRITE_ACTIONS = ("s3:PutObject",)
"""What a publisher needs there."""

CREATE_ACTIONS = (
    "s3:CreateBucket",
    "s3:GetBucketTagging",
    "s3:GetLifecycleConfiguration",
    "s3:ListBucket",
    "s3:PutBucketTagging",
    "s3:PutLifecycleConfiguration",
)
"""What making it, and seeing whether it is as it should be, needs on the bucket's ARN."""


class Bucket(NamedTuple):
    """A bucket of payloads.

    Args:
        prefix: Of the keys: ends with a slash, or is empty.
        days: After which S3 deletes them.
        owner: The account that it belongs to; None: the environment's. A bucket of another account is its owner's to
            make and to change.
    """

    name: str
    prefix: str
    days: int
    owner: str | None = None

    @property
    def expiry(self) -> dict[str, Any]:
        """What its lifecycle rule says."""
        return {"Prefix": self.prefix, "Days": self.days, "Status": "Enabled"}

    def objects_arn(self, partition: str) -> str:
        """Return the ARN pattern of its objects."""
        return objects_arn(partition, self.name, self.prefix)


def objects_arn(partition: str, bucket: str, prefix: str) -> str:
    """Return the ARN pattern of the objects with *prefix* in a bucket, or behind an access point's ARN.

    Source: Amazon S3, "Configuring IAM policies for using access points".
    """
    if bucket.startswith("arn:"):
        return f"{bucket}/object/{prefix}*"
    return f"arn:{partition}:s3:::{bucket}/{prefix}*"


def rule_of(expiry: dict[str, Any]) -> dict[str, Any]:
    """Return the lifecycle rule: https://docs.aws.amazon.com/AmazonS3/latest/API/API_LifecycleRule.html.

    One for each prefix, so that environments may share a bucket. The second expiry is for buckets with versions.
    """
    return {
        "ID": _id(expiry["Prefix"]),
        "Filter": {"Prefix": expiry["Prefix"]},
        "Status": expiry["Status"],
        "Expiration": {"Days": expiry["Days"]},
        "NoncurrentVersionExpiration": {"NoncurrentDays": 1},
    }


def with_rule(rules: list[dict[str, Any]], expiry: dict[str, Any]) -> list[dict[str, Any]]:
    """Return *rules*, which belong to whoever wrote them, with ours among them: S3 takes all rules or none."""
    ours = rule_of(expiry)
    return [*(rule for rule in rules if rule.get("ID") != ours["ID"]), ours]


def expiry_in(rules: list[dict[str, Any]], prefix: str) -> dict[str, Any]:
    """Return what our rule for *prefix* says; empty where there is none."""
    for rule in rules:
        if rule.get("ID") == _id(prefix):
            found = (rule.get("Filter") or {}).get("Prefix", rule.get("Prefix", ""))
            days = rule.get("Expiration", {}).get("Days")
            return {"Prefix": found or "", "Days": days, "Status": rule.get("Status")}
    return {}


def _id(prefix: str) -> str:
    return f"{RULE}-{prefix.rstrip('/')}" if prefix else RULE
