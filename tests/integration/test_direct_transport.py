"""The direct transport beside aiobotocore: the same calls, the same results, the same errors."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from contextlib import asynccontextmanager
from hashlib import md5
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.request import urlopen

import pytest
from aiobotocore.session import get_session
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smartpipe import ConfigError, Publisher
from smartpipe.counters import TransportCounters
from smartpipe.errors import TransportError
from smartpipe.message import Attribute, OutgoingMessage
from smartpipe.settings import AwsSettings, TransportSettings
from smartpipe.testing import working
from smartpipe.transports.aws.botocore_calls import BotocoreSns, BotocoreSqs
from smartpipe.transports.aws.direct.sns import DirectSns
from smartpipe.transports.aws.direct.sqs import DirectSqs
from smartpipe.transports.aws.transport import AwsTransport
from smartpipe.transports.measured import MeasuredTransport
from smartpipe.transports.open import create_aws_transport
from smartpipe.worker.metrics import TRANSPORT_COUNTERS
from tests.conftest import lead_to
from tests.support.events import ADA
from tests.support.proxy import Fault, FaultProxy
from tests.support.shop import Shop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from smartpipe import EmbeddedBroker
    from tests.support.calls import Call
    from tests.support.proxy import Rewrite

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKID",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_REGION": "eu-west-1",
    "SMARTPIPE_ACCOUNT_ID": "123456789012",
}
QUEUE_URL = "https://sqs.eu-west-1.amazonaws.com/123456789012/shop"


class Script:
    """A service that gives scripted answers."""

    def __init__(self, proxy: FaultProxy) -> None:
        self.answer: tuple[int, dict[str, str], bytes] = (200, {}, b"")
        self.proxy = proxy
        proxy.add(Fault(respond=self._respond))

    def _respond(self, call: Call) -> tuple[int, dict[str, str], bytes]:
        if call.operation == "GetQueueUrl":
            return 200, {}, json.dumps({"QueueUrl": QUEUE_URL}).encode()
        return self.answer


@pytest.fixture(scope="module")
def script() -> Iterator[Script]:
    with FaultProxy("http://127.0.0.1:9") as proxy:
        yield Script(proxy)


@pytest.fixture
def both(script: Script, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[asyncio.Runner, list[AwsTransport]]]:
    """The two transports, on one loop."""
    lead_to({**ENVIRONMENT, "AWS_ENDPOINT_URL": script.proxy.endpoint_url}, monkeypatch)
    transports = [AwsTransport(AwsSettings.load(), direct=direct) for direct in (True, False)]
    with asyncio.Runner() as runner:
        yield runner, transports
        for transport in transports:
            runner.run(transport.aclose())


class Outcome(NamedTuple):
    """The result of a call, and the fields of its request."""

    result: Any
    fields: dict[str, Any]


async def call(transport: AwsTransport, script: Script, verb: str, *args: Any, **options: Any) -> Outcome:
    """Make a call; return the result or the error, and the fields of the last request."""
    script.proxy.calls.clear()
    try:
        result: Any = await getattr(transport, verb)(*args, **options)
    except TransportError as error:
        result = (error.code, error.detail, error.retryable)
    if verb == "receive" and isinstance(result, list):
        result = [message._replace(received_at=0) for message in result]
    fields = dict(script.proxy.calls[-1].fields)
    fields.pop(
        "MessageSystemAttributeNames", None
    )  # the direct transport asks for those that it reads, botocore for all
    return Outcome(result, fields)


# Characters that JSON, XML and forms have to escape.
words = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=30
)
names = st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=5)
attributes = st.dictionaries(
    names,
    st.builds(Attribute, st.just("String"), words)
    | st.builds(Attribute, st.just("Number"), st.integers().map(str))
    | st.builds(Attribute, st.just("Binary"), st.binary(min_size=1, max_size=20)),
    max_size=3,
)
messages = st.lists(
    st.builds(
        OutgoingMessage,
        words,
        st.just(0),
        attributes,
        st.none() | names,
        st.none() | names,
        st.integers(0, 900),
    ),
    min_size=1,
    max_size=10,
)
codes = st.sampled_from(["InternalError", "InvalidParameter", "RequestThrottled", "KMS.ThrottlingException", "Odd"])
# By entry: accepted, refused with a code and SenderFault, or missing from the response.
fates = st.lists(st.none() | st.just("silence") | st.tuples(codes, st.booleans()), min_size=10, max_size=10)
errors = st.tuples(
    st.sampled_from([400, 403, 404, 429, 500, 503]),
    st.sampled_from(["AccessDenied", "QueueDoesNotExist", "NotFound", "Throttling", "InvalidParameter", "Odd", ""]),
    words,
    st.booleans(),
)
quietly = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def json_answer(count: int, fates: list[Any]) -> bytes:
    failed = [
        {"Id": str(index), "Code": fate[0], "SenderFault": fate[1], "Message": "é <no>"}
        for index, fate in enumerate(fates[:count])
        if isinstance(fate, tuple)
    ]
    taken = [{"Id": str(index), "MessageId": "m"} for index, fate in enumerate(fates[:count]) if fate is None]
    return json.dumps({"Successful": taken, "Failed": failed}).encode()


def xml_answer(count: int, fates: list[Any]) -> bytes:
    taken = "".join(
        f"<member><MessageId>m</MessageId><Id>{index}</Id></member>"
        for index, fate in enumerate(fates[:count])
        if fate is None
    )
    failed = "".join(
        f"<member><Id>{index}</Id><Code>{fate[0]}</Code><SenderFault>{str(fate[1]).lower()}</SenderFault>"
        "<Message>é &lt;no&gt;</Message></member>"
        for index, fate in enumerate(fates[:count])
        if isinstance(fate, tuple)
    )
    return (
        '<PublishBatchResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/"><PublishBatchResult>'
        f"<Failed>{failed}</Failed><Successful>{taken}</Successful></PublishBatchResult></PublishBatchResponse>"
    ).encode()


@quietly
@given(sent=messages, fates=fates)
def test_sent_messages_and_failed_entries_are_the_same(
    script: Script, both: tuple[asyncio.Runner, list[AwsTransport]], sent: list[OutgoingMessage], fates: list[Any]
) -> None:
    runner, transports = both
    for verb, target, answer in (("publish", "shop", xml_answer), ("send", "shop", json_answer)):
        batch = [one._replace(delay_seconds=0) for one in sent] if verb == "publish" else sent
        script.answer = (200, {}, answer(len(batch), fates))
        direct, botocore = (runner.run(call(transport, script, verb, target, batch)) for transport in transports)

        assert direct == botocore
        assert len(direct.result) == sum(fate is not None for fate in fates[: len(batch)])


@quietly
@given(receipts=st.lists(words, min_size=1, max_size=10), fates=fates, seconds=st.floats(0, 43_200))
def test_settled_messages_and_failed_entries_are_the_same(
    script: Script,
    both: tuple[asyncio.Runner, list[AwsTransport]],
    receipts: list[str],
    fates: list[Any],
    seconds: float,
) -> None:
    runner, transports = both
    script.answer = (200, {}, json_answer(len(receipts), fates))
    leases = [(receipt, seconds) for receipt in receipts]
    for verb, entries in (("delete", receipts), ("change_visibility", leases)):
        direct, botocore = (runner.run(call(transport, script, verb, "shop", entries)) for transport in transports)

        assert direct == botocore


@quietly
@given(found=messages, counts=st.integers(1, 1_000), millis=st.none() | st.integers(0, 2_000_000_000_000))
def test_received_messages_are_the_same(
    script: Script,
    both: tuple[asyncio.Runner, list[AwsTransport]],
    found: list[OutgoingMessage],
    counts: int,
    millis: int | None,
) -> None:
    runner, transports = both
    script.answer = (200, {}, json.dumps({"Messages": [as_received(one, counts, millis) for one in found]}).encode())
    options = {"max_messages": 10, "wait_seconds": 1, "visibility_timeout_seconds": 30}

    direct, botocore = (runner.run(call(transport, script, "receive", "shop", **options)) for transport in transports)

    assert direct == botocore
    assert [message.body for message in direct.result] == [one.body for one in found]
    assert [message.attributes for message in direct.result] == [one.attributes for one in found]


def as_received(one: OutgoingMessage, count: int, millis: int | None) -> dict[str, Any]:
    system = {"ApproximateReceiveCount": str(count), "MessageGroupId": one.group_id, "SentTimestamp": millis}
    return {
        "MessageId": "m",
        "ReceiptHandle": "r",
        "Body": one.body,
        "MD5OfBody": md5(one.body.encode(), usedforsecurity=False).hexdigest(),
        "Attributes": {name: str(value) for name, value in system.items() if value is not None},
        "MessageAttributes": {
            name: {"DataType": kind, "BinaryValue": b64encode(value).decode()}
            if isinstance(value, bytes)
            else {"DataType": kind, "StringValue": value}
            for name, (kind, value) in one.attributes.items()
        },
    }


@quietly
@given(error=errors)
def test_an_error_means_the_same(
    script: Script, both: tuple[asyncio.Runner, list[AwsTransport]], error: tuple[int, str, str, bool]
) -> None:
    runner, transports = both
    status, code, words, queried = error
    headers = {"x-amzn-query-error": f"AWS.SimpleQueueService.{code};Sender"} if queried and code else {}
    script.answer = (status, headers, json.dumps({"__type": f"com.amazonaws.sqs#{code}", "message": words}).encode())
    direct, botocore = (runner.run(call(transport, script, "delete", "shop", ["r"])) for transport in transports)
    assert direct.result[::2] == botocore.result[::2]

    text = words.replace("&", "&amp;").replace("<", "&lt;").replace("\r", "")
    if not text.isprintable():
        text = "said"
    body = (
        f"<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{text}</Message></Error></ErrorResponse>"
    )
    script.answer = (status, {}, body.encode())
    one = [OutgoingMessage("x", 1)]
    direct, botocore = (runner.run(call(transport, script, "publish", "shop", one)) for transport in transports)
    assert direct.result[::2] == botocore.result[::2]


@pytest.mark.parametrize("body", [b"<html>a proxy's page</html>", b'{"Messages": [{', b"[]"])
def test_a_response_that_cannot_be_read_is_an_error_that_can_be_retried(
    script: Script, both: tuple[asyncio.Runner, list[AwsTransport]], body: bytes
) -> None:
    runner, transports = both
    script.answer = (200, {}, body)
    options = {"max_messages": 10, "wait_seconds": 1, "visibility_timeout_seconds": 30}

    for transport in transports:
        code, _, retryable = runner.run(call(transport, script, "receive", "shop", **options)).result

        assert retryable
        assert code in {"JSONDecodeError", "AttributeError"}


@asynccontextmanager
async def opened(**environment: str) -> AsyncIterator[AwsTransport]:
    with pytest.MonkeyPatch.context() as patch:
        lead_to({**ENVIRONMENT, **environment}, patch)
        transport = create_aws_transport(TransportSettings.load())
        try:
            yield transport
        finally:
            await transport.aclose()


@pytest.mark.parametrize(
    ("environment", "urls"),
    [
        ({}, ("https://sqs.eu-west-1.amazonaws.com", "https://sns.eu-west-1.amazonaws.com")),
        (
            {"AWS_REGION": "cn-north-1"},
            ("https://sqs.cn-north-1.amazonaws.com.cn", "https://sns.cn-north-1.amazonaws.com.cn"),
        ),
        ({"AWS_USE_DUALSTACK_ENDPOINT": "true"}, ("https://sqs.eu-west-1.api.aws", "https://sns.eu-west-1.api.aws")),
        (
            {"AWS_REGION": "us-east-1", "AWS_USE_FIPS_ENDPOINT": "true"},
            ("https://sqs-fips.us-east-1.amazonaws.com", "https://sns-fips.us-east-1.amazonaws.com"),
        ),
        ({"AWS_ENDPOINT_URL": "http://localhost:4566"}, ("http://localhost:4566", "http://localhost:4566")),
        ({"AWS_ENDPOINT_URL_SQS": "http://[::1]:4566/"}, ("http://[::1]:4566", "https://sns.eu-west-1.amazonaws.com")),
    ],
)
async def test_requests_go_where_botocore_would_send_them(environment: dict[str, str], urls: tuple[str, str]) -> None:
    async with opened(**environment) as transport:
        sqs, sns = await transport._find_sqs(), await transport._find_sns(transport.session.region)
        assert isinstance(sqs, DirectSqs)
        assert isinstance(sns, DirectSns)
        assert (sqs.endpoint.url, sns.endpoint.url) == urls


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": ""}, "a proxy is set"),
        ({"AWS_ENDPOINT_URL": "http://localhost:4566/aws"}, "has a path"),
    ],
)
async def test_aiobotocore_does_what_the_direct_transport_does_not_support_and_a_line_says_so(
    environment: dict[str, str], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "smartpipe")
    async with opened(**environment) as transport:
        for _ in range(2):
            assert isinstance(await transport._find_sqs(), BotocoreSqs)
        assert transport.counts == TransportCounters()

    [line] = [message for message in caplog.messages if "instead of the direct transport" in message]
    assert line.startswith("Using aiobotocore for SQS instead of the direct transport: ")
    assert reason in line


async def test_a_user_agent_that_no_header_may_have_is_left_to_aiobotocore(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lead_to(ENVIRONMENT, monkeypatch)
    caplog.set_level("INFO", "smartpipe")
    session = get_session()
    session.user_agent_extra = "shop\r\nX-Evil: yes"
    transport = AwsTransport(AwsSettings.load(), session=session)
    try:
        assert isinstance(await transport._find_sqs(), BotocoreSqs)
    finally:
        await transport.aclose()

    assert "its User-Agent or its host has a control character" in caplog.text


def test_each_service_chooses_for_itself(script: Script) -> None:
    async def main() -> None:
        async with opened(AWS_ENDPOINT_URL_SQS=f"{script.proxy.endpoint_url}/aws") as transport:
            assert isinstance(await transport._find_sqs(), BotocoreSqs)
            assert isinstance(await transport._find_sns("eu-west-1"), DirectSns)
            assert isinstance(await transport._find_sns("eu-west-2"), DirectSns)

    asyncio.run(main())


def test_that_a_service_needs_aiobotocore_is_found_out_once(script: Script) -> None:
    async def main() -> None:
        async with opened(AWS_ENDPOINT_URL=f"{script.proxy.endpoint_url}/aws") as transport:
            assert await transport.delete("shop", ["r"]) == []
            async with transport._choosing:  # a second choice would wait here for ever
                assert await transport.delete("shop", ["r"]) == []

    script.answer = (200, {}, json_answer(1, [None]))
    asyncio.run(main())


async def test_the_transport_is_what_the_environment_says() -> None:
    async with opened() as transport:
        assert transport.name == "AwsTransport (direct)"
        assert isinstance(await transport._find_sqs(), DirectSqs)
        assert isinstance(await transport._find_sns("eu-west-1"), DirectSns)
    async with opened(SMARTPIPE_TRANSPORT="botocore") as transport:
        assert transport.name == "AwsTransport (botocore)"
        assert isinstance(await transport._find_sqs(), BotocoreSqs)
        assert isinstance(await transport._find_sns("eu-west-1"), BotocoreSns)
    with pytest.raises(ConfigError, match="SMARTPIPE_TRANSPORT"):
        async with opened(SMARTPIPE_TRANSPORT="boto"):
            pass


def aws_transport_of(publisher: Publisher) -> AwsTransport:
    """Return the transport to AWS, whose calls the publisher measures."""
    measured = publisher._transport
    assert isinstance(measured, MeasuredTransport)
    assert isinstance(measured.inner, AwsTransport)
    return measured.inner


def test_a_transport_of_another_loop_is_refused(fast_broker: EmbeddedBroker) -> None:
    publisher = None

    async def publish() -> None:
        nonlocal publisher
        publisher = publisher or Publisher("test")
        transport = aws_transport_of(publisher)
        try:
            await transport.publish("nowhere", [OutgoingMessage("x", 1)])
        finally:
            for sns in transport._sns.values():
                assert isinstance(sns, DirectSns)
                sns.close()
            await transport.session._stack.aclose()  # as aclose does, but the session stays open

    with pytest.raises(TransportError):
        asyncio.run(publish())
    with pytest.raises(ConfigError, match="another event loop"):
        asyncio.run(publish())


async def test_without_credentials_it_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    async with opened(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="", AWS_CONFIG_FILE="/none") as transport:
        with pytest.raises(TransportError, match="no AWS credentials found"):
            await transport.publish("users", [OutgoingMessage("x", 1)])


async def test_fault_44_failed_polls_do_not_use_up_the_retries_of_a_publish(
    fast_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No budget of retries is shared, as botocore's standard mode has it, and one deadline holds for all tries."""
    async with Publisher("test", deadline_seconds=5) as publisher:
        transport = aws_transport_of(publisher)
        sns = await transport.session.client("sns")
        await sns.create_topic(Name=transport.session.addresses.physical("users"))
        sqs = await transport.session.client("sqs")
        await sqs.create_queue(QueueName=transport.session.addresses.physical("mailer"))
        polls = fast_proxy.add(Fault("ReceiveMessage", answer=(503, "ServiceUnavailable", "no")))
        for _ in range(60):
            with pytest.raises(TransportError):
                await transport.receive("mailer", max_messages=1, wait_seconds=0, visibility_timeout_seconds=5)
        publishes = fast_proxy.add(Fault("PublishBatch", times=2, answer=(503, "ServiceUnavailable", "no")))

        await publisher.publish(ADA)

    assert polls.hits == 60
    assert publishes.hits == 2
    assert fast_proxy.operations().count("PublishBatch") == 3


