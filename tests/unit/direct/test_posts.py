"""What an endpoint does with each response and each error: sign again, refresh, correct its clock, or raise."""

from __future__ import annotations

import ssl
import time
from collections import deque
from email.utils import formatdate
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
    SSLError,
)

from smartpipe import ConfigError
from smartpipe.transports.aws.direct import endpoint as module
from smartpipe.transports.aws.direct import sqs
from smartpipe.transports.aws.direct.endpoint import Destination, Endpoint, _read_destination
from smartpipe.transports.aws.direct.http import NO_RESPONSE, ConnectionLost
from smartpipe.transports.aws.direct.response import Response
from smartpipe.transports.aws.session import FoundCredentials

OK = Response(200, [], b"done")


NOW = 1_800_000_000.5


def refusal(code: str, *, status: int = 400, seconds: float | None = None, date: str = "") -> Response:
    """Return an error response, from a server whose clock is *seconds* ahead."""
    if seconds is not None:
        date = formatdate(NOW + seconds, usegmt=True)
    return Response(
        status, [(b"date", date.encode())] if date else [], f'{{"__type":"x#{code}","message":"no"}}'.encode()
    )


class Session:
    """A session whose credentials are those of the test."""

    def __init__(self, *refreshed: bool) -> None:
        self.refreshed = list(refreshed)
        self.refreshes = 0
        self.asked = 0
        self.keys: Any = ReadOnlyCredentials("KEY", "secret", None)

    def tls_context(self) -> str:
        return "the context"

    async def find_credentials(self) -> FoundCredentials | None:
        self.asked += 1
        return FoundCredentials(self.keys, "env") if self.keys else None

    async def refresh_credentials(self) -> bool:
        self.refreshes += 1
        return self.refreshed.pop(0)


class Pool:
    """A pool that returns or raises the answers of the test."""

    made: tuple[Any, ...] = ()
    answers: ClassVar[deque[Any]] = deque()
    resent = 4

    def __init__(self, *arguments: Any) -> None:
        type(self).made = arguments
        self.requests: list[tuple[bytes, float, bool]] = []

    async def request(self, request: bytes, *, timeout_seconds: float, resend: bool) -> Response:
        self.requests.append((request, timeout_seconds, resend))
        answer = self.answers.popleft()
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Response)
        return answer

    def close(self) -> None:
        self.requests.clear()


def opened(
    monkeypatch: pytest.MonkeyPatch, *answers: Any, session: Session | None = None, url: str = "http://host"
) -> tuple[Endpoint, Any]:
    monkeypatch.setattr(module, "Pool", Pool)
    monkeypatch.setattr(Pool, "answers", deque(answers))
    given: Any = session or Session()
    endpoint = Endpoint(Destination(url, "eu-west-1", "sqs", "agent"), given, sqs.PROTOCOL)
    return endpoint, endpoint._pool


async def post(endpoint: Endpoint, *, poll: bool = False) -> bytes:
    return await endpoint.post("AmazonSQS.SendMessageBatch", b"{}", timeout_seconds=7, poll=poll)


