"""The DynamoDB table of idempotency claims and the S3 bucket of payloads: names, settings and permissions. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from smartpipe.envelope.body_encoding import PayloadLocation
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
"""Tables of earlier versions have ``key``. Their claims name no service and no queue, so they must not be mixed with
ours."""
TABLE_NAME = re.compile(r"[A-Za-z0-9_.-]{3,255}")
"""https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Constraints.html"""

TABLE_USE_ACTIONS = ("dynamodb:DescribeTable", "dynamodb:UpdateItem")
"""The actions that a worker needs on the table's ARN."""

TABLE_REDRIVE_ACTIONS = ("dynamodb:DescribeTable", "dynamodb:GetItem", "dynamodb:DeleteItem")
"""The actions that ``dlq redrive`` needs on the table's ARN."""

TABLE_LOOK_ACTIONS = ("dynamodb:DescribeTable", "dynamodb:DescribeTimeToLive", "dynamodb:ListTagsOfResource")
TABLE_CREATE_ACTIONS = (
    "dynamodb:CreateTable",
    "dynamodb:DescribeTable",
    "dynamodb:DescribeTimeToLive",
    "dynamodb:UpdateTimeToLive",
    "dynamodb:TagResource",
    "dynamodb:ListTagsOfResource",
)
"""The actions that ``topology plan`` and ``apply`` need on the table's ARN."""


def table_name_in(url: str | None) -> str | None:
    """Return the name of the table in a store's URL; None if the store is not DynamoDB.

    Raises:
        ConfigError: The URL names no table, or has a user: AWS reads credentials only from its own variables.
    """
    scheme, _, name = (url or "").partition("://")
    if scheme.lower() != "dynamodb":
        return None
    if not TABLE_NAME.fullmatch(name):
        raise ConfigError("SMARTPIPE_IDEMPOTENCY_URL: dynamodb:// must name a table, as in dynamodb://claims")
    return name


def create_table_arguments(name: str) -> dict[str, Any]:
    """Return the arguments of CreateTable: https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_CreateTable.html."""
    return {
        "TableName": name,
        "AttributeDefinitions": [{"AttributeName": KEY_ATTRIBUTE, "AttributeType": "S"}],
        "KeySchema": [{"AttributeName": KEY_ATTRIBUTE, "KeyType": "HASH"}],
        "BillingMode": "PAY_PER_REQUEST",
    }


def find_table_error(
    name: str, key_schema: list[dict[str, Any]], definitions: list[dict[str, Any]] | None = None
) -> str | None:
    """Return why the table called *name* cannot store claims of this version; None if it can."""
    wanted = create_table_arguments(name)
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


def update_time_to_live_arguments(name: str) -> dict[str, Any]:
    """Return the arguments of UpdateTimeToLive, which DynamoDB accepts once the table is ACTIVE."""
    return {"TableName": name, "TimeToLiveSpecification": {"Enabled": True, "AttributeName": TTL_ATTRIBUTE}}


LIFECYCLE = "Lifecycle"
"""Among the attributes of a bucket: the content of our lifecycle rule."""
_RULE = "smartpipe-claim-check"

BUCKET_READ_ACTIONS = ("s3:GetObject",)
"""The actions that a consumer needs on the bucket's objects."""

BUCKET_WRITE_ACTIONS = ("s3:PutObject",)
"""The actions that a publisher needs on the bucket's objects."""

BUCKET_LOOK_ACTIONS = ("s3:GetBucketTagging", "s3:GetLifecycleConfiguration", "s3:ListBucket")
BUCKET_CREATE_ACTIONS = (
    "s3:CreateBucket",
    "s3:GetBucketTagging",
    "s3:GetLifecycleConfiguration",
    "s3:ListBucket",
    "s3:PutBucketTagging",
    "s3:PutLifecycleConfiguration",
)
"""The actions that ``topology plan`` and ``apply`` need on the bucket's ARN."""


class Bucket(NamedTuple):
    """A bucket of payloads.

    Args:
        prefix: The prefix of its keys: ends with a slash, or is empty.
        days: The number of days after which S3 deletes an object.
        owner: The account that owns the bucket; None for the environment's. Only its owner creates and changes a
            bucket of another account.
    """

    name: str
    prefix: str
    days: int
    owner: str | None = None

    @property
    def expiry(self) -> dict[str, Any]:
        """The content of its lifecycle rule."""
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


