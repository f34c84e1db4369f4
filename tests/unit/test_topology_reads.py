"""Reads of the deployed topology: its topics, queues and subscriptions, orphans, and what IAM refuses to show."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import Service
from smartpipe.errors import TopologyError, TransportError
from smartpipe.topology.aws import delivery
from smartpipe.topology.aws.calls import Denied, Reading
from smartpipe.topology.aws.read import TopologyReader
from smartpipe.topology.aws.verify import verify
from smartpipe.topology.derive import derive
from smartpipe.topology.kinds import SOURCES
from smartpipe.topology.policy import build_statement, merge_statements
from smartpipe.topology.resources import TAGS, Topology
from tests.support import exported
from tests.support.scripted_aws import (
    ACCOUNT,
    DEAD,
    FAR_TOPIC,
    LISTED,
    NAMING,
    OTHER_TOPIC,
    QUEUE,
    REGION,
    SUBSCRIPTION,
    TAG_LIST,
    TOPIC,
    URL,
    aws_of,
    refusal,
)

if TYPE_CHECKING:
    from smartpipe.topology.resources import Attributes


def present(**attributes: str) -> dict[str, Any]:
    return {"Attributes": attributes}


async def test_a_topic_is_read_with_its_tags_if_they_are_wanted_and_it_is_ours() -> None:
    desired = Topology({}, frozenset({FAR_TOPIC}))
    aws = aws_of(get_topic_attributes=present(a="1"), list_tags_for_resource={"Tags": TAG_LIST})

    assert await delivery.read_topic(Reading(aws), TOPIC, desired) == {"a": "1", TAGS: {"a": "1"}}
    assert await delivery.read_topic(Reading(aws, with_tags=False), TOPIC, desired) == {"a": "1"}
    assert await delivery.read_topic(Reading(aws), FAR_TOPIC, desired) == {"a": "1"}
    assert len(aws.made("list_tags_for_resource")) == 1
    assert ("sns", "us-east-1") in aws.clients


@pytest.mark.parametrize(
    ("arn", "code", "attributes", "notes"),
    [
        (TOPIC, "NotFound", None, 0),
        (FAR_TOPIC, "NotFound", None, 0),
        (FAR_TOPIC, "InvalidParameter", None, 0),
        (FAR_TOPIC, "AccessDenied", {}, 1),
        (TOPIC, "AccessDenied", None, 0),
    ],
)
async def test_a_topic_of_others_need_not_be_readable(
    arn: str, code: str, attributes: dict[str, str] | None, notes: int
) -> None:
    reading = Reading(aws_of(get_topic_attributes=refusal(code)))

    assert await delivery.read_topic(reading, arn, Topology({}, frozenset({FAR_TOPIC}))) == attributes

    assert len(reading.notes) == notes
    assert [denial.resource for denial in reading.denials] == (
        [TOPIC] if (arn, code) == (TOPIC, "AccessDenied") else []
    )


async def test_a_queue_is_read_with_json_as_plain_values_and_its_policy_as_text() -> None:
    attributes = {
        "RedrivePolicy": '{"maxReceiveCount": "5", "a": 1}',
        "RedriveAllowPolicy": "",
        "Policy": '{"a": 1}',
        "DelaySeconds": "3",
    }
    aws = aws_of(get_queue_attributes={"Attributes": attributes}, list_queue_tags={"Tags": {"a": "1"}})
    desired = Topology({})

    assert await delivery.read_queue(Reading(aws), QUEUE, desired) == {
        **attributes,
        "RedrivePolicy": {"maxReceiveCount": 5, "a": 1},
        TAGS: {"a": "1"},
    }
    assert aws.made("get_queue_attributes") == [{"QueueUrl": URL, "AttributeNames": ["All"]}]
    without = await delivery.read_queue(Reading(aws, with_tags=False), QUEUE, desired)
    assert without is not None
    assert TAGS not in without


@pytest.mark.parametrize("method", ["queue_url", "get_queue_attributes"])
async def test_a_queue_that_does_not_exist_has_no_attributes(method: str) -> None:
    aws = aws_of(**{method: refusal("QueueDoesNotExist")})

    assert await delivery.read_queue(Reading(aws), QUEUE, Topology({})) is None


async def test_a_queue_whose_tags_iam_refuses_has_none() -> None:
    aws = aws_of(get_queue_attributes={"Attributes": {}}, list_queue_tags=refusal("AccessDenied"))
    reading = Reading(aws)

    assert await delivery.read_queue(reading, QUEUE, Topology({})) == {TAGS: {}}
    assert [denial.action for denial in reading.denials] == ["sqs:ListQueueTags"]


async def test_the_subscriptions_of_declared_and_allowed_topics_are_found() -> None:
    wanted = {(TOPIC, QUEUE): {"RawMessageDelivery": "true"}}
    allowed = merge_statements(None, build_statement(QUEUE, [TOPIC, OTHER_TOPIC]))
    desired = Topology({"topic": {TOPIC: {}}, "queue": {QUEUE: {}}, "subscription": wanted})
    actual = Topology({"topic": {TOPIC: {}}, "queue": {QUEUE: {"Policy": allowed}}})
    pages: dict[tuple[str, str | None], dict[str, Any]] = {
        (TOPIC, None): {"Subscriptions": [LISTED], "NextToken": "n"},
        (TOPIC, "n"): {"Subscriptions": [LISTED | {"Endpoint": "ada", "SubscriptionArn": "PendingConfirmation"}]},
        (OTHER_TOPIC, None): {
            "Subscriptions": [LISTED | {"TopicArn": OTHER_TOPIC, "SubscriptionArn": f"{OTHER_TOPIC}:2"}]
        },
    }
    aws = aws_of(
        list_subscriptions_by_topic=lambda **call: pages[call["TopicArn"], call.get("NextToken")],
        get_subscription_attributes=present(RawMessageDelivery="true"),
    )

    found = await delivery.find_subscriptions(Reading(aws), desired, actual)

    assert found == {
        (TOPIC, QUEUE): {"RawMessageDelivery": "true"},
        (OTHER_TOPIC, QUEUE): {"SubscriptionArn": f"{OTHER_TOPIC}:2"},
    }
    assert len(aws.made("list_subscriptions_by_topic")) == 3


async def test_without_tags_only_the_subscriptions_of_declared_topics_are_found() -> None:
    allowed = merge_statements(None, build_statement(QUEUE, [OTHER_TOPIC]))
    desired = Topology({"topic": {TOPIC: {}}, "queue": {QUEUE: {}}})
    actual = Topology({"topic": {TOPIC: {}}, "queue": {QUEUE: {"Policy": allowed}}})
    aws = aws_of()

    assert await delivery.find_subscriptions(Reading(aws, with_tags=False), desired, actual) == {}

    assert [call["TopicArn"] for call in aws.made("list_subscriptions_by_topic")] == [TOPIC]


async def test_the_subscription_of_a_queue_of_others_is_not_read() -> None:
    wanted: dict[Any, Any] = {(TOPIC, QUEUE): {}}
    desired = Topology({"topic": {TOPIC: {}}, "queue": {QUEUE: {}}, "subscription": wanted}, frozenset({QUEUE}))
    aws = aws_of(list_subscriptions_by_topic={"Subscriptions": [LISTED]})

    found = await delivery.find_subscriptions(Reading(aws), desired, Topology({"topic": {TOPIC: {}}}))

    assert found == {(TOPIC, QUEUE): {"SubscriptionArn": SUBSCRIPTION}}


DESIRED = Topology({"topic": {TOPIC: {}}, "queue": {QUEUE: {}}})


def page_of(*arns: str, token: str = "") -> dict[str, Any]:
    return {"ResourceTagMappingList": [{"ResourceARN": arn} for arn in arns], "PaginationToken": token}


async def test_resources_with_the_applications_tags_that_are_not_declared_are_orphans() -> None:
    far, foreign = QUEUE.replace(REGION, "us-east-1"), QUEUE.replace(ACCOUNT, "999999999999")
    aws = aws_of(
        get_resources=[page_of(QUEUE, DEAD, token="n"), page_of(TOPIC, OTHER_TOPIC, far, foreign)],
        get_topic_attributes=present(a="1"),
        get_queue_attributes=present(b="2"),
    )
    reader = TopologyReader(aws)

    found = await reader.read(DESIRED)

    assert reader.orphans == [DEAD, OTHER_TOPIC]
    assert reader.knows_orphans
    assert (set(found.topics), set(found.queues)) == ({TOPIC, OTHER_TOPIC}, {QUEUE, DEAD})
    assert found.queues[DEAD] == {"b": "2", TAGS: {}}
    first, second = aws.made("get_resources")
    assert first == {
        "TagFilters": [
            {"Key": "smartpipe:application", "Values": ["shop"]},
            {"Key": "smartpipe:prefix", "Values": ["staging-"]},
        ],
        "ResourceTypeFilters": ["sns", "sqs"],
    }
    assert second == {**first, "PaginationToken": "n"}


async def test_the_subscriptions_of_deployed_topics_are_read_too() -> None:
    aws = aws_of(
        get_topic_attributes=present(),
        get_queue_attributes=present(),
        list_subscriptions_by_topic={"Subscriptions": [LISTED]},
    )

    found = await TopologyReader(aws).read(DESIRED)

    assert found.subscriptions == {(TOPIC, QUEUE): {"SubscriptionArn": SUBSCRIPTION}}


async def test_without_tags_nothing_is_an_orphan() -> None:
    aws = aws_of(get_resources=page_of(DEAD), get_topic_attributes=present(), get_queue_attributes=present())
    reader = TopologyReader(aws)

    found = await reader.read(DESIRED, tags=False)

    assert (reader.orphans, reader.knows_orphans, aws.made("get_resources")) == ([], True, [])
    assert found.queues == {QUEUE: {}}


async def test_if_aws_does_not_list_orphans_that_is_a_note() -> None:
    aws = aws_of(
        get_resources=[page_of(DEAD, token="n"), refusal("InternalFailure", "broken")],
        get_topic_attributes=present(),
        get_queue_attributes=present(),
    )
    reader = TopologyReader(aws)

    found = await reader.read(DESIRED)

    assert (reader.orphans, reader.knows_orphans) == ([], False)
    [note] = reader.notes
    assert note.startswith("AWS did not list the resources that no TARGET declares: ")
    assert "broken" in note
    assert DEAD not in found.queues


async def test_an_orphan_that_cannot_be_read_is_a_note_and_a_declared_resource_is_an_error() -> None:
    def read(QueueUrl: str, **_: Any) -> Any:  # noqa: N803 - the name of AWS
        if QueueUrl == refused:
            raise refusal("AccessDenied")
        return present()

    aws = aws_of(get_resources=page_of(DEAD), get_topic_attributes=present(), get_queue_attributes=read)
    refused, reader = f"{URL}-dlq", TopologyReader(aws)
    assert (await reader.read(DESIRED)).queues.keys() == {QUEUE}
    text = "carries the application's tags, is not declared by any TARGET, and cannot be read"
    assert reader.notes == [f"{DEAD} {text} (sqs:GetQueueAttributes)"]

    refused, reader = URL, TopologyReader(aws)
    with pytest.raises(Denied):
        await reader.read(DESIRED)
    reader = TopologyReader(aws)
    assert (await reader.read_permitted(DESIRED)).queues.keys() == {DEAD}
    assert [denial.resource for denial in reader.denials] == [QUEUE]


async def test_each_queue_of_ours_gets_the_queues_that_redrive_to_it() -> None:
    def list_sources(QueueUrl: str, **_: Any) -> Any:  # noqa: N803 - the name of AWS
        if QueueUrl.endswith("denied"):
            raise refusal("AccessDenied")
        if QueueUrl.endswith("unknown"):
            raise refusal("UnknownOperation")
        return {"queueUrls": [URL]} if QueueUrl.endswith("dlq") else {}

    denied, unknown, theirs = QUEUE + "-denied", QUEUE + "-unknown", QUEUE + "-theirs"
    aws = aws_of(list_dead_letter_source_queues=list_sources)
    reader = TopologyReader(aws)
    actual = Topology({"queue": {arn: {"a": "1"} for arn in (QUEUE, DEAD, denied, unknown, theirs)}})

    found = await reader.with_sources(actual, frozenset({theirs}))

    assert {arn: attributes.get(SOURCES, "absent") for arn, attributes in found.queues.items()} == {
        QUEUE: [],
        DEAD: [QUEUE],
        denied: None,
        unknown: [],
        theirs: "absent",
    }
    assert all(attributes["a"] == "1" for attributes in found.queues.values())
    assert reader.notes == [
        f"{denied} may be the dead-letter queue of other queues, so it is kept (sqs:ListDeadLetterSourceQueues)"
    ]
    assert reader.denials == []


async def test_sources_that_cannot_be_listed_for_now_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smartpipe.topology.aws.calls.RETRY_SECONDS", 0.0)
    aws = aws_of(list_dead_letter_source_queues=refusal("Throttling"))

    with pytest.raises(TransportError):
        await TopologyReader(aws).with_sources(Topology({"queue": {QUEUE: {}}}), frozenset())


def policy_text(attributes: Attributes) -> Attributes:
    return {"Policy": json.dumps(attributes["Policy"])} if "Policy" in attributes else {}


class Deployed:
    """The topology of a service as a broker would answer, with some changes."""

    def __init__(self) -> None:
        self.service = exported.mailer()
        self.topology = derive([self.service], NAMING)
        self.missing: set[str] = set()
        self.denied: set[str] = set()
        self.changes: dict[str, Attributes] = {}
        self.denials: list[Any] = []

    def reader(self, _: object) -> Any:
        return self

    async def read_permitted(self, desired: Topology, *, tags: bool) -> Topology:
        assert not tags
        self.desired = desired
        self.denials = [type("Denial", (), {"resource": arn})() for arn in self.denied]
        found: dict[str, Any] = {
            kind: {
                key: {**attributes, **policy_text(attributes), **self.changes.get(str(key), {})}
                for key, attributes in resources.items()
                if key not in self.missing | self.denied
            }
            for kind, resources in desired.resources.items()
        }
        return Topology(found)


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch) -> Deployed:
    deployed = Deployed()
    monkeypatch.setattr("smartpipe.topology.aws.verify.TopologyReader", deployed.reader)
    monkeypatch.setattr("smartpipe.topology.aws.verify.Denied", lambda _: PermissionError("denied"))
    return deployed


async def test_a_worker_reads_what_it_consumes_from_without_tags(deployed: Deployed) -> None:
    assert await verify(deployed.service, aws_of()) == []

    assert deployed.desired.queues.keys() == deployed.topology.queues.keys()
    assert {topic for topic, _ in deployed.desired.subscriptions} == deployed.desired.topics.keys()
    for kind in ("topic", "queue"):
        for attributes in deployed.desired.of(kind).values():
            assert attributes
            assert not {TAGS, "RedriveAllowPolicy"} & attributes.keys()


async def test_a_worker_does_not_read_the_topics_to_which_it_only_publishes(deployed: Deployed) -> None:
    service = exported.subscribed(Service("both", publishes=[exported.PaymentMade]), exported.AccountOpened)
    deployed.topology = derive([service], NAMING)

    await verify(service, aws_of())

    assert len(deployed.topology.topics) == 2
    assert deployed.desired.topics.keys() == {topic for topic, _ in deployed.desired.subscriptions}


async def test_a_difference_is_described(deployed: Deployed) -> None:
    queue = NAMING.queue_arn("mailer")
    deployed.changes[queue] = {"DelaySeconds": "900"}

    [drift] = await verify(deployed.service, aws_of())

    assert drift.startswith(f"update queue {queue.rpartition(':')[2]} (DelaySeconds: 900 → 5)")


async def test_missing_resources_are_an_error_that_names_each(deployed: Deployed) -> None:
    queue = NAMING.queue_arn("mailer")
    topic = next(iter(deployed.topology.topics))
    deployed.missing = {queue, topic}

    with pytest.raises(TopologyError) as raised:
        await verify(deployed.service, aws_of())

    *missing, last = str(raised.value).splitlines()
    names = {f"missing: queue {queue.rpartition(':')[2]}", f"missing: topic {topic.rpartition(':')[2]}"}
    assert set(missing) == names
    assert last == "run `smartpipe topology apply` to create the missing resources"


async def test_a_resource_that_iam_hides_is_not_missing_but_an_error(deployed: Deployed) -> None:
    queue = NAMING.queue_arn("mailer")
    deployed.denied = {queue}

    with pytest.raises(PermissionError):
        await verify(deployed.service, aws_of())