@pytest.mark.parametrize(("url", "expected"), [
    ("http://host", ("host", 80, None)), ("https://host", ("host", 443, "the context")),
    ("http://host:4566", ("host", 4566, None)), ("https://host:8443", ("host", 8443, "the context")),
    ("http://[::1]:4566", ("::1", 4566, None)),
])  # fmt: skip
async def test_a_pool_connects_to_the_host_and_port_of_the_url(
    url: str, expected: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, pool = opened(monkeypatch, url=url)

    assert pool.made == expected
    assert (endpoint.url, endpoint.resent) == (url, 4)


@pytest.mark.parametrize("poll", [False, True])
async def test_a_request_has_a_head_and_only_a_poll_is_not_sent_again(
    poll: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, pool = opened(monkeypatch, OK, url="http://host:4566")

    assert await post(endpoint, poll=poll) == b"done"
    [(request, seconds, resend)] = pool.requests
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[:5] == [
        "POST / HTTP/1.1", "Host: host:4566", "User-Agent: agent", "Content-Type: application/x-amz-json-1.0",
        "Content-Length: 2",
    ]  # fmt: skip
    assert "X-Amz-Target: AmazonSQS.SendMessageBatch" in lines
    assert (body, seconds, resend) == (b"{}", 7, not poll)


@pytest.mark.parametrize(("answers", "refreshed", "requests", "code"), [
    ([refusal("ExpiredToken"), OK], [True], 2, None),
    ([refusal("ExpiredToken")], [False], 1, "ExpiredToken"),
    ([refusal("ExpiredToken"), refusal("ExpiredToken")], [True], 2, "ExpiredToken"),
    ([refusal("UnrecognizedClientException"), refusal("AccessDenied")], [True], 2, "AccessDenied"),
    ([refusal("AccessDenied")], [], 1, "AccessDenied"),
    ([refusal("QueueDoesNotExist", status=300)], [], 1, "QueueDoesNotExist"),
    ([Response(299, [], b"done")], [], 1, None),
    ([refusal("RequestTimeTooSkewed", seconds=100), OK], [], 2, None),
    ([refusal("RequestTimeTooSkewed", seconds=-100), OK], [], 2, None),
    ([refusal("RequestTimeTooSkewed", seconds=20)], [], 1, "RequestTimeTooSkewed"),
    ([refusal("RequestTimeTooSkewed")], [], 1, "RequestTimeTooSkewed"),
    ([refusal("RequestTimeTooSkewed", date="yesterday")], [], 1, "RequestTimeTooSkewed"),
    ([refusal("AccessDenied", seconds=100)], [], 1, "AccessDenied"),
    ([refusal("RequestTimeTooSkewed", seconds=100), refusal("ExpiredToken"), OK], [True], 3, None),
    ([refusal("RequestTimeTooSkewed", seconds=100)] * 2, [], 2, "RequestTimeTooSkewed"),
])  # fmt: skip
async def test_a_refused_request_is_sent_again_only_if_that_can_help(
    answers: list[Response], refreshed: list[bool], requests: int, code: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smartpipe.transports.aws.direct.endpoint.time.time", lambda: NOW)
    session = Session(*refreshed)
    endpoint, pool = opened(monkeypatch, *answers, session=session)

    if code is None:
        assert await post(endpoint) == b"done"
    else:
        with pytest.raises(ClientError) as caught:
            await post(endpoint)
        assert caught.value.response["Error"] == {"Code": code, "Message": "no"}
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == answers[-1].status
        assert caught.value.operation_name == "SendMessageBatch"
    assert (len(pool.requests), session.refreshes, session.refreshed) == (requests, len(refreshed), [])


def date_of(request: bytes) -> float:
    [line] = [line for line in request.decode().split("\r\n") if line.startswith("X-Amz-Date: ")]
    return time.mktime(time.strptime(line[12:], "%Y%m%dT%H%M%SZ")) - time.timezone


@pytest.mark.parametrize(("seconds", "words"), [(500, "500 s behind"), (-500, "500 s ahead of")])
async def test_after_a_correction_all_requests_are_signed_by_the_clock_of_aws(
    seconds: float, words: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("smartpipe.transports.aws.direct.endpoint.time.time", lambda: NOW)
    skewed = refusal("RequestTimeTooSkewed", date=formatdate(NOW + seconds, usegmt=True))
    endpoint, pool = opened(monkeypatch, OK, skewed, OK, OK)
    for _ in range(3):
        await post(endpoint)

    dates = [date_of(request) - 1_800_000_000 for request, _, _ in pool.requests]
    assert dates == [0, 0, seconds, seconds]
    [line] = caplog.messages
    assert f"This machine's clock is {words} AWS's clock" in line


async def test_a_refusal_that_a_correction_cannot_help_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smartpipe.transports.aws.direct.endpoint.time.time", lambda: NOW)
    skewed = refusal("RequestTimeTooSkewed", seconds=100)
    endpoint, pool = opened(monkeypatch, skewed, OK, skewed)
    await post(endpoint)

    with pytest.raises(ClientError, match="RequestTimeTooSkewed"):
        await post(endpoint)
    assert len(pool.requests) == 3


@pytest.mark.parametrize(("error", "expected"), [
    (ConnectionLost("gone", unanswered=True), ConnectionClosedError),
    (ssl.SSLError("bad"), SSLError),
    (TimeoutError(NO_RESPONSE), ReadTimeoutError),
    (TimeoutError(), ConnectTimeoutError),
    (ConnectionRefusedError("no"), EndpointConnectionError),
    (ValueError("not HTTP"), ValueError),
], ids=repr)  # fmt: skip
async def test_an_error_of_the_connection_is_that_of_botocore(
    error: Exception, expected: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, pool = opened(monkeypatch, error)

    with pytest.raises(Exception, match=r".") as caught:
        await post(endpoint)
    assert type(caught.value) is expected
    assert len(pool.requests) == 1


async def test_credentials_are_asked_for_every_five_seconds_and_after_a_refresh(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = Session(True)
    endpoint, _ = opened(monkeypatch, *[OK] * 4, refusal("ExpiredToken"), *[OK] * 2, session=session)
    now = 100.0
    loop: Any = SimpleNamespace(time=lambda: now)
    endpoint.loop = loop
    asked = []
    for now in (100.0, 105.0, 106.0, 111.0, 111.0, 111.0):  # noqa: B007 - the clock of the loop
        await post(endpoint)
        asked.append(session.asked)

    assert asked == [1, 1, 2, 2, 3, 3]


async def test_without_credentials_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session()
    endpoint, pool = opened(monkeypatch, OK, session=session)
    session.keys = None
    with pytest.raises(NoCredentialsError):
        await post(endpoint)
    session.keys = ReadOnlyCredentials("KEY\n", "secret", None)
    with pytest.raises(ConfigError, match="AWS credentials from the environment: the access key id"):
        await post(endpoint)
    assert pool.requests == []


SIGNED = "AWS4-HMAC-SHA256 Credential=KEY/20260101/eu-west-1/sqs/aws4_request, SignedHeaders=host, Signature=x"


def destination(url: str = "https://host", signed: Any = SIGNED, agent: Any = "agent", **config: Any) -> Any:
    request = SimpleNamespace(url=url, headers={"Authorization": signed, "User-Agent": agent})
    return _read_destination(request, SimpleNamespace(**{"proxies": None, "client_cert": None, **config}))


@pytest.mark.parametrize(("options", "expected"), [
    ({}, Destination("https://host", "eu-west-1", "sqs", "agent")),
    ({"url": "https://host:8443/"}, Destination("https://host:8443", "eu-west-1", "sqs", "agent")),
    ({"signed": SIGNED.encode(), "agent": b"a\xe9"}, Destination("https://host", "eu-west-1", "sqs", "a\u00e9")),
    ({"signed": None}, "requests are signed by nothing"),
    ({"signed": "Bearer x"}, "requests are signed by Bearer x"),
    ({"url": "https://host/path"}, "the endpoint https://host/path has a path"),
    ({"url": "https://host/?a=b"}, "the endpoint https://host/?a=b has a path"),
    ({"proxies": {"https": "http://proxy"}}, "a proxy is set"),
    ({"client_cert": "file"}, "a client certificate is set"),
    ({"agent": "a\nb"}, "its User-Agent or its host has a control character"),
], ids=str)  # fmt: skip
def test_a_destination_that_the_direct_transport_does_not_support_is_named(
    options: dict[str, Any], expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)

    assert destination(**options) == expected
    monkeypatch.setenv("https_proxy", "http://proxy")
    if isinstance(expected, Destination):
        assert destination(**options) == "a proxy is set"
