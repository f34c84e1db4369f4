"""The lifecycle rules of a bucket: S3 replaces all of them together, and refuses two forms in one bucket."""

from __future__ import annotations

from typing import Any

import botocore.session
import pytest

from smartpipe.names import Naming
from smartpipe.topology.aws.storage import update_bucket
from smartpipe.topology.changes import Change
from smartpipe.topology.table_and_bucket import LIFECYCLE, find_expiry, lifecycle_rule_of, merge_rule

EXPIRY = {"Prefix": "staging/", "Days": 30, "Status": "Enabled"}
OURS = lifecycle_rule_of(EXPIRY)
OLD = {"ID": "old", "Prefix": "logs/", "Status": "Enabled", "Expiration": {"Days": 3}}
NEW = {"ID": "new", "Filter": {"Prefix": "logs/"}, "Status": "Enabled", "Expiration": {"Days": 3}}


@pytest.mark.parametrize(
    "theirs", [[], [OLD], [OLD, {**OLD, "ID": "x"}], [NEW], [NEW, {"ID": "all", "Filter": {}, "Status": "Enabled"}]]
)
def test_our_rule_takes_the_form_of_the_others(theirs: list[dict[str, Any]]) -> None:
    *others, ours = merge_rule(theirs, EXPIRY)

    assert others == theirs
    assert ("Prefix" in ours) is (OLD in theirs)
    assert ("Filter" in ours) is (OLD not in theirs)
    assert find_expiry([*others, ours], "staging/") == EXPIRY


@pytest.mark.parametrize("stale", [{**OURS, "Expiration": {"Days": 2}}, lifecycle_rule_of(EXPIRY, top_level=True)])
def test_our_rule_is_replaced_where_it_is(stale: dict[str, Any]) -> None:
    assert merge_rule([NEW, stale, {**NEW, "ID": "last"}], EXPIRY) == [NEW, OURS, {**NEW, "ID": "last"}]


class FakeS3:
    """S3 with a lifecycle configuration, which is also the AwsSession that leads to it."""

    def __init__(self, lifecycle: dict[str, Any]) -> None:
        self.lifecycle = lifecycle
        self.put: dict[str, Any] = {}
        self.addresses = self

    async def client(self, _: str) -> Any:
        return self

    async def naming(self) -> Naming:
        return Naming("aws", "eu-west-1", "123456789012")

    async def get_bucket_lifecycle_configuration(self, **_: Any) -> dict[str, Any]:
        return {**self.lifecycle, "ResponseMetadata": {"HTTPStatusCode": 200}}

    async def put_bucket_lifecycle_configuration(self, **arguments: Any) -> None:
        self.put = arguments


@pytest.mark.parametrize("setting", ["varies_by_storage_class", "all_storage_classes_128K", None])
async def test_the_minimum_size_for_transitions_is_kept(setting: str | None) -> None:
    kept = {"TransitionDefaultMinimumObjectSize": setting} if setting else {}
    s3: Any = FakeS3({"Rules": [OLD], **kept})

    await update_bucket(s3, Change("update", "bucket", ("arn:aws:s3:::b",), {LIFECYCLE: EXPIRY}, {}))

    assert s3.put == {
        "Bucket": "b",
        "ExpectedBucketOwner": "123456789012",
        "LifecycleConfiguration": {"Rules": merge_rule([OLD], EXPIRY)},
        **kept,
    }


def test_every_setting_beside_the_rules_that_botocore_knows_is_kept() -> None:
    service = botocore.session.get_session().get_service_model("s3")
    read: Any = service.operation_model("GetBucketLifecycleConfiguration").output_shape
    written: Any = service.operation_model("PutBucketLifecycleConfiguration").input_shape

    assert set(read.members) - {"Rules"} == {"TransitionDefaultMinimumObjectSize"} <= set(written.members)
