"""The calls of SNS and SQS that a transport makes, and the addresses that it looks up, without a server."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import pytest
from botocore.exceptions import ClientError

from smartpipe import ConfigError, TransportError
from smartpipe.counters import TransportCounters
from smartpipe.message import Attribute, Failure, OutgoingMessage, Payload
from smartpipe.names import Naming
from smartpipe.settings import AwsSettings
from smartpipe.transports.aws.addresses import Addresses, queue_lookup
from smartpipe.transports.aws.botocore_calls import BotocoreSns, BotocoreSqs
from smartpipe.transports.aws.configuration import CALL_TIMEOUT_SECONDS, POLL_MARGIN_SECONDS
from smartpipe.transports.aws.direct import sns, sqs
from smartpipe.transports.aws.direct.sns import DirectSns
from smartpipe.transports.aws.direct.sqs import DirectSqs
from smartpipe.transports.aws.entries import put_object_request
from smartpipe.transports.aws.transport import AwsTransport

if TYPE_CHECKING:
    from collections.abc import Sequence

QUEUE_ARN = "arn:aws:sqs:eu-west-1:210987654321:theirs"
SETTINGS = AwsSettings(prefix="staging-", account_id=None, application="shop")
REGION = "eu-west-1"
MESSAGE = OutgoingMessage("body", 4, {"a": Attribute("String", "x")})
FAILED = {"Failed": [{"Id": "1", "Code": "InternalError", "SenderFault": False, "Message": "no"}]}


def error_of(code: str) -> ClientError:
    response: Any = {"Error": {"Code": code, "Message": "what AWS said"}, "ResponseMetadata": {"HTTPStatusCode": 400}}
    return ClientError(response, "Op")


class FakeSession:
    """Clients that record their calls, and raise or return the test's ``answers``."""

    region = REGION

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.opened: list[tuple[str, str, str | None]] = []
        self.answers: dict[str, deque[Any]] = defaultdict(deque)
        self.hooks: list[str] = []
        self.botocore_session = SimpleNamespace(register=lambda name, *_, **__: self.hooks.append(name))

    async def client(self, service: str, purpose: str = "call", *, region: str | None = None) -> Any:
        self.opened.append((service, purpose, region))
        session = self

        class Client:
            meta = SimpleNamespace(partition="aws-test")

            def __getattr__(self, operation: str) -> Any:
                async def call(**arguments: Any) -> Any:
                    session.calls.append((operation, arguments))
                    answer = session.answers[operation].popleft() if session.answers[operation] else {}
                    if isinstance(answer, Exception):
                        raise answer
                    return answer

                return call

        return Client()

    def count(self, operation: str) -> int:
        return sum(name == operation for name, _ in self.calls)


@pytest.fixture
def session() -> Any:
    return FakeSession()


def test_a_queue_is_looked_up_by_its_name_or_in_its_account() -> None:
    assert queue_lookup("staging-", "mails", REGION) == {"QueueName": "staging-mails"}
    assert queue_lookup("staging-", QUEUE_ARN, REGION) == {
        "QueueName": "theirs", "QueueOwnerAWSAccountId": "210987654321",
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"is in region eu-west-1, and this process works in us-east-1"):
        queue_lookup("staging-", QUEUE_ARN, "us-east-1")


async def test_the_url_of_a_queue_is_asked_for_once_until_it_is_forgotten(session: Any) -> None:
    addresses = Addresses(SETTINGS, session)
    session.answers["get_queue_url"].extend([{"QueueUrl": "one"}, {"QueueUrl": "other"}, {"QueueUrl": "new"}])

    found = [await addresses.queue_url(name) for name in ("mails", "mails", QUEUE_ARN, "mails")]
    addresses.forget_queue("mails")
    addresses.forget_queue("unknown")

    assert [*found, await addresses.queue_url("mails"), await addresses.queue_url(QUEUE_ARN)] == [
        "one", "one", "other", "one", "new", "other",
    ]  # fmt: skip
    assert session.count("get_queue_url") == 3
    assert (addresses.physical("mails"), addresses.physical(QUEUE_ARN)) == ("staging-mails", "theirs")


async def test_a_queue_that_does_not_exist_is_named_and_asked_for_again(session: Any) -> None:
    addresses = Addresses(SETTINGS, session)
    session.answers["get_queue_url"].extend([error_of("QueueDoesNotExist"), {"QueueUrl": "one"}])

    with pytest.raises(TransportError, match="queue 'staging-mails' does not exist") as caught:
        await addresses.queue_url("mails")

    assert caught.value.code == "QueueDoesNotExist"
    assert await addresses.queue_url("mails") == "one"


