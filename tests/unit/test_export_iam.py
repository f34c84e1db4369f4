from __future__ import annotations

import json
import re
from typing import Any

import pytest

from smartpipe import Event, Queue, Service, Topic
from smartpipe.names import Naming
from smartpipe.topology.export.iam import build_policies, describe_split_policies
from tests.support import exported
from tests.support.exported import AccountOpened, SecretTold, subscribed

NAMING = Naming("aws", "eu-west-1", "123456789012", "test-")
SNS = "arn:aws:sns:eu-west-1:123456789012:test-"
SQS = "arn:aws:sqs:eu-west-1:123456789012:test-"
KMS = "arn:aws:kms:eu-west-1:123456789012:key/"


def statements(service: Service, purpose: str) -> dict[str, dict[str, Any]]:
    return {one["Sid"]: one for one in build_policies(service, NAMING)[purpose]["Statement"]}


def allowed(service: Service, purpose: str) -> dict[str, set[str]]:
    """Return the resources of each action."""
    found: dict[str, set[str]] = {}
    for statement in statements(service, purpose).values():
        for action in statement["Action"]:
            found.setdefault(action, set()).update(statement["Resource"])
    return found


@pytest.mark.parametrize("service", exported.everything(), ids=lambda service: service.name)
def test_every_policy_is_a_valid_document(service: Service) -> None:
    for document in build_policies(service, NAMING).values():
        assert document["Version"] == "2012-10-17"
        sids = [statement["Sid"] for statement in document["Statement"]]
        assert len(set(sids)) == len(sids) > 0
        for statement in document["Statement"]:
            assert re.fullmatch(r"[A-Za-z0-9]+", statement["Sid"])
            assert statement["Effect"] == "Allow"
            assert statement["Action"]
            assert statement["Resource"]


def test_a_publisher_may_publish_and_send_to_what_it_declares_and_nothing_else() -> None:
    assert allowed(exported.portal(), "publish") == {
        "sns:Publish": {f"{SNS}accounts", f"{SNS}payments.fifo"},
        "sqs:SendMessage": {f"{SQS}reports"},
        "sqs:GetQueueUrl": {f"{SQS}reports"},
    }


def test_a_service_has_policies_only_for_its_purposes() -> None:
    assert build_policies(exported.portal(), NAMING).keys() == {"publish", "provision", "examine"}
    assert build_policies(exported.archive(), NAMING).keys() == {"consume", "provision", "redrive", "examine"}


def test_a_worker_that_reports_ages_may_ask_cloudwatch_for_them() -> None:
    for reads_ages in (True, False):
        found = build_policies(exported.archive(), NAMING, reads_ages=reads_ages)
        actions = {action for one in found["consume"]["Statement"] for action in one["Action"]}
        assert ("cloudwatch:GetMetricData" in actions) == reads_ages

    assert "consume" not in build_policies(exported.portal(), NAMING, reads_ages=True)


CHANGES = re.compile(
    r":(Create|Delete|Set|Put|Update|Tag|Send|Receive|Publish|Subscribe|Unsubscribe|Change|Decrypt|Generate)"
)


@pytest.mark.parametrize("service", exported.everything(), ids=lambda service: service.name)
def test_the_policy_for_doctor_only_reads(service: Service) -> None:
    actions = allowed(service, "examine")

    assert [action for action in actions if CHANGES.search(action)] == []
    assert {"cloudwatch:DescribeAlarms", "sqs:GetQueueAttributes", "sns:GetTopicAttributes"} <= actions.keys()


def test_doctor_may_read_the_policies_of_the_keys_of_own_queues() -> None:
    queue = Queue("mails", kms_key=f"{KMS}1234")

    found = allowed(subscribed(Service("mails", queue=queue), AccountOpened), "examine")
    assert found["kms:GetKeyPolicy"] == found["kms:DescribeKey"] == {f"{KMS}1234"}


