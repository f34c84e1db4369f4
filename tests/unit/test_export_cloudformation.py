from __future__ import annotations

import json
import re
from typing import Any

import pytest

from smartpipe import ConfigError, Event, FilterPolicy, Queue, Service, Topic
from smartpipe.topology.export.cloudformation import build_template
from tests.support import exported
from tests.support.exported import AccountOpened, numbered, subscribed


def template_of(*services: Service) -> dict[str, Any]:
    return build_template(services, prefix="test-", application="shop")


def of_type(found: dict[str, Any], kind: str) -> dict[str, Any]:
    return {name: one["Properties"] for name, one in found["Resources"].items() if one["Type"] == kind}


def test_a_template_names_no_account_and_no_region() -> None:
    text = json.dumps(template_of(*exported.services()))

    assert not re.search(r"this-|\d{12}|[a-z]{2}-[a-z]+-\d", text)


def test_a_template_does_not_depend_on_the_order_of_the_targets() -> None:
    services = exported.everything()

    assert json.dumps(template_of(*services)) == json.dumps(template_of(*reversed(services)))


def test_a_queue_refers_to_its_dead_letter_queue_without_a_circular_reference() -> None:
    queues = of_type(template_of(exported.mailer()), "AWS::SQS::Queue")

    assert queues["MailerQueue"]["RedrivePolicy"] == {
        "deadLetterTargetArn": {"Fn::GetAtt": ["MailerDlqQueue", "Arn"]},
        "maxReceiveCount": 24,
    }
    assert queues["MailerDlqQueue"]["RedriveAllowPolicy"]["sourceQueueArns"] == [
        {"Fn::Sub": "arn:${AWS::Partition}:sqs:${AWS::Region}:${AWS::AccountId}:test-mailer"}
    ]


def test_attributes_have_the_types_of_cloudformation() -> None:
    found = template_of(exported.ledger(), exported.cinema())

    queue = of_type(found, "AWS::SQS::Queue")["LedgerQueueFifo"]
    topic = of_type(found, "AWS::SNS::Topic")["FilmsTopic"]
    assert (queue["FifoQueue"], queue["VisibilityTimeout"]) == (True, 30)
    assert (queue["DeduplicationScope"], queue["FifoThroughputLimit"]) == ("messageGroup", "perMessageGroupId")
    assert topic["MaximumMessageSize"] == 1_048_576


def test_subscriptions_depend_on_the_policies_of_queue_and_dead_letter_queue() -> None:
    resources = template_of(exported.mailer())["Resources"]

    assert resources["AccountsTopicMailerQueueSubscription"]["DependsOn"] == [
        "MailerQueuePolicy",
        "MailerDlqQueuePolicy",
    ]


def test_only_the_topics_of_this_account_may_send_to_a_queue() -> None:
    [policy] = [
        one["PolicyDocument"]
        for one in of_type(template_of(exported.archive()), "AWS::SQS::QueuePolicy").values()
        if one["Queues"] == [{"Ref": "ArchiveQueue"}]
    ]

    [statement] = policy["Statement"]
    assert statement["Resource"] == {"Fn::GetAtt": ["ArchiveQueue", "Arn"]}
    assert statement["Condition"] == {
        "ArnEquals": {"aws:SourceArn": [{"Ref": "AccountsTopic"}, {"Ref": "PaymentsTopicFifo"}]},
        "StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}},
    }


def test_an_external_topic_is_subscribed_to_in_its_region_and_not_created() -> None:
    found = template_of(exported.affiliates())

    [subscription] = of_type(found, "AWS::SNS::Subscription").values()
    assert subscription["TopicArn"] == exported.partners.arn
    assert subscription["Region"] == "us-east-2"
    assert of_type(found, "AWS::SNS::Topic") == {}


def test_an_external_queue_is_left_out() -> None:
    assert list(template_of(exported.borrower())["Resources"]) == ["AccountsTopic"]