@pytest.mark.parametrize(("account", "calls"), [("111111111111", 0), (None, 1)])
async def test_the_account_is_that_of_the_settings_or_of_the_credentials(
    account: str | None, calls: int, session: Any
) -> None:
    addresses = Addresses(SETTINGS.model_copy(update={"account_id": account}), session)
    session.answers["get_caller_identity"].extend([{"Account": "222222222222"}] * 2)

    for _ in range(2):
        expected = Naming("aws-test", REGION, account or "222222222222", "staging-", "shop")
        assert await addresses.naming() == expected
    assert session.count("get_caller_identity") == calls


async def test_an_account_that_cannot_be_found_is_asked_for_again(session: Any) -> None:
    addresses = Addresses(SETTINGS, session)
    session.answers["get_caller_identity"].extend([error_of("Throttling"), {"Account": "222222222222"}])

    with pytest.raises(TransportError, match="SMARTPIPE_ACCOUNT_ID would make this call unnecessary") as caught:
        await addresses.naming()
    assert caught.value.retryable
    assert (await addresses.naming()).account_id == "222222222222"


ANSWERED: dict[str, Any] = {"Successful": [{"Id": "0"}], **FAILED}


async def test_botocore_gets_the_calls_of_sqs_and_its_failures_are_read(session: Any) -> None:
    calls = BotocoreSqs(session)
    received = {"MessageId": "m", "ReceiptHandle": "r", "Body": "b", "Attributes": {"ApproximateReceiveCount": "2"}}
    session.answers["receive_message"].extend([{"Messages": [received]}, {}])
    for operation in ("delete_message_batch", "change_message_visibility_batch", "send_message_batch"):
        session.answers[operation].append(ANSWERED)

    [message] = await calls.receive("url", max_messages=7, wait_seconds=3.9, visibility_timeout_seconds=30.9)
    assert (message.message_id, message.receive_count) == ("m", 2)
    assert await calls.receive("url", max_messages=7, wait_seconds=3, visibility_timeout_seconds=30) == []
    failures = [
        await calls.delete("url", ["r1", "r2"]),
        await calls.change_visibility("url", [("r1", 5), ("r2", 0.6)]),
        await calls.send("url", [MESSAGE, MESSAGE]),
    ]

    assert failures == [[Failure(1, "InternalError", "no", retryable=True)]] * 3
    assert [purpose for _, purpose, _ in session.opened] == ["poll", "poll", "call", "call", "call"]
    (_, receive), _, (_, delete), (_, change), (_, send) = session.calls
    assert (receive["QueueUrl"], receive["MaxNumberOfMessages"]) == ("url", 7)
    assert (receive["WaitTimeSeconds"], receive["VisibilityTimeout"]) == (3, 30)
    assert [entry["ReceiptHandle"] for entry in delete["Entries"]] == ["r1", "r2"]
    assert [entry["VisibilityTimeout"] for entry in change["Entries"]] == [5, 1]
    assert [entry["MessageBody"] for entry in send["Entries"]] == ["body", "body"]
    assert session.hooks == ["after-call.sqs.ReceiveMessage"]
    calls.close()


async def test_botocore_publishes_in_the_region_of_the_topic(session: Any) -> None:
    session.answers["publish_batch"].append(ANSWERED)
    arn = "arn:aws:sns:us-west-2:123456789012:orders"

    assert [failure.position for failure in await BotocoreSns(session).publish(arn, [MESSAGE, MESSAGE])] == [1]
    assert session.opened == [("sns", "call", "us-west-2")]
    assert session.calls[0][1]["TopicArn"] == arn


class FakeEndpoint:
    """An endpoint that records its requests, and returns the test's answers."""

    resent = 3

    def __init__(self, *answers: Any) -> None:
        self.answers = [answer if isinstance(answer, bytes) else json.dumps(answer).encode() for answer in answers]
        self.requests: list[tuple[str, bytes, float, bool]] = []
        self.closed = 0
        self.loop = SimpleNamespace(time=lambda: 7.5)

    async def post(
        self, target: str, body: bytes, *, timeout_seconds: float, poll: bool = False, trace_header: str | None = None
    ) -> bytes:
        self.requests.append((target, body, timeout_seconds, poll))
        return self.answers.pop(0)

    def close(self) -> None:
        self.closed += 1


