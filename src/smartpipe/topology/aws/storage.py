"""The calls of AWS that read, create and update the DynamoDB table of claims and the S3 bucket of payloads."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from smartpipe.errors import TransportError
from smartpipe.names import name_in
from smartpipe.topology.aws.calls import Reading, call_for, from_tag_list, to_tag_list
from smartpipe.topology.resources import TAGS
from smartpipe.topology.table_and_bucket import (
    LIFECYCLE,
    create_table_arguments,
    find_expiry,
    merge_rule,
    update_time_to_live_arguments,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from smartpipe.topology.changes import Change
    from smartpipe.topology.resources import Attributes, Topology
    from smartpipe.transports.aws.session import AwsSession

_NOT_SET = frozenset({"NoSuchLifecycleConfiguration", "NoSuchTagSet"})
"""S3 answers with these errors if a bucket has no rules or no tags."""
_OURS_ALREADY = frozenset({"BucketAlreadyOwnedByYou"})
_LIFECYCLE_SETTINGS = ("TransitionDefaultMinimumObjectSize",)
"""Settings beside the rules. PutBucketLifecycleConfiguration resets those that a call leaves out."""
_NO_CONSTRAINT = "us-east-1"
"""CreateBucket does not accept the name of this region."""


async def read_table(reading: Reading, arn: str, _desired: Topology | None = None) -> Attributes | None:
    """Return the attributes of a table."""
    dynamodb = await reading.session.client("dynamodb")
    name = name_in(arn)
    described = await reading.call(partial(dynamodb.describe_table, TableName=name), "dynamodb:DescribeTable", arn)
    if described is None:
        return None
    get = partial(dynamodb.describe_time_to_live, TableName=name)
    ttl = ((await reading.call(get, "dynamodb:DescribeTimeToLive", arn)) or {}).get("TimeToLiveDescription", {})
    listed = await reading.call(
        partial(dynamodb.list_tags_of_resource, ResourceArn=arn), "dynamodb:ListTagsOfResource", arn
    )
    is_enabled = ttl.get("TimeToLiveStatus", "").startswith("ENABL")
    return {
        "KeySchema": described["Table"]["KeySchema"],
        "TableStatus": described["Table"]["TableStatus"],
        "TimeToLive": ttl.get("AttributeName", "") if is_enabled else "",
        TAGS: from_tag_list((listed or {}).get("Tags", [])),
    }


async def create_table(session: AwsSession, change: Change) -> None:
    """Create the table. Its TTL can be set only when it is active, so a retry of the update may have to wait."""
    dynamodb = await session.client("dynamodb")
    call = dynamodb.create_table(**create_table_arguments(change.name), Tags=to_tag_list(change.attributes[TAGS]))
    try:
        await call_for(change, call, "dynamodb:CreateTable")
    except TransportError as error:
        if error.code != "ResourceInUseException":  # it exists: another process, or an earlier attempt, created it
            raise
    await update_table(session, change)


async def update_table(session: AwsSession, change: Change) -> None:
    """Set the TTL and the tags that differ.

    Raises:
        TransportError: ``TableNotActive``, which is retryable, or a call failed.
    """
    dynamodb = await session.client("dynamodb")
    [arn] = change.arns
    reading = Reading(session)
    found = await read_table(reading, arn)
    reading.raise_if_denied()
    if found is None or found["TableStatus"] not in {"ACTIVE", "UPDATING"}:
        raise TransportError("TableNotActive", f"table {change.name} is not active yet", retryable=True)
    if found["TimeToLive"] != change.attributes.get("TimeToLive", found["TimeToLive"]):
        call = dynamodb.update_time_to_live(**update_time_to_live_arguments(change.name))
        await call_for(change, call, "dynamodb:UpdateTimeToLive")
    if TAGS in change.attributes and change.attributes[TAGS].items() - found[TAGS].items():
        call = dynamodb.tag_resource(ResourceArn=arn, Tags=to_tag_list(change.attributes[TAGS]))
        await call_for(change, call, "dynamodb:TagResource")


async def read_bucket(reading: Reading, arn: str, desired: Topology) -> Attributes | None:
    """Return the tags of a bucket of this account, and our lifecycle rule for the declared prefix."""
    s3 = await reading.session.client("s3")
    bucket = await _bucket_arguments(reading.session, name_in(arn))
    listed = await reading.call(partial(s3.list_objects_v2, **bucket, MaxKeys=1), "s3:ListBucket", arn)
    if listed is None:
        return None
    get_lifecycle, get_tags = partial(_get_lifecycle, s3, bucket), partial(_get_tags, s3, bucket)
    lifecycle = await _none_if_not_set(reading.call(get_lifecycle, "s3:GetLifecycleConfiguration", arn)) or {}
    tags = await _none_if_not_set(reading.call(get_tags, "s3:GetBucketTagging", arn))
    prefix = desired.of("bucket")[arn][LIFECYCLE]["Prefix"]
    return {LIFECYCLE: find_expiry(lifecycle.get("Rules", []), prefix), TAGS: tags or {}}


async def create_bucket(session: AwsSession, change: Change) -> None:
    """Create the bucket with our lifecycle rule and tags; an existing bucket of ours gets them too."""
    s3 = await session.client("s3")
    constraint = {"LocationConstraint": session.region}
    where = {} if session.region == _NO_CONSTRAINT else {"CreateBucketConfiguration": constraint}
    try:
        await call_for(change, s3.create_bucket(Bucket=change.name, **where), "s3:CreateBucket")
    except TransportError as error:
        if error.code not in _OURS_ALREADY:
            raise
    await update_bucket(session, change)


async def update_bucket(session: AwsSession, change: Change) -> None:
    """Add our rule and tags to those of others: S3 replaces all rules, or all tags, of a bucket together."""
    s3 = await session.client("s3")
    bucket = await _bucket_arguments(session, change.name)
    if LIFECYCLE in change.attributes:
        get = call_for(change, _get_lifecycle(s3, bucket), "s3:GetLifecycleConfiguration")
        found = await _none_if_not_set(get) or {}
        rules = merge_rule(found.get("Rules", []), change.attributes[LIFECYCLE])
        kept = {name: found[name] for name in _LIFECYCLE_SETTINGS if name in found}
        put = s3.put_bucket_lifecycle_configuration(**bucket, LifecycleConfiguration={"Rules": rules}, **kept)
        await call_for(change, put, "s3:PutLifecycleConfiguration")
    if TAGS in change.attributes:
        present = await _none_if_not_set(call_for(change, _get_tags(s3, bucket), "s3:GetBucketTagging")) or {}
        tags = to_tag_list({**present, **change.attributes[TAGS]})
        put = s3.put_bucket_tagging(**bucket, Tagging={"TagSet": tags})
        await call_for(change, put, "s3:PutBucketTagging")


async def _bucket_arguments(session: AwsSession, name: str) -> dict[str, str]:
    """Return the arguments that name a bucket; S3 refuses the call if another account owns it."""
    return {"Bucket": name, "ExpectedBucketOwner": (await session.addresses.naming()).account_id}


async def _get_lifecycle(s3: Any, bucket: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = await s3.get_bucket_lifecycle_configuration(**bucket)
    return found


async def _get_tags(s3: Any, bucket: Mapping[str, str]) -> dict[str, str]:
    return from_tag_list((await s3.get_bucket_tagging(**bucket)).get("TagSet", []))


async def _none_if_not_set(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except TransportError as error:
        if error.code not in _NOT_SET:
            raise
        return None