def test_a_direct_queue_has_no_policy() -> None:
    service = subscribed(Service("s", queue=Queue("s", direct=True)), AccountOpened)

    assert of_type(template_of(service), "AWS::SQS::QueuePolicy") == {}


def test_two_names_never_share_a_logical_id() -> None:
    one, other = (subscribed(Service(name), AccountOpened) for name in ("a-b", "a_b"))

    ids = list(of_type(template_of(one, other), "AWS::SQS::Queue"))

    assert len(set(ids)) == 4
    assert all(re.fullmatch(r"AB(Dlq)?Queue[0-9a-f]{8}", one) for one in ids)


def test_a_filter_with_names_of_cloudformation_functions_is_written_as_text() -> None:
    policy = FilterPolicy({"data": {"Ref": ["AccountsTopic"]}}, scope="MessageBody")
    service = subscribed(Service("s", queue=Queue("s", filter_policy=policy)), AccountOpened)

    [subscription] = of_type(template_of(service), "AWS::SNS::Subscription").values()

    assert json.loads(subscription["FilterPolicy"])["data"] == {"Ref": ["AccountsTopic"]}


@pytest.mark.parametrize(
    ("conditions", "scope"),
    [
        ({"data": {"name": [None, "x"]}}, "MessageBody"),
        ({"tenant": [None]}, "MessageAttributes"),
        ({"$or": [{"tenant": ["x", None]}, {"region": ["eu"]}]}, "MessageAttributes"),
    ],
)
def test_a_filter_with_a_null_is_written_as_text_because_templates_have_none(conditions: Any, scope: Any) -> None:
    queue = Queue("s", filter_policy=FilterPolicy(conditions, scope))
    found = template_of(subscribed(Service("s", queue=queue), AccountOpened))

    [subscription] = of_type(found, "AWS::SNS::Subscription").values()

    assert json.loads(subscription["FilterPolicy"]).items() >= conditions.items()
    assert "null" not in json.dumps({**subscription, "FilterPolicy": ""})
    assert json.loads(json.dumps(found), object_pairs_hook=lambda pairs: all(one is not None for _, one in pairs))


def test_a_filter_with_numbers_and_booleans_stays_readable() -> None:
    policy = FilterPolicy({"price": [{"numeric": [">", 0]}], "paid": [True], "note": [{"exists": False}]})
    service = subscribed(Service("s", queue=Queue("s", filter_policy=policy)), AccountOpened)

    [subscription] = of_type(template_of(service), "AWS::SNS::Subscription").values()

    assert subscription["FilterPolicy"].items() >= policy.conditions.items()


def test_a_policy_for_very_many_topics_allows_a_pattern() -> None:
    policies = of_type(template_of(subscribed(Service("s"), *map(numbered, range(200)))), "AWS::SQS::QueuePolicy")

    condition = policies["SQueuePolicy"]["PolicyDocument"]["Statement"][0]["Condition"]
    pattern = {"Fn::Sub": "arn:${AWS::Partition}:sns:${AWS::Region}:${AWS::AccountId}:test-many-*"}
    assert condition["ArnLike"] == {"aws:SourceArn": [pattern]}


def test_logical_ids_stay_within_the_limit_of_cloudformation() -> None:
    class Long(Event, topic=Topic("t" * 250), type="long", version="1.0"):
        pass

    resources = template_of(subscribed(Service("s"), Long))["Resources"]

    assert max(map(len, resources)) == 255


def publishing(number: int) -> Service:
    """Return a service that publishes to this number of topics."""
    return Service("many", publishes=[numbered(one) for one in range(number)])


def test_too_many_resources_for_cloudformation_are_refused_with_an_alternative() -> None:
    with pytest.raises(ConfigError, match=r"501 resources.*takes 500.*--format terraform"):
        template_of(publishing(501))
    assert len(template_of(publishing(500))["Resources"]) == 500


def test_too_many_outputs_for_cloudformation_are_left_out() -> None:
    assert len(template_of(publishing(200))["Outputs"]) == 200
    assert "Outputs" not in template_of(publishing(201))