async def test_the_direct_transport_makes_the_calls_of_sqs() -> None:
    damaged = {"MessageId": "2", "ReceiptHandle": "r", "Body": "b", "MD5OfBody": "0" * 32}
    good = {"MessageId": "1", "ReceiptHandle": "r", "Body": "b"}
    endpoint: Any = FakeEndpoint(
        {"Messages": [good, damaged]}, {"Messages": [damaged]}, b"", ANSWERED, ANSWERED, ANSWERED
    )
    calls = DirectSqs(endpoint)
    options: Any = {"max_messages": 7, "wait_seconds": 3.9, "visibility_timeout_seconds": 30.9}

    [message] = await calls.receive("url", **options)
    assert (message.message_id, message.received_at) == ("1", 7.5)
    assert await calls.receive("url", **options) == await calls.receive("url", **options) == []
    assert calls.counters == TransportCounters(2, 3)
    binary = MESSAGE._replace(attributes={"b": Attribute("Binary", b"\x00\xff")}, delay_seconds=5)
    failures = [
        await calls.delete("url", ["r1", "r2"]),
        await calls.change_visibility("url", [("r1", 5), ("r2", 0)]),
        await calls.send("url", [MESSAGE, binary]),
    ]
    calls.close()

    assert failures == [[Failure(1, "InternalError", "no", retryable=True)]] * 3
    assert endpoint.closed == 1
    targets = [(target.removeprefix("AmazonSQS."), seconds, poll) for target, _, seconds, poll in endpoint.requests]
    assert targets == [
        *[("ReceiveMessage", 3.9 + POLL_MARGIN_SECONDS, True)] * 3,
        ("DeleteMessageBatch", CALL_TIMEOUT_SECONDS, False),
        ("ChangeMessageVisibilityBatch", CALL_TIMEOUT_SECONDS, False),
        ("SendMessageBatch", CALL_TIMEOUT_SECONDS, False),
    ]
    bodies = [json.loads(body) for _, body, _, _ in endpoint.requests]
    assert bodies[0] == {
        "QueueUrl": "url", "MaxNumberOfMessages": 7, "WaitTimeSeconds": 3, "VisibilityTimeout": 30,
        "MessageAttributeNames": ["All"],
        "MessageSystemAttributeNames": [
            "AWSTraceHeader", "ApproximateFirstReceiveTimestamp", "ApproximateReceiveCount", "DeadLetterQueueSourceArn",
            "MessageGroupId", "SentTimestamp",
        ],
    }  # fmt: skip
    assert bodies[3]["Entries"] == [{"Id": "0", "ReceiptHandle": "r1"}, {"Id": "1", "ReceiptHandle": "r2"}]
    assert [entry["VisibilityTimeout"] for entry in bodies[4]["Entries"]] == [5, 0]
    assert bodies[5]["Entries"] == [
        {"Id": "0", "MessageBody": "body", "MessageAttributes": {"a": {"DataType": "String", "StringValue": "x"}}},
        {
            "Id": "1", "MessageBody": "body", "DelaySeconds": 5,
            "MessageAttributes": {"b": {"DataType": "Binary", "BinaryValue": "AP8="}},
        },
    ]  # fmt: skip


def test_attributes_of_a_received_message_are_read() -> None:
    fields = {
        "MessageId": "1", "ReceiptHandle": "r", "Body": "b", "Attributes": {"SentTimestamp": "1500"},
        "MessageAttributes": {
            "a": {"DataType": "String", "StringValue": ""}, "b": {"DataType": "Binary", "BinaryValue": "AP8="},
        },
    }  # fmt: skip
    [message], damaged = sqs.read_messages(json.dumps({"Messages": [fields]}).encode(), 3.5)

    assert message.attributes == {"a": Attribute("String", ""), "b": Attribute("Binary", b"\x00\xff")}
    assert (message.sent_at, message.received_at, damaged) == (1.5, 3.5, 0)
    assert sqs.read_messages(b"{}", 0.0) == sqs.read_messages(b'{"Messages":null}', 0.0) == ([], 0)


PUBLISHED = (
    b"<PublishBatchResponse><PublishBatchResult><Failed/><Successful><member><Id>0</Id></member></Successful>"
    b"</PublishBatchResult></PublishBatchResponse>"
)


