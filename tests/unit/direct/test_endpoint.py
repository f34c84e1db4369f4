"""The endpoint of the direct transport: with which credentials it signs."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from botocore.credentials import ReadOnlyCredentials

from smartpipe.transports.aws.direct import endpoint as module
from smartpipe.transports.aws.direct.endpoint import Destination, Endpoint, ServiceProtocol
from smartpipe.transports.aws.session import FoundCredentials
from tests.support.loopback import LoopbackServer


class RotatingSession:
    """A session whose credentials are others at each question."""

    def __init__(self, *keys: str) -> None:
        self._keys = list(keys)

    def tls_context(self) -> None:
        return None

    async def find_credentials(self) -> FoundCredentials:
        key = self._keys.pop(0) if len(self._keys) > 1 else self._keys[0]
        frozen: Any = ReadOnlyCredentials(key, "secret", None)
        return FoundCredentials(frozen, "container-role")


@pytest.mark.parametrize(
    ("every_seconds", "signed_by"),
    [(-1.0, ["FIRST", "SECOND", "SECOND"]), (5.0, ["FIRST", "FIRST", "FIRST"])],
    ids=["when it is time to ask again", "and not before"],
)
async def test_requests_are_signed_with_rotated_credentials(
    monkeypatch: pytest.MonkeyPatch, every_seconds: float, signed_by: list[str]
) -> None:
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            seen.append(self.headers["Authorization"].partition("Credential=")[2].partition("/")[0])
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None: ...

    monkeypatch.setattr(module, "ASK_EVERY_SECONDS", every_seconds)
    session: Any = RotatingSession("FIRST", "SECOND")
    protocol = ServiceProtocol("sqs", "application/x-amz-json-1.0", "list_queues", lambda _: {})
    with LoopbackServer(Handler) as server:
        endpoint = Endpoint(Destination(server.endpoint_url, "eu-west-1", "sqs", "tests"), session, protocol)
        for _ in range(3):
            await endpoint.post("AmazonSQS.ListQueues", b"{}", timeout_seconds=20)
        endpoint.close()

    assert seen == signed_by


@pytest.mark.parametrize("trace_header", [None, "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1"])
async def test_the_trace_of_x_ray_is_a_header_that_is_not_signed(trace_header: str | None) -> None:
    seen: list[tuple[str | None, str]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            seen.append((self.headers["X-Amzn-Trace-Id"], self.headers["Authorization"]))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None: ...

    protocol = ServiceProtocol("sns", "application/x-www-form-urlencoded", "list_topics", lambda _: {})
    session: Any = RotatingSession("KEY")
    with LoopbackServer(Handler) as server:
        endpoint = Endpoint(Destination(server.endpoint_url, "eu-west-1", "sns", "tests"), session, protocol)
        assert await endpoint.post("", b"Action=PublishBatch", timeout_seconds=20, trace_header=trace_header) == b"{}"
        endpoint.close()

    [(header, authorization)] = seen
    assert header == trace_header
    assert "SignedHeaders=host;x-amz-date," in authorization
