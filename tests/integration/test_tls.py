"""AWS behind our own TLS: the certificates that both transports trust or refuse, and their errors."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import ConfigError
from smartpipe.blocking import Publisher as BlockingPublisher
from smartpipe.errors import PublishError, TransportError
from smartpipe.message import OutgoingMessage
from smartpipe.transports.aws.direct.sns import DirectSns
from smartpipe.transports.aws.direct.sqs import DirectSqs
from smartpipe.transports.open import open_aws_transport
from tests.support.certificates import Authority
from tests.support.events import ADA
from tests.support.proxy import FaultProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from smartpipe import EmbeddedBroker
    from smartpipe.transports.aws.transport import AwsTransport

default_context = ssl.create_default_context
TRANSPORTS = ["direct", "botocore"]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"))


@pytest.fixture(params=TRANSPORTS)
def transport_name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SMARTPIPE_TRANSPORT", request.param)
    return str(request.param)


@asynccontextmanager
async def opened() -> AsyncIterator[AwsTransport]:
    transport = open_aws_transport()
    try:
        yield transport
    finally:
        await transport.aclose()


@contextmanager
def serving(broker: EmbeddedBroker, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(broker.endpoint_url, tls=tls) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
        yield proxy


@pytest.fixture
def secured(fast_broker: EmbeddedBroker, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """The embedded broker, behind a certificate of the authority."""
    with serving(fast_broker, authority.server(), monkeypatch) as proxy:
        yield proxy


async def make_every_call(transport: AwsTransport) -> list[str]:
    """Make every call; return the bodies of the received messages."""
    sns, sqs = await transport.session.client("sns"), await transport.session.client("sqs")
    topic = (await sns.create_topic(Name=transport.session.addresses.physical("users")))["TopicArn"]
    url = (await sqs.create_queue(QueueName=transport.session.addresses.physical("mailer")))["QueueUrl"]
    arn = (await sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"]))["Attributes"]["QueueArn"]
    raw = {"RawMessageDelivery": "true"}
    await sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn, Attributes=raw)
    assert await transport.publish("users", [OutgoingMessage("published", 9)]) == []
    assert await transport.send("mailer", [OutgoingMessage("sent", 4)]) == []
    options: Any = {"max_messages": 10, "wait_seconds": 5, "visibility_timeout_seconds": 30}
    bodies: list[str] = []
    while len(bodies) < 2:
        found = await transport.receive("mailer", **options)
        bodies += [message.body for message in found]
        assert await transport.change_visibility("mailer", [(one.receipt_handle, 10) for one in found]) == []
        assert await transport.delete("mailer", [one.receipt_handle for one in found]) == []
    return sorted(bodies)


@pytest.mark.parametrize("where", ["variable", "profile"])
async def test_a_configured_authority_is_trusted_for_every_call(
    secured: FaultProxy,
    authority: Authority,
    transport_name: str,
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if where == "variable":
        monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.bundle))
    else:
        (tmp_path / "config").write_text(f"[default]\nca_bundle = {authority.bundle}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))

    async with opened() as transport:
        assert await make_every_call(transport) == ["published", "sent"]
        if transport_name == "direct":  # for both services
            [sns] = transport._sns.values()
            assert isinstance(sns, DirectSns)
            assert isinstance(transport._sqs, DirectSqs)
            assert sns.endpoint.url == transport._sqs.endpoint.url == secured.endpoint_url


def as_by_python_3_13(**options: Any) -> ssl.SSLContext:
    context = default_context(**options)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


async def test_an_authority_without_key_identifiers_is_trusted_as_by_botocore(
    fast_broker: EmbeddedBroker, tmp_path: Path, transport_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sloppy = Authority(tmp_path, sloppy=True)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(sloppy.bundle))
    monkeypatch.setattr("ssl.create_default_context", as_by_python_3_13)
    with serving(fast_broker, sloppy.server(), monkeypatch):
        async with opened() as transport:
            assert await make_every_call(transport) == ["published", "sent"]


REFUSED = [
    ("unknown", "self-signed certificate in certificate chain|unable to get local issuer", "AWS_CA_BUNDLE"),
    ("misnamed", "Hostname mismatch", "does AWS_ENDPOINT_URL, or the network, lead to the right host"),
    ("expired", "certificate has expired", "this machine's clock, which says 20"),
]


@pytest.fixture
def refused(
    request: pytest.FixtureRequest, authority: Authority, stranger: Authority, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Put an untrusted server into the environment; yield the expected error."""
    kind, words, advice = request.param
    servers: dict[str, Callable[[], ssl.SSLContext]] = {
        "unknown": stranger.server,
        "misnamed": lambda: authority.server("sqs.example.com"),
        "expired": lambda: authority.server(expired=True),
    }
    with FaultProxy("http://127.0.0.1:9", tls=servers[kind]()) as proxy:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "AKID",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "eu-west-1",
            "AWS_CA_BUNDLE": str(authority.bundle),
            "AWS_ENDPOINT_URL": proxy.endpoint_url,
            "SMARTPIPE_ACCOUNT_ID": "123456789012",
        }.items():
            monkeypatch.setenv(name, value)
        yield f"({words}).*{advice}"
        assert proxy.calls == []


@pytest.mark.parametrize("refused", REFUSED, ids=lambda row: row[0], indirect=True)
async def test_an_untrusted_certificate_is_reported_with_advice_and_not_retried(
    refused: str, transport_name: str
) -> None:
    async with opened() as transport:
        with pytest.raises(TransportError, match=refused) as raised:
            await transport.publish("users", [OutgoingMessage("x", 1)])

    assert (raised.value.code, raised.value.retryable) == ("SSLError", False)


@pytest.mark.parametrize("refused", REFUSED[:1], ids=lambda row: row[0], indirect=True)
def test_a_blocking_publisher_reports_the_same(refused: str) -> None:
    with BlockingPublisher("test") as publisher, pytest.raises(PublishError, match=refused) as raised:
        publisher.publish(ADA)

    assert [(one.code, one.retryable) for one in raised.value.failures] == [("SSLError", False)]


async def test_a_server_without_tls_may_be_retried(
    fast_proxy: FaultProxy, transport_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://localhost:{fast_proxy.port}")

    async with opened() as transport:
        with pytest.raises(TransportError, match="does the server at AWS_ENDPOINT_URL speak TLS") as raised:
            await transport.publish("users", [OutgoingMessage("x", 1)])

    assert (raised.value.code, raised.value.retryable) == ("SSLError", True)


@pytest.mark.usefixtures("fast_broker")
@pytest.mark.parametrize("content", [None, "no certificate"])
def test_an_unreadable_ca_bundle_is_reported_by_its_name_before_any_call(
    tmp_path: Path, transport_name: str, content: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle.pem"
    if content:
        bundle.write_text(content)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))

    for open_one in (open_aws_transport, lambda: BlockingPublisher("test")):
        with pytest.raises(ConfigError, match=rf"the CA bundle {bundle} .* cannot be read"):
            open_one()