async def test_the_direct_transport_publishes_a_form() -> None:
    endpoint: Any = FakeEndpoint(PUBLISHED)
    calls = DirectSns(endpoint)
    long = "\u00e4" * 65
    messages = [
        OutgoingMessage("{}", 2, {"a": Attribute("String", "x y"), "l": Attribute("String", long)}, "g", "d"),
        OutgoingMessage("\0", 1, {"b": Attribute("Binary", b"\x00\xff")}),
    ]

    failures = await calls.publish("arn:topic", messages)
    calls.close()

    assert [(failure.position, failure.code, failure.retryable) for failure in failures] == [(1, "NotAnswered", True)]
    assert calls.counters == TransportCounters(0, 3)
    [(target, body, seconds, poll)] = endpoint.requests
    assert (target, seconds, poll, endpoint.closed) == ("", CALL_TIMEOUT_SECONDS, False, 1)
    first, second = (f"PublishBatchRequestEntries.member.{number}" for number in (1, 2))
    assert parse_qsl(body.decode(), strict_parsing=True) == [
        ("Action", "PublishBatch"), ("Version", "2010-03-31"), ("TopicArn", "arn:topic"),
        (f"{first}.Id", "0"), (f"{first}.Message", "{}"), (f"{first}.MessageGroupId", "g"),
        (f"{first}.MessageDeduplicationId", "d"),
        (f"{first}.MessageAttributes.entry.1.Name", "a"),
        (f"{first}.MessageAttributes.entry.1.Value.DataType", "String"),
        (f"{first}.MessageAttributes.entry.1.Value.StringValue", "x y"),
        (f"{first}.MessageAttributes.entry.2.Name", "l"),
        (f"{first}.MessageAttributes.entry.2.Value.DataType", "String"),
        (f"{first}.MessageAttributes.entry.2.Value.StringValue", long),
        (f"{second}.Id", "1"), (f"{second}.Message", "\0"),
        (f"{second}.MessageAttributes.entry.1.Name", "b"),
        (f"{second}.MessageAttributes.entry.1.Value.DataType", "Binary"),
        (f"{second}.MessageAttributes.entry.1.Value.BinaryValue", "AP8="),
    ]  # fmt: skip


def test_a_successful_list_beside_a_failed_one_is_read_to_its_end() -> None:
    body = PUBLISHED.replace(b"<Failed/>", b"<Failed><member><Id>1</Id><Code>X</Code></member></Failed>")

    assert sns.read_response(body) == {
        "Successful": [{"Id": "0"}], "Failed": [{"Id": "1", "Code": "X", "SenderFault": False}],
    }  # fmt: skip


class FakeCalls:
    """The calls of SQS and SNS; each raises or returns the next answer."""

    def __init__(self) -> None:
        self.answers: deque[Any] = deque()
        self.calls: list[tuple[Any, ...]] = []
        self.counters = TransportCounters(1, 2)
        self.closed = 0

    async def _answer(self, *call: Any) -> Any:
        self.calls.append(call)
        answer = self.answers.popleft() if self.answers else []
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def publish(self, arn: str, messages: Sequence[Any]) -> Any:
        return await self._answer("publish", arn, len(messages))

    async def receive(self, url: str, **options: Any) -> Any:
        return await self._answer("receive", url, options)

    async def delete(self, url: str, receipts: Sequence[str]) -> Any:
        return await self._answer("delete", url, len(receipts))

    async def change_visibility(self, url: str, leases: Sequence[Any]) -> Any:
        return await self._answer("change_visibility", url, len(leases))

    async def send(self, url: str, messages: Sequence[Any]) -> Any:
        return await self._answer("send", url, len(messages))

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch, session: Any) -> AwsTransport:
    monkeypatch.setenv("AWS_REGION", REGION)
    transport = AwsTransport(SETTINGS.model_copy(update={"account_id": "123456789012"}))
    monkeypatch.setattr(transport.session, "client", session.client)
    calls: Any = FakeCalls()
    transport._sqs, transport._sns = calls, {REGION: calls, "us-west-2": calls}
    session.answers["get_queue_url"].extend([{"QueueUrl": "url1"}, {"QueueUrl": "url2"}])
    return transport