def test_a_worker_may_receive_settle_dead_letter_and_read_its_topology() -> None:
    own, dead = {f"{SQS}archive", f"{SQS}reports"}, {f"{SQS}archive-dlq", f"{SQS}reports-dlq"}

    assert allowed(exported.archive(), "consume") == {
        "sqs:ReceiveMessage": own,
        "sqs:DeleteMessage": own,
        "sqs:ChangeMessageVisibility": own,
        "sqs:GetQueueUrl": own | dead,
        "sqs:GetQueueAttributes": own | dead,
        "sqs:SendMessage": dead,
        "sns:GetTopicAttributes": {f"{SNS}accounts", f"{SNS}payments.fifo"},
        "sns:ListSubscriptionsByTopic": {f"{SNS}accounts", f"{SNS}payments.fifo"},
        "sns:GetSubscriptionAttributes": {"*"},
    }


def test_subscriptions_to_a_topic_of_another_account_are_found_by_listing_all() -> None:
    found = allowed(exported.affiliates(), "consume")

    assert found["sns:GetTopicAttributes"] == {exported.partners.arn}
    assert found["sns:ListSubscriptions"] == {"*"}
    assert "sns:ListSubscriptionsByTopic" not in found


def test_a_worker_of_a_direct_queue_needs_no_permission_of_sns() -> None:
    service = subscribed(Service("s", queue=Queue("s", direct=True)), AccountOpened)

    assert not [action for action in allowed(service, "consume") if action.startswith("sns:")]


def test_provisioning_reads_the_whole_prefix_and_changes_only_its_own_resources() -> None:
    found = allowed(exported.mailer(), "provision")

    changing = {f"{SQS}mailer", f"{SQS}mailer-dlq"}
    assert found["sqs:CreateQueue"] == found["sqs:SetQueueAttributes"] == found["sqs:DeleteQueue"] == changing
    assert found["sns:CreateTopic"] == found["sns:Subscribe"] == {f"{SNS}accounts"}
    assert found["sqs:GetQueueAttributes"] == {f"{SQS}*"}
    assert found["sns:GetTopicAttributes"] == {f"{SNS}*"}
    assert found["sns:SetSubscriptionAttributes"] == found["tag:GetResources"] == {"*"}


def test_redriving_receives_dead_letter_messages_and_sends_to_their_queues_only() -> None:
    own, dead = {f"{SQS}archive", f"{SQS}reports"}, {f"{SQS}archive-dlq", f"{SQS}reports-dlq"}

    assert allowed(exported.archive(), "redrive") == {
        "sqs:ReceiveMessage": dead,
        "sqs:DeleteMessage": dead,
        "sqs:ChangeMessageVisibility": dead,
        "sqs:GetQueueAttributes": dead,
        "sqs:GetQueueUrl": own | dead,
        "sqs:SendMessage": own,
        "cloudwatch:GetMetricData": {"*"},
    }


def test_external_resources_are_read_and_subscribed_to_and_never_changed() -> None:
    topics, queues = allowed(exported.affiliates(), "provision"), allowed(exported.borrower(), "provision")

    assert topics["sns:Subscribe"] == {exported.partners.arn}
    assert "sns:CreateTopic" not in topics
    theirs = {f"arn:aws:sqs:eu-west-1:210987654321:{name}" for name in ("theirs", "their-dead")}
    assert queues["sqs:GetQueueAttributes"] == {f"{SQS}*", *theirs}
    assert "sqs:SetQueueAttributes" not in queues


def test_a_key_named_by_its_alias_is_allowed_by_a_condition() -> None:
    statement = statements(exported.vault(), "publish")["EncryptWhatIsPublishedByAlias"]

    assert statement["Action"] == ["kms:Decrypt", "kms:GenerateDataKey"]
    assert statement["Resource"] == [f"{KMS}*"]
    assert statement["Condition"] == {"ForAnyValue:StringEquals": {"kms:ResourceAliases": ["alias/smartpipe"]}}


