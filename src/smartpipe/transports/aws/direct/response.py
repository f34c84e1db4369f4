"""Responses of HTTP/1.1, from the bytes of a connection. httptools (llhttp) parses them. Pure.

Sources: RFC 9112, sections 2.2 (line ends before a message), 4 (status line), 6 (message body) and 7 (chunks);
https://github.com/nodejs/llhttp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_HEAD_BYTES = 65_536
"""The limit for data that brings no part of the body: an endless head, chunk extension or trailer, or endless interim
responses."""
MAX_RESPONSE_BYTES = 128 * 1024 * 1024
"""Ten messages of 1 MiB with every character escaped take half of it."""
FINAL = 200
"""From this status on a response is final. Interim responses (1xx) come before it."""
_VERSIONS = frozenset({"1.0", "1.1"})
_LINE_ENDS = b"\r\n"


class Response(NamedTuple):
    """A final response. *headers* are names and values as they were received, without trailers."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes

    def header(self, name: bytes) -> str | None:
        """Return the value of the first header with *name*, which is in lower case."""
        return next((value.strip().decode("latin-1") for key, value in self.headers if key.lower() == name), None)


class ResponseReader:
    """Reads the responses of one connection, one after the other.

    llhttp refuses violations of RFC 9112: a Content-Length beside Transfer-Encoding or a second one, sizes that are not
    plain digits, folded headers, line ends without CR, a chunk of the wrong length. This class also refuses other
    protocols and versions, line ends before the first byte of a response, encodings other than chunked, and responses
    without an end. llhttp accepts those.

    After an error, or when ``keep_alive`` is False, the connection cannot be used again.
    """

    def __init__(self) -> None:
        self.keep_alive = True
        self.received_bytes = 0
        self._parser = HttpResponseParser(self)
        self._begin()

    def feed(self, data: bytes) -> Response | None:
        """Take the next bytes of the connection, and return the response if they complete it.

        Bytes after the response would be taken for the next one: they set ``keep_alive`` to False.

        Raises:
            ValueError: The bytes are not a response of HTTP/1.0 or HTTP/1.1, or it is too long.
        """
        if not self.received_bytes and not data.startswith(b"H"):
            raise ValueError(f"the response is not HTTP/1.1: {data[:80]!r}")
        self.received_bytes += len(data)
        if self.received_bytes > MAX_RESPONSE_BYTES:
            raise ValueError(f"the response is longer than {MAX_RESPONSE_BYTES} bytes")
        pieces = len(self._body)
        try:
            self._parse(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            if not self._complete:
                raise ValueError(f"the response is not HTTP/1.1: {error.__context__ or error}") from error
            self.keep_alive = False
        if self._complete:
            return self._finish()
        if len(self._body) == pieces:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                raise ValueError(f"the response has more than {MAX_HEAD_BYTES} bytes outside its body")
        return None

    def finish(self) -> Response | None:
        """Return the response that ends with its connection, or None if the connection ended too early."""
        return self._finish() if self._until_close else None

    def _parse(self, data: bytes) -> None:
        if data[-1] not in _LINE_ENDS:
            self._parser.feed_data(data)
            return
        # llhttp skips line ends before a message. Only if the last one is fed alone does it show that the response
        # was complete before it. Any other byte after a response begins a message or is an error.
        self._parser.feed_data(memoryview(data)[:-1])
        if self._complete:
            self.keep_alive = False
        else:
            self._parser.feed_data(data[-1:])

    def _begin(self) -> None:
        self.received_bytes = 0
        self._head_bytes = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._final = False
        self._complete = False
        self._until_close = False

    def _finish(self) -> Response:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        response = Response(self._parser.get_status_code(), self._headers, body)
        self._begin()
        return response

    # httptools calls these while it parses. An exception stops it.

    def on_message_begin(self) -> None:
        """Refuse a second response."""
        if self._complete:
            raise ValueError("there are bytes after the response")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header. Trailers come after the final head, and nothing reads them."""
        if not self._final:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Decide how the response ends, once its head is complete."""
        if self._parser.get_status_code() < FINAL:
            self._headers.clear()
            return
        self._final = True
        version = self._parser.get_http_version()
        if version not in _VERSIONS:
            raise ValueError(f"its version is {version}")
        if not self._parser.should_keep_alive():
            self._until_close = self._has_no_length()

    def on_body(self, data: bytes) -> None:
        """Keep a piece of the body."""
        self._body.append(data)

    def on_message_complete(self) -> None:
        """Notice the end of the final response."""
        if self._final:
            self._complete = True
            self.keep_alive = self._parser.should_keep_alive()

    def _has_no_length(self) -> bool:
        """Return whether only the end of the connection ends the body.

        Raises:
            ValueError: The body has an encoding other than chunked, which nothing here decodes.
        """
        names = {name.lower(): value for name, value in self._headers}
        encoding = names.get(b"transfer-encoding")
        if encoding is not None and encoding.strip().lower() != b"chunked":
            raise ValueError(f"its Transfer-Encoding is {encoding[:80]!r}")
        return encoding is None and b"content-length" not in names