RECEIVE: dict[str, Any] = {"max_messages": 7, "wait_seconds": 3, "visibility_timeout_seconds": 30}
VERBS: dict[str, tuple[str, Any]] = {
    "receive": ("sqs:ReceiveMessage", lambda transport: transport.receive("mails", **RECEIVE)),
    "delete": ("sqs:DeleteMessage", lambda transport: transport.delete("mails", ["r"])),
    "change_visibility": (
        "sqs:ChangeMessageVisibility", lambda transport: transport.change_visibility("mails", [("r", 5)]),
    ),
    "send": ("sqs:SendMessage", lambda transport: transport.send("mails", [MESSAGE])),
}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
async def test_only_after_a_missing_queue_its_url_is_asked_for_again(
    verb: str, transport: AwsTransport, session: Any
) -> None:
    action, call = VERBS[verb]
    calls: Any = transport._sqs
    calls.answers.extend([error_of("InternalError"), error_of("AccessDenied"), error_of("QueueDoesNotExist"), []])
    urls = []
    for code in ("InternalError", "AccessDenied", "QueueDoesNotExist"):
        with pytest.raises(TransportError, match=action if code != "QueueDoesNotExist" else "does not exist") as caught:
            await call(transport)
        assert caught.value.code == code
        assert "queue 'staging-mails'" in str(caught.value)
        urls.append(session.count("get_queue_url"))
    await call(transport)

    assert [*urls, session.count("get_queue_url")] == [1, 1, 1, 2]
    assert [one[:2] for one in calls.calls] == [*[(verb, "url1")] * 3, (verb, "url2")]


async def test_a_receive_passes_its_options(transport: AwsTransport) -> None:
    calls: Any = transport._sqs
    await transport.receive("mails", **RECEIVE)

    assert calls.calls == [("receive", "url1", RECEIVE)]


async def test_a_message_that_is_deleted_already_is_no_failure(transport: AwsTransport) -> None:
    calls: Any = transport._sqs
    failures = [Failure(0, "ReceiptHandleIsInvalid", "x", retryable=False), Failure(1, "Other", "x", retryable=True)]
    calls.answers.extend([failures, failures])

    assert await transport.delete("mails", ["a", "b"]) == failures[1:]
    assert await transport.change_visibility("mails", [("a", 1), ("b", 1)]) == failures


async def test_a_topic_is_published_to_in_its_region(transport: AwsTransport) -> None:
    calls: Any = transport._sqs
    arns = ["arn:aws-test:sns:eu-west-1:123456789012:staging-orders", "arn:aws:sns:us-west-2:210987654321:theirs"]
    for name in ("orders", arns[1]):
        await transport.publish(name, [MESSAGE])
    assert [one[1] for one in calls.calls] == arns

    calls.answers.append(error_of("NotFound"))
    with pytest.raises(TransportError, match=f"topic {arns[0]} does not exist"):
        await transport.publish("orders", [MESSAGE])


async def test_the_counts_of_all_services_are_added_and_stay_after_the_end(transport: AwsTransport) -> None:
    calls: Any = transport._sqs
    assert transport.counts == TransportCounters(3, 6)
    await transport.aclose()

    assert (calls.closed, transport.counts) == (3, TransportCounters(3, 6))
    with pytest.raises(TransportError, match="this transport has been closed"):
        await transport.send("mails", [MESSAGE])
    with pytest.raises(TransportError, match="this transport has been closed"):
        await transport.publish("orders", [MESSAGE])


def test_a_transport_by_botocore_has_no_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", REGION)
    by_botocore, direct = AwsTransport(SETTINGS, direct=False), AwsTransport(SETTINGS)

    assert (by_botocore.counts, by_botocore.name) == (None, "AwsTransport (botocore)")
    assert (direct.counts, direct.name) == (TransportCounters(0, 0), "AwsTransport (direct)")


async def test_by_botocore_no_endpoint_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", REGION)
    opened: list[str] = []

    async def open_endpoint(_: Any, protocol: Any, region: str) -> None:
        opened.append(f"{protocol.service} {region}")

    monkeypatch.setattr("smartpipe.transports.aws.transport.open_endpoint", open_endpoint)
    by_botocore, direct = AwsTransport(SETTINGS, direct=False), AwsTransport(SETTINGS)
    for transport in (by_botocore, direct):
        for _ in range(2):
            assert isinstance(await transport._find_sqs(), BotocoreSqs)
            assert isinstance(await transport._find_sns("us-west-2"), BotocoreSns)

    assert opened == ["sqs eu-west-1", "sns us-west-2"]


def test_an_object_belongs_to_the_account_of_the_payload_or_of_the_process() -> None:
    request = put_object_request(Payload("bucket", "key", "\u00e4"), "111111111111")

    assert request == {
        "Bucket": "bucket", "Key": "key", "Body": b"\xc3\xa4", "ContentType": "application/json",
        "ExpectedBucketOwner": "111111111111",
    }  # fmt: skip
    owned = put_object_request(Payload("bucket", "key", "x", "222222222222"), "111111111111")
    assert owned["ExpectedBucketOwner"] == "222222222222"