def lifecycle_rule_of(expiry: dict[str, Any], *, top_level: bool = False) -> dict[str, Any]:
    """Return the lifecycle rule with this content: https://docs.aws.amazon.com/AmazonS3/latest/API/API_LifecycleRule.html.

    Each prefix has its own rule, so that environments can share a bucket. The second expiration is for buckets with
    versioning.

    Args:
        top_level: Write the prefix in the old form, outside of ``Filter``.
    """
    where = {"Prefix": expiry["Prefix"]}
    return {
        "ID": _rule_id(expiry["Prefix"]),
        **(where if top_level else {"Filter": where}),
        "Status": expiry["Status"],
        "Expiration": {"Days": expiry["Days"]},
        "NoncurrentVersionExpiration": {"NoncurrentDays": 1},
    }


def merge_rule(rules: list[dict[str, Any]], expiry: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rules of others, unchanged and in their order, and ours: S3 replaces all rules of a bucket together.

    S3 refuses rules in two forms, so ours takes the form of theirs.
    """
    id_ = _rule_id(expiry["Prefix"])
    others = [rule for rule in rules if rule.get("ID") != id_]
    ours = lifecycle_rule_of(expiry, top_level=any("Prefix" in rule for rule in others))
    if len(others) == len(rules):
        return [*rules, ours]
    return [ours if rule.get("ID") == id_ else rule for rule in rules]


def find_expiry(rules: list[dict[str, Any]], prefix: str) -> dict[str, Any]:
    """Return the content of our rule for *prefix*; empty if there is no such rule."""
    for rule in rules:
        if rule.get("ID") == _rule_id(prefix):
            found = (rule.get("Filter") or {}).get("Prefix", rule.get("Prefix", ""))
            days = rule.get("Expiration", {}).get("Days")
            return {"Prefix": found or "", "Days": days, "Status": rule.get("Status")}
    return {}


def _rule_id(prefix: str) -> str:
    return f"{_RULE}-{prefix.rstrip('/')}" if prefix else _RULE


class TableAndBucket(NamedTuple):
    """The table and the bucket that are part of an environment's topology.

    Args:
        claims_table: The name of the DynamoDB table in which idempotent handlers claim events; None if the store is
            not DynamoDB.
        bucket: The bucket in which publishers store large bodies; None if they do not.
        encodes_bodies: Whether publishers compress bodies or store them in S3; filter policies cannot match these.
        readable: The locations from which consumers may read bodies.
    """

    claims_table: str | None = None
    bucket: Bucket | None = None
    encodes_bodies: bool = False
    readable: TrustedLocations = TrustedLocations()

    @classmethod
    def from_environment(cls) -> Self:
        """Read ``SMARTPIPE_IDEMPOTENCY_URL``, ``SMARTPIPE_CLAIM_CHECK_*`` and ``SMARTPIPE_COMPRESSION``.

        Raises:
            ConfigError: A setting is invalid.
        """
        store_url, settings = ClaimSettings.load().idempotency_url, PayloadSettings.load()
        at = PayloadLocation.parse(settings.claim_check_url) if settings.claim_check_url else None
        bucket = Bucket(at.bucket, at.prefix, settings.claim_check_days, at.owner) if at and at.scheme == "s3" else None
        return cls(
            table_name_in(store_url.get_secret_value() if store_url else None),
            bucket,
            at is not None or settings.compression is not None,
            TrustedLocations.from_environment(),
        )

    def derive_tables(self, naming: Naming) -> dict[str, Attributes]:
        """Return the declared tables by ARN."""
        name = self.claims_table
        return {} if name is None else {naming.table_arn(name): {"TimeToLive": TTL_ATTRIBUTE, TAGS: _tags(naming)}}

    def derive_buckets(self, naming: Naming) -> dict[str, Attributes]:
        """Return the declared buckets by ARN; none if another account owns the bucket."""
        bucket = self.bucket
        if bucket is None or not (naming.is_portable or bucket.owner in (None, naming.account_id)):
            return {}
        return {naming.bucket_arn(bucket.name): {LIFECYCLE: bucket.expiry, TAGS: _tags(naming)}}

    def readable_objects(self, partition: str) -> list[str]:
        """Return the ARN patterns of the objects that consumers may read."""
        written = [self.bucket.objects_arn(partition)] if self.bucket else []
        others = [objects_arn(partition, at.bucket, at.prefix) for at in self.readable.locations if at.scheme == "s3"]
        return list(dict.fromkeys([*written, *others]))


def _tags(naming: Naming) -> dict[str, str]:
    """Return the tags of a resource that environments can share, so they do not name an environment's prefix."""
    return {APPLICATION: naming.application}


NO_TABLE_AND_BUCKET = TableAndBucket()
