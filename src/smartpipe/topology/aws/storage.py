"""The DynamoDB table of claims and the S3 bucket of payloads: what is there, and single changes of the bucket."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from smartpipe.errors import TransportError
from smartpipe.names import name_in
from smartpipe.topology.resources import TAGS
from smartpipe.topology.table_and_bucket import LIFECYCLE, expiry_in, with_rule

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from smartpipe.topology.changes import Change
    from smartpipe.topology.resources import Attributes

_NONE_YET = frozenset({"NoSuchLifecycleConfiguration", "NoSuchTagSet"})
_OURS_ALREADY = frozenset({"BucketAlreadyOwnedByYou"})
_NO_CONSTRAINT = "us-east-1"
"""CreateBucket: the one region whose name is not to be said."""


async def read_table(dynamodb: Any, call: Callable[..., Awaitable[Any]], arn: str) -> Attributes | None:
    """Return what is there of a table, by way of an Inspector's *call*."""
    name = name_in(arn)
    described = await call(partial(dynamodb.describe_table, TableName=name), "dynamodb:DescribeTable", arn)
    if described is None:
        return None
    ttl = await call(partial(dynamodb.describe_time_to_live, TableName=name), "dynamodb:DescribeTimeToLive", arn)
    listed = await call(partial(dynamodb.list_tags_of_resource, ResourceArn=arn), "dynamodb:ListTagsOfResource", arn)
    found = (ttl or {}).get("TimeToLiveDescription", {})
    return {
        "KeySchema": described["Table"]["KeySchema"],
        "TableStatus": described["Table"]["TableStatus"],
        "TimeToLive": found.get("AttributeName", "") if found.get("TimeToLiveStatus", "").startswith("ENABL") else "",
        TAGS: {one["Key"]: one["Value"] for one in (listed or {}).get("Tags", [])},
    }


async def read_bucket(
    s3: Any, call: Callable[..., Awaitable[Any]], arn: str, prefix: str, owner: str
) -> Attributes | None:
    """Return the deployed attributes of a bucket of account *owner*, with our rule for *prefix*."""
    bucket = _of(name_in(arn), owner)
    listed = await call(partial(s3.list_objects_v2, **bucket, MaxKeys=1), "s3:ListBucket", arn)
    if listed is None:
        return None
    rules = await _or_none(call(partial(rules_of, s3, bucket), "s3:GetLifecycleConfiguration", arn))
    tags = await _or_none(call(partial(tags_of, s3, bucket), "s3:GetBucketTagging", arn))
    return {LIFECYCLE: expiry_in(rules or [], prefix), TAGS: tags or {}}


def _of(name: str, owner: str) -> dict[str, str]:
    """Return the arguments that name a bucket, which S3 refuses if it belongs to another account."""
    return {"Bucket": name, "ExpectedBucketOwner": owner}


async def rules_of(s3: Any, bucket: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the rules of a bucket's lifecycle."""
    rules: list[dict[str, Any]] = (await s3.get_bucket_lifecycle_configuration(**bucket)).get("Rules", [])
    return rules


async def tags_of(s3: Any, bucket: Mapping[str, str]) -> dict[str, str]:
    """Return a bucket's tags."""
    return {one["Key"]: one["Value"] for one in (await s3.get_bucket_tagging(**bucket)).get("TagSet", [])}


async def create_bucket(s3: Any, call: Callable[..., Awaitable[Any]], change: Change, region: str, owner: str) -> None:
    """Create the bucket, and set what it has to have; one that is there already gets the same."""
    where = {} if region == _NO_CONSTRAINT else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    try:
        await call(s3.create_bucket(Bucket=change.name, **where), change)
    except TransportError as error:
        if error.code not in _OURS_ALREADY:
            raise
    await update_bucket(s3, call, change, owner)


async def update_bucket(s3: Any, call: Callable[..., Awaitable[Any]], change: Change, owner: str) -> None:
    """Set our rule and our tags among those that are there: S3 has no call for one alone."""
    bucket = _of(change.name, owner)
    if LIFECYCLE in change.attributes:
        reading = call(rules_of(s3, bucket), change, "s3:GetLifecycleConfiguration")
        rules = with_rule(await _or_none(reading) or [], change.attributes[LIFECYCLE])
        put = s3.put_bucket_lifecycle_configuration(**bucket, LifecycleConfiguration={"Rules": rules})
        await call(put, change, "s3:PutLifecycleConfiguration")
    if TAGS in change.attributes:
        present = await _or_none(call(tags_of(s3, bucket), change, "s3:GetBucketTagging")) or {}
        tags = [{"Key": key, "Value": value} for key, value in {**present, **change.attributes[TAGS]}.items()]
        put = s3.put_bucket_tagging(**bucket, Tagging={"TagSet": tags})
        await call(put, change, "s3:PutBucketTagging")


async def _or_none(call: Awaitable[Any]) -> Any:
    """Return what it answers; None where S3 has a fault's name for nothing."""
    try:
        return await call
    except TransportError as error:
        if error.code not in _NONE_YET:
            raise
        return None
