"""The requests of the publisher for blocking code, and the failures that it reports."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from smartpipe import ConfigError, Event, PublishError, Topic, blocking
from smartpipe.envelope.object_store import get_from_memory
from smartpipe.message import Payload
from smartpipe.telemetry.prometheus import render
from tests.support.events import ADA, OrderPlaced, Paid, UserLeft

if TYPE_CHECKING:
    from collections.abc import Iterator

ELSEWHERE = "arn:aws:sns:us-west-2:210987654321:elsewhere"
NAMING = "arn:aws-test:sns:eu-west-1:123456789012:staging-"


class Far(Event, topic=Topic(arn=ELSEWHERE), type="far", version="1.0"):
    text: str = ""


def error_of(code: str) -> ClientError:
    response: Any = {"Error": {"Code": code, "Message": "what AWS said"}, "ResponseMetadata": {"HTTPStatusCode": 400}}
    return ClientError(response, "Op")


class Clients:
    """Clients of SNS, SQS and S3 that record their calls, and raise or return the test's ``answers``."""

    meta = SimpleNamespace(partition="aws-test")

    def __init__(self) -> None:
        self.calls: list[tuple[str, str | None, dict[str, Any]]] = []
        self.answers: dict[str, deque[Any]] = defaultdict(deque)

    def client(self, service: str, *, region: str | None = None) -> Any:
        clients = self

        class Client:
            meta = clients.meta

            def __getattr__(self, operation: str) -> Any:
                return lambda **arguments: clients.answer(f"{service}.{operation}", region, arguments)

        return Client()

    def answer(self, operation: str, region: str | None, arguments: dict[str, Any]) -> Any:
        self.calls.append((operation, region, arguments))
        answer = self.answers[operation].popleft() if self.answers[operation] else None
        if isinstance(answer, Exception):
            raise answer
        if operation == "sqs.get_queue_url":
            return {"QueueUrl": f"http://sqs/{arguments['QueueName']}"}
        entries = arguments.get("PublishBatchRequestEntries") or arguments.get("Entries") or ()
        failed = answer or []
        successful = [{"Id": entry["Id"]} for entry in entries if entry["Id"] not in {one["Id"] for one in failed}]
        return {"Successful": successful, "Failed": failed}

    def count(self, operation: str) -> int:
        return sum(name == operation for name, _, _ in self.calls)

    def bodies(self) -> list[list[Any]]:
        """Return the bodies of each request."""
        found = []
        for _, _, arguments in self.calls:
            entries = arguments.get("PublishBatchRequestEntries") or arguments.get("Entries") or ()
            found.append([json.loads(entry.get("Message") or entry["MessageBody"]) for entry in entries])
        return found


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_REGION": "eu-west-1", "SMARTPIPE_ACCOUNT_ID": "123456789012", "SMARTPIPE_PREFIX": "staging-",
        "SMARTPIPE_CLAIM_CHECK_URL": "s3://my-bucket/bodies", "SMARTPIPE_CLAIM_CHECK_BYTES": "2000",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> Clients:
    return Clients()


