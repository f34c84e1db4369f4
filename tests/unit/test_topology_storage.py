"""The calls of AWS that read and change the table of claims and the bucket of payloads."""

from __future__ import annotations

from typing import Any

import pytest

from smartpipe.errors import TransportError
from smartpipe.topology.aws.calls import Denied, Reading
from smartpipe.topology.aws.storage import (
    create_bucket,
    create_table,
    read_bucket,
    read_table,
    update_bucket,
    update_table,
)
from smartpipe.topology.changes import Change
from smartpipe.topology.resources import TAGS, Topology
from smartpipe.topology.table_and_bucket import LIFECYCLE, TTL_ATTRIBUTE, create_table_arguments, lifecycle_rule_of
from tests.support.scripted_aws import ACCOUNT, ScriptedAws, aws_of, refusal

TABLE, BUCKET = f"arn:aws:dynamodb:eu-west-1:{ACCOUNT}:table/claims", "arn:aws:s3:::bodies"
OWNED = {"Bucket": "bodies", "ExpectedBucketOwner": ACCOUNT}
EXPIRY = {"Prefix": "staging/", "Days": 30, "Status": "Enabled"}
TAG_LIST = [{"Key": "a", "Value": "1"}]
DESIRED = Topology({"bucket": {BUCKET: {LIFECYCLE: EXPIRY}}})


def described(status: str = "ACTIVE") -> dict[str, Any]:
    return {"Table": {"KeySchema": ["key"], "TableStatus": status}}


def table_change(**attributes: Any) -> Change:
    return Change("create", "table", (TABLE,), attributes, {})


def bucket_change(**attributes: Any) -> Change:
    return Change("create", "bucket", (BUCKET,), attributes, {})


@pytest.mark.parametrize(
    ("status", "attribute"), [("ENABLED", "expires_at"), ("ENABLING", "expires_at"), ("DISABLED", ""), (None, "")]
)
async def test_a_table_is_read_with_its_key_its_tags_and_the_attribute_that_expires(
    status: str | None, attribute: str
) -> None:
    description = {} if status is None else {"TimeToLiveStatus": status, "AttributeName": "expires_at"}
    aws = aws_of(
        describe_table=described(),
        describe_time_to_live={"TimeToLiveDescription": description},
        list_tags_of_resource={"Tags": TAG_LIST},
    )

    assert await read_table(Reading(aws), TABLE) == {
        "KeySchema": ["key"],
        "TableStatus": "ACTIVE",
        "TimeToLive": attribute,
        TAGS: {"a": "1"},
    }
    assert aws.calls == [
        ("describe_table", {"TableName": "claims"}),
        ("describe_time_to_live", {"TableName": "claims"}),
        ("list_tags_of_resource", {"ResourceArn": TABLE}),
    ]


async def test_a_table_that_does_not_exist_has_no_attributes() -> None:
    aws = aws_of(describe_table=refusal("ResourceNotFoundException"))

    assert await read_table(Reading(aws), TABLE) is None
    assert aws.methods == ["describe_table"]


async def test_a_table_whose_details_iam_hides_has_none() -> None:
    aws = aws_of(
        describe_table=described(),
        describe_time_to_live=refusal("AccessDeniedException"),
        list_tags_of_resource=refusal("AccessDeniedException"),
    )
    reading = Reading(aws)

    found = await read_table(reading, TABLE)

    assert found is not None
    assert (found["TimeToLive"], found[TAGS]) == ("", {})
    assert [denial.action for denial in reading.denials] == [
        "dynamodb:DescribeTimeToLive",
        "dynamodb:ListTagsOfResource",
    ]


async def test_a_table_is_created_and_its_claims_expire_as_soon_as_it_is_active() -> None:
    aws = aws_of(describe_table=described(), list_tags_of_resource={"Tags": TAG_LIST})

    await create_table(aws, table_change(TimeToLive=TTL_ATTRIBUTE, Tags={"a": "1"}))

    assert aws.made("create_table") == [{**create_table_arguments("claims"), "Tags": TAG_LIST}]
    assert aws.made("update_time_to_live") == [
        {"TableName": "claims", "TimeToLiveSpecification": {"Enabled": True, "AttributeName": TTL_ATTRIBUTE}}
    ]
    assert aws.made("tag_resource") == []


@pytest.mark.parametrize(("code", "fails"), [("ResourceInUseException", False), ("LimitExceededException", True)])
async def test_a_table_that_exists_is_updated(code: str, fails: bool) -> None:
    aws = aws_of(create_table=refusal(code), describe_table=described())

    if fails:
        with pytest.raises(TransportError):
            await create_table(aws, table_change(Tags={"a": "1"}))
    else:
        await create_table(aws, table_change(Tags={"a": "1"}))

    assert aws.made("tag_resource") == ([] if fails else [{"ResourceArn": TABLE, "Tags": TAG_LIST}])


@pytest.mark.parametrize("status", ["CREATING", "DELETING"])
async def test_a_table_that_is_not_active_yet_is_tried_again(status: str) -> None:
    with pytest.raises(TransportError) as raised:
        await update_table(aws_of(describe_table=described(status)), table_change())

    assert (raised.value.code, raised.value.retryable) == ("TableNotActive", True)
    assert raised.value.detail == "table claims is not active yet"


@pytest.mark.parametrize("status", ["ACTIVE", "UPDATING"])
async def test_an_update_of_a_table_makes_no_call_without_a_difference(status: str) -> None:
    aws = aws_of(
        describe_table=described(status),
        describe_time_to_live={"TimeToLiveDescription": {"TimeToLiveStatus": "ENABLED", "AttributeName": "x"}},
        list_tags_of_resource={"Tags": [*TAG_LIST, {"Key": "b", "Value": "2"}]},
    )

    await update_table(aws, table_change())
    await update_table(aws, table_change(TimeToLive="x", Tags={"a": "1"}))

    assert {method.split("_")[0] for method in aws.methods} == {"describe", "list"}


