"""An S3 server with the responses of a test, which records each request."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, NamedTuple

from tests.support.loopback import LoopbackServer

if TYPE_CHECKING:
    from collections.abc import Mapping

CHUNK = b"x" * 65_536


class Request(NamedTuple):
    """One request. Header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]


class S3Server(LoopbackServer):
    """A fake S3 server.

    Args:
        status, code: The error for every request. With status 200, each GET returns *body*.
    """

    def __init__(self, *, status: int = 200, code: str = "", body: bytes = b"{}") -> None:
        self.status = status
        self.code = code
        self.body = body
        self.endless = False
        self.sent_bytes = 0
        self.requests: list[Request] = []
        super().__init__(self._handler())

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _respond(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                server.requests.append(Request(self.command, self.path, headers))
                self._read(headers)
                if server.endless:
                    self._stream()
                elif server.status >= 300:
                    text = f"<Error><Code>{server.code}</Code><Message>as the test says</Message></Error>"
                    self._send(server.status, text.encode())
                else:
                    self._send(200, server.body if self.command == "GET" else b"")

            def _read(self, headers: Mapping[str, str]) -> None:
                size = int(headers.get("content-length", 0))
                chunked = headers.get("transfer-encoding") == "chunked"
                while chunked and (size := int(self.rfile.readline(), 16)):
                    self.rfile.read(size + 2)
                self.rfile.read(size + 2 if chunked else size)

            def _send(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _stream(self) -> None:
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                try:
                    while server.endless:
                        self.wfile.write(b"%x\r\n%b\r\n" % (len(CHUNK), CHUNK))
                        server.sent_bytes += len(CHUNK)
                except OSError:  # the client has closed the connection
                    self.close_connection = True

            do_GET = do_PUT = _respond  # noqa: N815 - http.server's names

            def log_message(self, *_: object) -> None: ...

        return Handler