@pytest.mark.parametrize("direct", [True, False])
async def test_the_url_of_a_queue_is_asked_for_once(fast_proxy: FaultProxy, direct: bool) -> None:
    transport = AwsTransport(AwsSettings.load(), direct=direct)
    sqs = await transport.session.client("sqs")
    await sqs.create_queue(QueueName=transport.session.addresses.physical("mailer"))

    for _ in range(3):
        await transport.send("mailer", [OutgoingMessage("{}", 2)])
    await transport.aclose()

    assert fast_proxy.operations().count("GetQueueUrl") == 1


async def test_fault_59_a_damaged_message_is_left_out_and_counted(fast_proxy: FaultProxy) -> None:
    async with Publisher("test") as publisher:
        transport = aws_transport_of(publisher)
        sqs = await transport.session.client("sqs")
        await sqs.create_queue(QueueName=transport.session.addresses.physical("mailer"))
        await transport.send("mailer", [OutgoingMessage("whole", 5)])

        def damage(status: int, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
            return status, headers, body.replace(b"whole", b"whale")

        fast_proxy.add(Fault("ReceiveMessage", times=1, rewrite=damage))
        options: Any = {"max_messages": 1, "wait_seconds": 5, "visibility_timeout_seconds": 1}
        first = await transport.receive("mailer", **options)
        second = await transport.receive("mailer", **options)

    assert first == []
    assert transport.counts == TransportCounters(damaged=1)
    assert [message.body for message in second] == ["whole"]
    assert second[0].receive_count == 2


def damaging(word: bytes) -> Rewrite:
    """Damage the first answer that has *word* in it."""
    struck: list[bytes] = []

    def rewrite(status: int, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        if word in body and not struck:
            struck.append(word)
            body = body.replace(word, word[::-1])
        return status, headers, body

    return rewrite


async def test_fault_59_and_fault_52_a_worker_reports_damaged_messages_and_requests_sent_twice(
    fast_proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "smartpipe")
    shop = await Shop.provisioned(fast_proxy, lease_seconds=1)
    fast_proxy.add(Fault("ReceiveMessage", rewrite=damaging(b"first")))
    fast_proxy.add(Fault("DeleteMessageBatch", skip=1, times=1, drop="request"))
    async with working(shop.service) as worker:
        for order in ("first", "second"):  # one by one, so that the second delete has a connection that was kept
            await shop.put(order)
            await shop.emptied()
        metrics = await asyncio.to_thread(text_at, f"{worker.health.url}/metrics")

    assert shop.seen == ["first", "second"]
    assert 'smartpipe_messages_damaged_total{service="shop"} 1\n' in metrics
    assert 'smartpipe_requests_resent_total{service="shop"} 1\n' in metrics
    [stopped] = [record for record in caplog.records if record.getMessage().startswith("stopped")]
    assert stopped.getMessage() == "stopped: received 2, handled 2, damaged 1, resent 1"
    assert {"damaged": 1, "resent": 1}.items() <= stopped.__dict__["fields"].items()


async def test_aiobotocore_alone_reports_no_counts(fast_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_TRANSPORT", "botocore")
    shop = await Shop.provisioned(fast_proxy)
    async with working(shop.service) as worker:
        metrics = await asyncio.to_thread(text_at, f"{worker.health.url}/metrics")

    assert "smartpipe_messages_in_flight" in metrics
    assert not any(name in metrics for name, _ in TRANSPORT_COUNTERS.values())


def text_at(url: str) -> str:
    with urlopen(url, timeout=5) as answer:
        text: str = answer.read().decode()
        return text