async def test_an_update_of_a_table_sets_tags_that_differ() -> None:
    aws = aws_of(describe_table=described(), list_tags_of_resource={"Tags": [{"Key": "a", "Value": "2"}]})

    await update_table(aws, table_change(Tags={"a": "1"}))

    assert aws.made("tag_resource") == [{"ResourceArn": TABLE, "Tags": TAG_LIST}]
    assert aws.made("update_time_to_live") == []


async def test_a_table_that_iam_hides_is_not_changed() -> None:
    aws = aws_of(describe_table=refusal("AccessDeniedException"))

    with pytest.raises(Denied):
        await update_table(aws, table_change(Tags={"a": "1"}))


async def test_a_bucket_is_read_with_our_rule_and_its_tags() -> None:
    aws = aws_of(
        get_bucket_lifecycle_configuration={"Rules": [{"ID": "theirs"}, lifecycle_rule_of(EXPIRY)]},
        get_bucket_tagging={"TagSet": TAG_LIST},
    )

    assert await read_bucket(Reading(aws), BUCKET, DESIRED) == {LIFECYCLE: EXPIRY, TAGS: {"a": "1"}}

    assert aws.made("list_objects_v2") == [{**OWNED, "MaxKeys": 1}]
    assert aws.made("get_bucket_lifecycle_configuration") == aws.made("get_bucket_tagging") == [OWNED]


async def test_a_bucket_without_rules_and_tags_has_none() -> None:
    aws = aws_of(
        get_bucket_lifecycle_configuration=refusal("NoSuchLifecycleConfiguration", status=404),
        get_bucket_tagging=refusal("NoSuchTagSet", status=404),
    )

    assert await read_bucket(Reading(aws), BUCKET, DESIRED) == {LIFECYCLE: {}, TAGS: {}}


async def test_another_error_of_a_bucket_is_raised() -> None:
    aws = aws_of(get_bucket_tagging=refusal("InvalidRequest"))

    with pytest.raises(TransportError) as raised:
        await read_bucket(Reading(aws), BUCKET, DESIRED)

    assert raised.value.code == "InvalidRequest"


async def test_a_bucket_that_iam_hides_has_no_attributes() -> None:
    reading = Reading(aws_of(list_objects_v2=refusal("AccessDenied", status=403)))

    assert await read_bucket(reading, BUCKET, DESIRED) is None
    assert [denial.action for denial in reading.denials] == ["s3:ListBucket"]


@pytest.mark.parametrize(
    ("region", "where"),
    [
        ("us-east-1", {}),
        ("eu-west-1", {"CreateBucketConfiguration": {"LocationConstraint": "eu-west-1"}}),
    ],
)
async def test_a_bucket_is_created_in_the_region_with_our_rule_and_tags(region: str, where: dict[str, Any]) -> None:
    aws: Any = ScriptedAws(region)

    await create_bucket(aws, bucket_change(Lifecycle=EXPIRY, Tags={"a": "1"}))

    assert aws.made("create_bucket") == [{"Bucket": "bodies", **where}]
    assert aws.made("put_bucket_lifecycle_configuration") == [
        {**OWNED, "LifecycleConfiguration": {"Rules": [lifecycle_rule_of(EXPIRY)]}}
    ]
    assert aws.made("put_bucket_tagging") == [{**OWNED, "Tagging": {"TagSet": TAG_LIST}}]


@pytest.mark.parametrize(("code", "fails"), [("BucketAlreadyOwnedByYou", False), ("BucketAlreadyExists", True)])
async def test_a_bucket_that_is_ours_already_is_updated(code: str, fails: bool) -> None:
    aws = aws_of(create_bucket=refusal(code, status=409))

    if fails:
        with pytest.raises(TransportError):
            await create_bucket(aws, bucket_change(Tags={"a": "1"}))
    else:
        await create_bucket(aws, bucket_change(Tags={"a": "1"}))

    assert len(aws.made("put_bucket_tagging")) == (0 if fails else 1)


async def test_tags_of_others_stay_and_only_what_differs_is_written() -> None:
    aws = aws_of(get_bucket_tagging={"TagSet": [{"Key": "b", "Value": "2"}, {"Key": "a", "Value": "0"}]})

    await update_bucket(aws, bucket_change(Tags={"a": "1"}))

    [put] = aws.made("put_bucket_tagging")
    assert {one["Key"]: one["Value"] for one in put["Tagging"]["TagSet"]} == {"b": "2", "a": "1"}
    assert aws.methods == ["get_bucket_tagging", "put_bucket_tagging"]


async def test_the_first_rule_and_the_first_tags_of_a_bucket_are_written() -> None:
    aws = aws_of(
        get_bucket_lifecycle_configuration=refusal("NoSuchLifecycleConfiguration", status=404),
        get_bucket_tagging=refusal("NoSuchTagSet", status=404),
    )

    await update_bucket(aws, bucket_change(Lifecycle=EXPIRY, Tags={"a": "1"}))

    assert aws.made("put_bucket_lifecycle_configuration")[0]["LifecycleConfiguration"]["Rules"] == [
        lifecycle_rule_of(EXPIRY)
    ]
    assert aws.made("put_bucket_tagging")[0]["Tagging"] == {"TagSet": TAG_LIST}


async def test_a_bucket_whose_tags_iam_hides_is_not_changed() -> None:
    aws = aws_of(get_bucket_tagging=refusal("AccessDenied", status=403))

    with pytest.raises(Denied):
        await update_bucket(aws, bucket_change(Tags={"a": "1"}))

    assert aws.made("put_bucket_tagging") == []