@pytest.fixture
def publisher(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> Iterator[blocking.Publisher]:
    with blocking.Publisher("shop", deadline_seconds=0) as publisher:
        monkeypatch.setattr(publisher._session, "client", clients.client)
        yield publisher


def failures_of(call: Any, *arguments: Any, **options: Any) -> list[tuple[str, bool]]:
    with pytest.raises(PublishError) as caught:
        call(*arguments, **options)
    return [(failure.code, failure.retryable) for failure in caught.value.failures]


def test_an_event_is_published_to_its_topic_in_one_request(publisher: blocking.Publisher, clients: Clients) -> None:
    event_id = publisher.publish(ADA)

    [(operation, region, arguments)] = clients.calls
    assert (operation, region, arguments["TopicArn"]) == ("sns.publish_batch", "eu-west-1", f"{NAMING}users")
    assert [body["id"] for [body] in clients.bodies()] == [event_id]
    assert clients.bodies()[0][0]["source"] == "shop"


def test_if_the_iterable_of_publish_many_fails_its_exception_has_a_note_of_the_events_that_were_not_published(
    publisher: blocking.Publisher, clients: Clients
) -> None:
    clients.answers["sns.publish_batch"].append(error_of("InvalidParameter"))

    def failing() -> Iterator[UserLeft]:
        yield from (UserLeft(name=str(number)) for number in range(15))
        raise KeyError("the database went away")

    with pytest.raises(KeyError) as caught:
        publisher.publish_many(failing())

    [note] = caught.value.__notes__
    assert note.startswith("publish_many: of the events read before, 10 events were not published: ")


def test_an_external_topic_is_called_in_its_own_region(publisher: blocking.Publisher, clients: Clients) -> None:
    publisher.publish(Far())

    [(operation, region, arguments)] = clients.calls
    assert (operation, region, arguments["TopicArn"]) == ("sns.publish_batch", "us-west-2", ELSEWHERE)


def test_a_queue_is_looked_up_once(publisher: blocking.Publisher, clients: Clients) -> None:
    for _ in range(3):
        publisher.publish(ADA, queue="mails", delay_seconds=5)

    assert clients.count("sqs.get_queue_url") == 1
    assert clients.calls[0][2] == {"QueueName": "staging-mails"}
    assert [arguments["QueueUrl"] for _, _, arguments in clients.calls[1:]] == ["http://sqs/staging-mails"] * 3
    assert clients.calls[1][2]["Entries"][0]["DelaySeconds"] == 5


@pytest.mark.parametrize(("code", "lookups"), [("QueueDoesNotExist", 2), ("AccessDenied", 1)])
def test_only_a_queue_that_does_not_exist_is_looked_up_again(
    code: str, lookups: int, publisher: blocking.Publisher, clients: Clients
) -> None:
    clients.answers["sqs.send_message_batch"].append(error_of(code))

    assert failures_of(publisher.publish, ADA, queue="mails") == [(code, False)]
    publisher.publish(ADA, queue="mails")

    assert clients.count("sqs.get_queue_url") == lookups
    assert clients.count("sqs.send_message_batch") == 2


@pytest.mark.parametrize(("operation", "options", "target"), [
    ("sns.publish_batch", {}, f"sns:Publish on topic {NAMING}users"),
    ("sqs.send_message_batch", {"queue": "mails"}, "sqs:SendMessage on queue 'staging-mails'"),
    ("sqs.get_queue_url", {"queue": "mails"}, "sqs:SendMessage on queue 'staging-mails'"),
])  # fmt: skip
def test_an_error_of_aws_names_the_action_and_the_destination(
    operation: str, options: dict[str, Any], target: str, publisher: blocking.Publisher, clients: Clients
) -> None:
    clients.answers[operation].append(error_of("InvalidParameter"))

    with pytest.raises(PublishError, match=target):
        publisher.publish(ADA, **options)


def test_events_are_published_ten_to_a_request_and_their_ids_returned_in_order(
    publisher: blocking.Publisher, clients: Clients
) -> None:
    report = publisher.publish_many(UserLeft(name=str(number)) for number in range(25))

    assert [len(bodies) for bodies in clients.bodies()] == [10, 10, 5]
    assert [body["id"] for bodies in clients.bodies() for body in bodies] == list(report.event_ids)


def test_events_of_several_destinations_are_published_separately(
    publisher: blocking.Publisher, clients: Clients
) -> None:
    publisher.publish_many([ADA, OrderPlaced(order_id="1"), ADA])

    arns = {arguments["TopicArn"]: len(arguments["PublishBatchRequestEntries"]) for _, _, arguments in clients.calls}
    assert arns == {f"{NAMING}users": 2, f"{NAMING}orders": 1}


def test_after_a_failure_no_later_event_of_its_key_is_published(
    publisher: blocking.Publisher, clients: Clients
) -> None:
    clients.answers["sns.publish_batch"].append([{"Id": "0", "Code": "InvalidParameter", "SenderFault": True}])
    events = [Paid(account=account, number=number) for number in range(3) for account in "ab"]

    with pytest.raises(PublishError) as caught:
        publisher.publish_many(events)

    assert {failure.event for failure in caught.value.failures} == {event for event in events if event.account == "a"}
    assert [len(bodies) for bodies in clients.bodies()] == [2, 1, 1]


def test_an_event_that_cannot_be_published_does_not_stop_the_others(
    publisher: blocking.Publisher, clients: Clients
) -> None:
    clients.answers["sns.publish_batch"].append(error_of("AccessDenied"))

    assert failures_of(publisher.publish_many, [UserLeft(name="x")] * 11) == [("AccessDenied", False)] * 10
    assert [len(bodies) for bodies in clients.bodies()] == [10, 1]


LARGE = UserLeft(name="x" * 5_000)


def test_a_large_body_is_written_to_s3_before_its_message(publisher: blocking.Publisher, clients: Clients) -> None:
    publisher.publish(LARGE)

    (put, _, arguments), (send, _, _) = clients.calls
    assert (put, send) == ("s3.put_object", "sns.publish_batch")
    assert (arguments["Bucket"], arguments["ExpectedBucketOwner"]) == ("my-bucket", "123456789012")
    assert json.loads(arguments["Body"])["data"] == {"name": LARGE.name}
    assert clients.bodies()[1][0][1] == {"s3BucketName": "my-bucket", "s3Key": arguments["Key"]}


def test_a_message_whose_body_cannot_be_written_fails_alone(publisher: blocking.Publisher, clients: Clients) -> None:
    clients.answers["s3.put_object"].append(error_of("AccessDenied"))

    with pytest.raises(PublishError, match=r"s3:PutObject on s3://my-bucket/bodies/") as caught:
        publisher.publish_many([ADA, LARGE, UserLeft(name="Bob")])

    assert [(failure.code, failure.event) for failure in caught.value.failures] == [("PayloadNotPut", LARGE)]
    assert [len(bodies) for bodies in clients.bodies()] == [0, 2]


def test_without_a_message_that_can_be_sent_no_request_is_made(publisher: blocking.Publisher, clients: Clients) -> None:
    clients.answers["s3.put_object"].append(error_of("AccessDenied"))

    assert failures_of(publisher.publish, LARGE) == [("PayloadNotPut", False)]
    assert [name for name, _, _ in clients.calls] == ["s3.put_object"]


def test_a_failure_after_one_of_a_body_is_that_of_its_own_event(
    publisher: blocking.Publisher, clients: Clients
) -> None:
    clients.answers["s3.put_object"].append(error_of("AccessDenied"))
    clients.answers["sns.publish_batch"].append([{"Id": "1", "Code": "InvalidParameter", "SenderFault": True}])
    bob = UserLeft(name="Bob")

    with pytest.raises(PublishError) as caught:
        publisher.publish_many([LARGE, ADA, bob])

    assert {failure.event: failure.code for failure in caught.value.failures} == {
        LARGE: "PayloadNotPut", bob: "InvalidParameter",
    }  # fmt: skip


def test_a_store_in_memory_keeps_large_bodies_without_s3(monkeypatch: pytest.MonkeyPatch, clients: Clients) -> None:
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_URL", "memory://tests")
    with blocking.Publisher("shop", deadline_seconds=0) as publisher:
        monkeypatch.setattr(publisher._session, "client", clients.client)
        publisher.publish(LARGE)

    [(operation, _, _)] = clients.calls
    key = clients.bodies()[0][0][1]["s3Key"]
    assert operation == "sns.publish_batch"
    assert json.loads(get_from_memory(Payload("tests", key)))["data"] == {"name": LARGE.name}


def test_a_deadline_may_be_zero_but_not_negative() -> None:
    blocking.Publisher("shop", deadline_seconds=0).close()

    with pytest.raises(ConfigError, match="deadline_seconds cannot be negative"):
        blocking.Publisher("shop", deadline_seconds=-0.1)
    with pytest.raises(ConfigError) as caught:
        blocking.Publisher("", deadline_seconds=-1)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(("name", "value"), [
    ("AWS_ENDPOINT_URL_S3", "localhost:4566"), ("AWS_ENDPOINT_URL_STS", "localhost:4566"), ("AWS_PROFILE", "none"),
    ("AWS_REGION", "no region"),
])  # fmt: skip
def test_a_wrong_configuration_is_an_error_when_the_publisher_is_created(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(ConfigError):
        blocking.Publisher("shop")


def test_a_publisher_opens_a_client_of_sns_when_it_is_created() -> None:
    with blocking.Publisher("shop") as publisher:
        assert list(publisher._session._clients) == [("sns", "eu-west-1")]


def test_in_a_fork_of_the_process_that_used_it_first_a_publisher_sends_nothing(
    publisher: blocking.Publisher, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher.publish(ADA)
    monkeypatch.setattr("os.getpid", lambda: -1)

    for publish in (publisher.publish, lambda event: publisher.publish_many([event])):
        with pytest.raises(ConfigError, match="this publisher was first used in process"):
            publish(ADA)
    assert len(clients.calls) == 1


def test_published_events_are_counted_by_their_result_and_measured(
    publisher: blocking.Publisher, clients: Clients
) -> None:
    refused = {"Id": "1", "Code": "InvalidParameter", "Message": "no", "SenderFault": True}
    clients.answers["sns.publish_batch"].append([refused])

    assert failures_of(publisher.publish_many, [ADA, ADA, ADA]) == [("InvalidParameter", False)]

    text = render(publisher.collect_metrics())
    assert 'smartpipe_published_total{service="shop",destination="users",result="published"} 2\n' in text
    assert 'smartpipe_published_total{service="shop",destination="users",result="InvalidParameter"} 1\n' in text
    assert 'smartpipe_publish_seconds_count{service="shop",destination="users"} 2\n' in text


def test_without_metrics_nothing_is_counted(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    with blocking.Publisher("shop", metrics=False) as publisher:
        monkeypatch.setattr(publisher._session, "client", clients.client)
        publisher.publish(ADA)

        assert publisher.collect_metrics() == []
    assert clients.count("sns.publish_batch") == 1