@pytest.mark.parametrize(
    ("key", "resource"),
    [
        ("1234abcd-12ab-34cd-56ef-1234567890ab", f"{KMS}1234abcd-12ab-34cd-56ef-1234567890ab"),
        ("arn:aws:kms:eu-west-1:999988887777:key/mrk-1", "arn:aws:kms:eu-west-1:999988887777:key/mrk-1"),
        ("arn:aws:kms:eu-west-1:999988887777:alias/shop", "arn:aws:kms:eu-west-1:999988887777:key/*"),
    ],
)
def test_a_consumer_decrypts_with_its_queues_key_and_encrypts_dead_letters(key: str, resource: str) -> None:
    service = subscribed(Service("s", queue=Queue("s", kms_key=key)), SecretTold)

    found = allowed(service, "consume")

    assert found["kms:Decrypt"] == found["kms:GenerateDataKey"] == {resource}


def of_many_queues(count: int, **options: Any) -> Service:
    service = Service("many")
    for number in range(count):

        class Done(Event, topic=Topic(f"a-topic-of-the-shop-{number}"), type=f"done.{number}", version="1.0"):
            pass

        async def handle(event: Done) -> None: ...

        handle.__annotations__["event"] = Done
        service.subscribe(Done, queue=Queue(f"a-queue-of-the-shop-{number}", **options))(handle)
    return service


def size_of(document: dict[str, Any]) -> int:
    return len(re.sub(r"\s", "", json.dumps(document)))


@pytest.mark.parametrize("count", [1, 20, 60, 200])
def test_policies_for_many_queues_are_split_to_fit_into_managed_policies(count: int) -> None:
    service = of_many_queues(count, kms_key="alias/shop")

    found = build_policies(service, NAMING)

    assert max(map(size_of, found.values())) <= 6_144
    granted = {
        (action, resource)
        for document in found.values()
        for statement in document["Statement"]
        for action in statement["Action"]
        for resource in statement["Resource"]
    }
    queues = [f"{SQS}a-queue-of-the-shop-{number}{end}" for number in range(count) for end in ("", "-dlq")]
    assert {resource for action, resource in granted if action == "sqs:ReceiveMessage"} == set(queues)
    assert {resource for action, resource in granted if action == "sqs:SetQueueAttributes"} == set(queues)
    for document in found.values():
        sids = [statement["Sid"] for statement in document["Statement"]]
        assert len(set(sids)) == len(sids) > 0
        assert document["Version"] == "2012-10-17"
    assert ("consume-2" in found) is (count >= 60)
    assert bool(describe_split_policies("many", found)) is (count >= 60)


def test_a_split_policy_is_reported_with_all_its_parts() -> None:
    found = build_policies(of_many_queues(60), NAMING)

    sentences = describe_split_policies("many", found)

    assert all("6,144" in sentence for sentence in sentences)
    assert any("policy consume is" in sentence and "consume, consume-2" in sentence for sentence in sentences)


def test_names_of_china_and_govcloud_are_in_their_partition() -> None:
    china = NAMING._replace(partition="aws-cn", region="cn-north-1")
    key = Topic("china", kms_key="k")

    class Said(Event, topic=key, type="said", version="1.0"):
        pass

    found = build_policies(Service("s", publishes=[Said]), china)["publish"]["Statement"]

    assert [one["Resource"] for one in found] == [
        ["arn:aws-cn:sns:cn-north-1:123456789012:test-china"],
        ["arn:aws-cn:kms:cn-north-1:123456789012:key/k"],
    ]


def test_only_policies_that_were_split_are_described() -> None:
    one: dict[str, Any] = {"Statement": []}

    assert describe_split_policies("s", {"publish": one, "consume": one}) == []
    [sentence] = describe_split_policies("s", {"publish": one, "consume": one, "consume-2": one})
    assert "it is split: attach consume, consume-2 to the role" in sentence
