"""The state of a deployed topology, refused permissions in words, and the table and bucket of the environment."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from smartpipe import ConfigError
from smartpipe.names import Naming
from smartpipe.topology.resources import TAGS, Denial, Topology, describe_denials
from smartpipe.topology.status import Branch, QueueState, TopicState, build_tree
from smartpipe.topology.table_and_bucket import (
    LIFECYCLE,
    Bucket,
    TableAndBucket,
    create_table_arguments,
    find_expiry,
    find_table_error,
    lifecycle_rule_of,
    table_name_in,
    update_time_to_live_arguments,
)

NAMING = Naming("aws", "eu-west-1", "123456789012", "staging-", "shop")
USERS, ORDERS = NAMING.topic_arn("users"), NAMING.topic_arn("orders")
MAILER, AUDIT, DIRECT = (NAMING.queue_arn(name) for name in ("mailer", "audit", "direct"))
DEAD, OTHER_DEAD = f"{MAILER}-dlq", NAMING.queue_arn("other-dead")
HINT = (
    "`smartpipe topology export --format iam` prints all permissions that you need; for the refused calls, ask for "
    "this policy: "
)


def redrive(arn: str) -> dict[str, Any]:
    return {"RedrivePolicy": {"deadLetterTargetArn": arn}}


DESIRED = Topology(
    {
        "topic": {USERS: {}, ORDERS: {}},
        "queue": {DEAD: {}, MAILER: redrive(DEAD), AUDIT: redrive(DEAD), DIRECT: redrive(DEAD)},
        "subscription": {(USERS, MAILER): {}, (USERS, AUDIT): {}, (ORDERS, AUDIT): {}},
    }
)


def test_a_topology_that_is_not_deployed_has_its_declared_topics_and_queues() -> None:
    mailer, audit, direct = (
        QueueState(f"staging-{name}", arn, False)
        for name, arn in (("mailer", MAILER), ("audit", AUDIT), ("direct", DIRECT))
    )

    assert build_tree(DESIRED, Topology({}), {}) == [
        TopicState(
            "staging-users", USERS, False, (Branch(False, None, False, mailer), Branch(False, None, False, audit))
        ),
        TopicState("staging-orders", ORDERS, False, (Branch(False, None, False, audit),)),
        TopicState("", "", True, (Branch(True, None, True, direct),)),
    ]
    assert mailer == (mailer.name, MAILER, False, 0, 0, 0, None, None)


def test_a_deployed_topology_has_the_numbers_the_ages_and_the_real_dead_letter_queues() -> None:
    counts = {
        "ApproximateNumberOfMessages": "1",
        "ApproximateNumberOfMessagesNotVisible": "2",
        "ApproximateNumberOfMessagesDelayed": "3",
    }
    actual = Topology(
        {
            "topic": {USERS: {}},
            "queue": {MAILER: redrive(OTHER_DEAD) | counts, AUDIT: {}, OTHER_DEAD: {}},
            "subscription": {
                (USERS, MAILER): {"FilterPolicy": {"type": ["a"]}, "RawMessageDelivery": "true"},
                (USERS, AUDIT): {"FilterPolicy": {}, "RawMessageDelivery": "false"},
                (USERS, "mail@example.org"): {},
                (ORDERS, "mail@example.org"): {},
                (USERS, OTHER_DEAD): {},
            },
        }
    )

    users, orders, direct = build_tree(DESIRED, actual, {"staging-mailer": 60.0, "staging-other-dead": 5.0})

    dead = QueueState("staging-other-dead", OTHER_DEAD, True, oldest_age_seconds=5.0)
    audit = QueueState("staging-audit", AUDIT, True)
    assert users == TopicState(
        "staging-users",
        USERS,
        True,
        (
            Branch(True, {"type": ["a"]}, True, QueueState("staging-mailer", MAILER, True, 1, 2, 3, 60.0, dead)),
            Branch(True, None, False, audit),
        ),
        elsewhere=2,
    )
    assert orders == TopicState("staging-orders", ORDERS, False, (Branch(False, None, False, audit),), elsewhere=1)
    assert direct.branches[0].queue == QueueState("staging-direct", DIRECT, False)


def test_a_dead_letter_queue_that_does_not_exist_is_shown_so() -> None:
    [mailer] = build_tree(
        Topology({"queue": {MAILER: redrive(DEAD)}}), Topology({"queue": {MAILER: redrive(DEAD)}}), {}
    )[0].branches

    assert mailer.queue.dead_letters == QueueState("staging-mailer-dlq", DEAD, False)


def test_without_direct_queues_only_topics_are_shown() -> None:
    topics = Topology({"topic": {USERS: {}}})

    assert build_tree(topics, topics, {}) == [TopicState("staging-users", USERS, True, ())]


def test_a_topology_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DESIRED.external = frozenset({USERS})  # type: ignore[misc]


def test_refused_permissions_are_a_sentence_for_each_action_and_a_policy_for_all() -> None:
    denials = [
        Denial("sqs:CreateQueue", MAILER, "no 1"),
        Denial("sns:CreateTopic", USERS),
        Denial("sqs:CreateQueue", AUDIT, "no 2"),
        Denial("sqs:TagQueue", AUDIT, "no 3"),
        Denial("sqs:TagQueue", MAILER, "no 4"),
        Denial("sns:CreateTopic", USERS),
    ]

    *lines, last = describe_denials(denials)

    assert lines == [
        f"your credentials may not call sns:CreateTopic on {USERS}",
        f"your credentials may not call sqs:CreateQueue on {AUDIT}, {MAILER} (no 2)",
        f"your credentials may not call sqs:TagQueue on {AUDIT}, {MAILER} (no 3)",
    ]
    assert last.startswith(HINT)
    assert json.loads(last.removeprefix(HINT)) == {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": ["sns:CreateTopic"], "Resource": [USERS]},
            {"Effect": "Allow", "Action": ["sqs:CreateQueue", "sqs:TagQueue"], "Resource": [AUDIT, MAILER]},
        ],
    }


KEY = create_table_arguments("claims")


@pytest.mark.parametrize(
    ("key", "definitions", "error"),
    [
        (KEY["KeySchema"], None, None),
        (KEY["KeySchema"], KEY["AttributeDefinitions"], None),
        (KEY["KeySchema"], [{"AttributeName": "claim", "AttributeType": "B"}], "is not one of claims"),
        ([{"AttributeName": "id", "KeyType": "HASH"}], None, "is not one of claims"),
        ([{"AttributeName": "key", "KeyType": "HASH"}], None, "has claims of an earlier version"),
    ],
)
def test_a_table_with_another_key_cannot_store_claims(key: Any, definitions: Any, error: str | None) -> None:
    found = find_table_error("claims", key, definitions)

    assert (found is None) == (error is None)
    assert found is None or found.startswith(f"DynamoDB table 'claims' {error}")


def test_the_items_of_a_table_expire() -> None:
    assert update_time_to_live_arguments("claims") == {
        "TableName": "claims",
        "TimeToLiveSpecification": {"Enabled": True, "AttributeName": "expires_at"},
    }


@pytest.mark.parametrize(
    ("url", "name"), [(None, None), ("redis://x", None), ("dynamodb://a.b", "a.b"), ("DynamoDB://abc", "abc")]
)
def test_the_name_of_a_table_is_in_the_url_of_its_store(url: str | None, name: str | None) -> None:
    assert table_name_in(url) == name


@pytest.mark.parametrize("url", ["dynamodb://", "dynamodb://ab", "dynamodb://user@table", "dynamodb://a/b"])
def test_a_url_of_dynamodb_without_a_table_is_an_error(url: str) -> None:
    with pytest.raises(ConfigError, match="must name a table, as in dynamodb://claims"):
        table_name_in(url)


@pytest.mark.parametrize(("prefix", "id_"), [("", "smartpipe-claim-check"), ("a/b/", "smartpipe-claim-check-a/b")])
def test_each_prefix_of_a_bucket_has_its_own_rule(prefix: str, id_: str) -> None:
    expiry = Bucket("bodies", prefix, 30).expiry
    rule = lifecycle_rule_of(expiry)

    assert (rule["ID"], rule["Expiration"]) == (id_, {"Days": 30})
    assert find_expiry([{"ID": "theirs"}, rule], prefix) == expiry
    assert find_expiry([rule], "other/") == {}


@pytest.mark.parametrize(("owner", "is_ours"), [(None, True), ("123456789012", True), ("999999999999", False)])
def test_the_table_and_the_bucket_of_this_account_are_part_of_the_topology(owner: str | None, is_ours: bool) -> None:
    bucket = Bucket("bodies", "staging/", 30, owner)
    settings = TableAndBucket("claims", bucket)
    tags = {TAGS: {"smartpipe:application": "shop"}}

    assert settings.derive_tables(NAMING) == {NAMING.table_arn("claims"): {"TimeToLive": "expires_at", **tags}}
    assert settings.derive_buckets(NAMING) == (
        {NAMING.bucket_arn("bodies"): {LIFECYCLE: bucket.expiry, **tags}} if is_ours else {}
    )
    assert TableAndBucket().derive_tables(NAMING) == TableAndBucket().derive_buckets(NAMING) == {}
