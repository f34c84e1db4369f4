"""The DynamoDB table of idempotency claims and the S3 bucket of payloads. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from smartpipe.envelope.encoding import ClaimCheck
from smartpipe.envelope.trusted_locations import TrustedLocations
from smartpipe.errors import ConfigError
from smartpipe.settings import ClaimSettings, PayloadSettings
from smartpipe.tags import APPLICATION
from smartpipe.topology.resources import TAGS

if TYPE_CHECKING:
    from smartpipe.names import Naming
    from smartpipe.topology.resources import Attributes

TTL_ATTRIBUTE = "expires_at"
"""For UpdateTimeToLive: epoch seconds, after which DynamoDB deletes the item, typically within a few days."""

KEY_ATTRIBUTE = "claim"
"""Tables of earlier versions have ``key``: their claims name no service and no queue, and are not mixed with ours."""
TABLE_NAME = re.compile(r"[A-Za-z0-9_.-]{3,255}")
"""https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Constraints.html"""

TABLE_USE_ACTIONS = ("dynamodb:DescribeTable", "dynamodb:UpdateItem", "dynamodb:DeleteItem")
"""What a worker needs on the table's ARN."""

TABLE_REDRIVE_ACTIONS = ("dynamodb:DescribeTable", "dynamodb:GetItem", "dynamodb:DeleteItem")
"""What ``dlq redrive`` needs on the table's ARN."""

TABLE_CREATE_ACTIONS = (
    "dynamodb:CreateTable",
    "dynamodb:DescribeTable",
    "dynamodb:DescribeTimeToLive",
    "dynamodb:UpdateTimeToLive",
    "dynamodb:TagResource",
    "dynamodb:ListTagsOfResource",
)
"""What making it, and seeing whether it is as it should be, needs on the table's ARN."""


def table_in(url: str | None) -> str | None:
    """Return the table that a store's URL names; None where the store is another.

    Raises:
        ConfigError: It names none, or has a user: AWS takes credentials from its own variables only.
    """
    scheme, _, name = (url or "").partition("://")
    if scheme.lower() != "dynamodb":
        return None
    if not TABLE_NAME.fullmatch(name):
        raise ConfigError("SMARTPIPE_IDEMPOTENCY_URL: dynamodb:// must name a table, as in dynamodb://claims")
    return name


def claims_table(name: str) -> dict[str, Any]:
    """Return CreateTable's parameters: https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_CreateTable.html."""
    return {
        "TableName": name,
        "AttributeDefinitions": [{"AttributeName": KEY_ATTRIBUTE, "AttributeType": "S"}],
        "KeySchema": [{"AttributeName": KEY_ATTRIBUTE, "KeyType": "HASH"}],
        "BillingMode": "PAY_PER_REQUEST",
    }


def another_kind(
    name: str, key_schema: list[dict[str, Any]], definitions: list[dict[str, Any]] | None = None
) -> str | None:
    """Say what is wrong with the table called *name*, if it is not one of claims or an earlier version's."""
    wanted = claims_table(name)
    if key_schema == wanted["KeySchema"] and definitions in (None, wanted["AttributeDefinitions"]):
        return None
    remedy = "name another one in SMARTPIPE_IDEMPOTENCY_URL and run smartpipe topology apply"
    if key_schema == [{"AttributeName": "key", "KeyType": "HASH"}]:
        return (
            f"DynamoDB table {name!r} has claims of an earlier version. They name no service and no queue, so this "
            "version cannot use them: if one of their events is delivered again, its effect happens again. Stop the "
            f"workers, wait until their queues are empty, then {remedy}"
        )
    return f"DynamoDB table {name!r} is not one of claims: its key must be the string {KEY_ATTRIBUTE!r}; {remedy}"


def time_to_live(name: str) -> dict[str, Any]:
    """Return UpdateTimeToLive's parameters; it is called when the table is ACTIVE."""
    return {"TableName": name, "TimeToLiveSpecification": {"Enabled": True, "AttributeName": TTL_ATTRIBUTE}}


LIFECYCLE = "Lifecycle"
"""Stands among a bucket's attributes: what our rule says."""
_RULE = "smartpipe-claim-check"

BUCKET_READ_ACTIONS = ("s3:GetObject",)
"""What a consumer needs on the bucket's objects."""

BUCKET_WRITE_ACTIONS = ("s3:PutObject",)
"""What a publisher needs there."""

BUCKET_CREATE_ACTIONS = (
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
        "ID": _rule_id(expiry["Prefix"]),
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
        if rule.get("ID") == _rule_id(prefix):
            found = (rule.get("Filter") or {}).get("Prefix", rule.get("Prefix", ""))
            days = rule.get("Expiration", {}).get("Days")
            return {"Prefix": found or "", "Days": days, "Status": rule.get("Status")}
    return {}


def _rule_id(prefix: str) -> str:
    return f"{_RULE}-{prefix.rstrip('/')}" if prefix else _RULE


class TableAndBucket(NamedTuple):
    """A table and a bucket that are part of the topology.

    Args:
        claims_table: The DynamoDB table that idempotent handlers claim in, if it is one.
        bucket: Where large bodies wait, if they do.
        readable: Where consumers may read bodies from.
        packs: Whether publishers compress, or put into S3, some of the bodies; no filter sees into these.
    """

    claims_table: str | None = None
    bucket: Bucket | None = None
    packs: bool = False
    readable: TrustedLocations = TrustedLocations()

    @classmethod
    def from_environment(cls) -> Self:
        """Read ``SMARTPIPE_IDEMPOTENCY_URL``, ``SMARTPIPE_CLAIM_CHECK_*`` and ``SMARTPIPE_COMPRESSION``.

        Raises:
            ConfigError: Faulty settings.
        """
        store_url, settings = ClaimSettings.load().idempotency_url, PayloadSettings.load()
        at = ClaimCheck.at(settings.claim_check_url) if settings.claim_check_url else None
        bucket = Bucket(at.bucket, at.prefix, settings.claim_check_days, at.owner) if at and at.scheme == "s3" else None
        return cls(
            table_in(store_url.get_secret_value() if store_url else None),
            bucket,
            at is not None or settings.compression is not None,
            TrustedLocations.from_environment(),
        )

    def tables(self, naming: Naming) -> dict[str, Attributes]:
        """Return the tables that are wanted, by ARN."""
        name = self.claims_table
        return {} if name is None else {naming.table_arn(name): {"TimeToLive": TTL_ATTRIBUTE, TAGS: _tags(naming)}}

    def buckets(self, naming: Naming) -> dict[str, Attributes]:
        """Return the buckets that are wanted, by ARN."""
        bucket = self.bucket
        if bucket is None or bucket.owner not in (None, naming.account_id):
            return {}
        return {naming.bucket_arn(bucket.name): {LIFECYCLE: bucket.expiry, TAGS: _tags(naming)}}

    def readable_objects(self, partition: str) -> list[str]:
        """Return the ARN patterns of the objects that consumers may read."""
        written = [self.bucket.objects_arn(partition)] if self.bucket else []
        others = [objects_arn(partition, at.bucket, at.prefix) for at in self.readable.locations if at.scheme == "s3"]
        return list(dict.fromkeys([*written, *others]))


def _tags(naming: Naming) -> dict[str, str]:
    """Return the tags of a shared resource. A prefix among them would be overwritten by every environment's apply."""
    return {APPLICATION: naming.application}


NO_COMPANIONS = TableAndBucket()
