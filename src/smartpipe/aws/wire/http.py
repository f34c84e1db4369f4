"""HTTP/1.1, as far as one service at one address needs it: kept-alive connections, one request at a time on each.

Source: RFC 9112. Responses are read by Content-Length, in chunks, or to the end of the connection.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, cast

from smartpipe.aws.wire.dialing import connect

if TYPE_CHECKING:
    import ssl

IDLE_SECONDS = 20.0
"""A connection that was idle for longer is not used again: the other side may be closing it at this moment."""
MAX_HEAD_BYTES = 65_536
_END = b"\r\n\r\n"
NO_ANSWER = "no answer in time"


class Lost(ConnectionError):
    """The connection ended before the answer did. *unheard*: not one byte of an answer had come."""

    def __init__(self, detail: str, *, unheard: bool) -> None:
        self.unheard = unheard
        super().__init__(detail)


class Response(NamedTuple):
    """An answer. *head* has its headers, as they came."""

    status: int
    head: bytes
    body: bytes

    def header(self, name: bytes) -> str | None:
        """Return the value of a header, by its name in lower case."""
        return _header(self.head, self.head.lower(), name)


class Connection(asyncio.Protocol):
    """One connection. A request at a time; whoever stops waiting has to abort it."""

    def __init__(self) -> None:
        self.used = False
        self.idle_since = 0.0
        self.open = False
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Response] | None = None
        self._received = bytearray()
        self._reader: _Reader | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Set what asyncio does not: it sets TCP_NODELAY itself."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by name
        self.open = True
        connected = transport.get_extra_info("socket")
        if connected is not None:
            with suppress(OSError):
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def send(self, request: bytes) -> asyncio.Future[Response]:
        """Write *request*; return what will be its answer, or Lost, or ValueError for what is no HTTP."""
        self._received.clear()
        self._reader = None
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        if self._transport is not None:
            self._transport.write(request)
        return waiter

    def abort(self) -> None:
        """Close without waiting for anything."""
        self.open = False
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take what came; when the answer is whole, hand it over."""
        if self._waiter is None or self._waiter.done():
            self.abort()  # nobody asked
            return
        self._received += data
        try:
            self._read()
        except ValueError as error:
            self._fail(error)

    def _read(self) -> None:
        while True:
            if self._reader is None:
                end = self._received.find(_END)
                if end < 0:
                    if len(self._received) > MAX_HEAD_BYTES:
                        raise ValueError("the head of the answer does not end")
                    return
                self._reader = _Reader(bytes(self._received[:end]), end + len(_END))
                if self._reader.status < 200:  # noqa: PLR2004 - an interim answer: the real one follows
                    del self._received[: end + len(_END)]
                    self._reader = None
                    continue
            body = self._reader.body_in(self._received)
            if body is not None:
                if len(self._received) > self._reader.end:
                    self._reader.keep_alive = False  # what nobody asked for would be read as the next answer
                self._finish(self._reader, body)
            return

    def _finish(self, reader: _Reader, body: bytes) -> None:
        waiter, self._waiter = self._waiter, None
        self.used = True
        if not reader.keep_alive:
            self.abort()
        if waiter is not None:
            waiter.set_result(Response(reader.status, reader.head, body))

    def _fail(self, error: Exception) -> None:
        waiter, self._waiter = self._waiter, None
        self.abort()
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)

    def eof_received(self) -> None:
        """Take no further request; asyncio tells of the end only in its next turn."""
        self.open = False

    def connection_lost(self, error: Exception | None) -> None:
        """Tell whoever waits; an answer that ends with its connection is whole now."""
        self.open = False
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        if error is None and self._reader is not None and self._reader.to_the_end:
            self._finish(self._reader, bytes(self._received[self._reader.start :]))
            return
        detail = f"the connection was closed: {error}" if error else "the connection was closed before the answer ended"
        self._fail(Lost(detail, unheard=not self._received))


class _Reader:
    """How the body of one answer is to be read."""

    def __init__(self, head: bytes, start: int) -> None:
        line, _, headers = head.partition(b"\r\n")
        parts = line.split(None, 2)
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/1."):  # noqa: PLR2004
            raise ValueError(f"the answer is no HTTP/1.1: {line[:80]!r}")
        self.status = int(parts[1])
        self.head = b"\r\n" + headers
        self.start = start
        lowered = self.head.lower()
        connection = _header(lowered, lowered, b"connection")
        self.keep_alive = connection != "close" and (parts[0] != b"HTTP/1.0" or connection == "keep-alive")
        self._chunked = (_header(lowered, lowered, b"transfer-encoding") or "").endswith("chunked")
        length = _header(lowered, lowered, b"content-length")
        self._length = 0 if self.status == 204 else None if length is None else _size(length.encode(), 10)  # noqa: PLR2004
        self.to_the_end = not self._chunked and self._length is None
        if self.to_the_end:
            self.keep_alive = False
        self.end = start + (self._length or 0)
        self._chunks: list[bytes] = []
        self._position = start

    def body_in(self, received: bytearray) -> bytes | None:
        """Return the body if it is whole."""
        if self._chunked:
            return self._unchunked(received)
        if self._length is None or len(received) < self.end:
            return None
        return bytes(received[self.start : self.end])

    def _unchunked(self, received: bytearray) -> bytes | None:
        while True:
            end = received.find(b"\r\n", self._position)
            if end < 0:
                return None
            size = _size(bytes(received[self._position : end]).split(b";")[0], 16)
            start = end + 2
            if size == 0:  # trailers, if any, end with an empty line
                last = received.find(_END, end)
                self.end = last + len(_END)
                return b"".join(self._chunks) if last >= 0 else None
            if len(received) < start + size + 2:
                return None
            if not received.startswith(b"\r\n", start + size):
                raise ValueError("a chunk of the answer does not end where it should")
            self._chunks.append(bytes(received[start : start + size]))
            self._position = start + size + 2


def _size(text: bytes, base: int) -> int:
    """Read a size; `int` alone takes a sign too, and a chunk of -6 bytes would be read for ever."""
    text = text.strip()
    if not text.isalnum():
        raise ValueError(f"the answer has {text[:20]!r} for a size")
    return int(text, base)


def _header(head: bytes, lowered: bytes, name: bytes) -> str | None:
    """Return the value of a header by its place in *lowered*."""
    start = lowered.find(b"\r\n" + name + b":")
    if start < 0:
        return None
    start += len(name) + 3
    end = lowered.find(b"\r\n", start)
    return head[start : end if end >= 0 else None].strip().decode("latin-1")


class Pool:
    """The connections to one address: as many as there are requests at once, the one used last used next.

    It has no limit, for the number of requests is bounded where they are made, and a poll must never keep a delete
    waiting. It belongs to one event loop.

    Args:
        tls: None for plain HTTP.
    """

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._closed = False
        self.resent = 0

    async def request(self, request: bytes, *, timeout_seconds: float, resend: bool) -> Response:
        """Send *request* and return the answer, whatever its status.

        Args:
            timeout_seconds: From when it is written to when the answer is whole.
            resend: Send it once more, on a new connection, when a kept one turns out to have been closed: the
                service has hardly seen it, but it may have, so it is counted.

        Raises:
            OSError, TimeoutError: No connection, or one that was lost, or no answer in time.
            ValueError: An answer that is no HTTP.
        """
        connection = self._kept() or await self._connected()
        while True:
            fresh = not connection.used
            try:
                return await self._exchange(connection, request, timeout_seconds)
            except Lost as error:
                if fresh or not resend or not error.unheard or self._closed:
                    raise
            self.resent += 1
            connection = await self._connected()

    async def _exchange(self, connection: Connection, request: bytes, timeout_seconds: float) -> Response:
        loop = asyncio.get_running_loop()
        self._busy.add(connection)
        waiter = connection.send(request)
        timer = loop.call_later(timeout_seconds, _time_out, waiter)
        try:
            response = await waiter
        except BaseException:
            connection.abort()  # its answer would be taken for the next one's
            raise
        finally:
            timer.cancel()
            self._busy.discard(connection)
        if self._closed:
            connection.abort()
        elif connection.open:
            connection.idle_since = loop.time()
            self._idle.append(connection)
        return response

    def _kept(self) -> Connection | None:
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection = self._idle.pop()
            if connection.open and now - connection.idle_since < IDLE_SECONDS:
                return connection
            connection.abort()
        return None

    async def _connected(self) -> Connection:
        connection = await connect(Connection, self._host, self._port, self._tls)
        if self._closed:
            connection.abort()
            raise Lost("the pool was closed", unheard=True)
        return connection

    def close(self) -> None:
        """Close every connection; requests in flight fail, and none is sent again."""
        self._closed = True
        for connection in (*self._idle, *self._busy):
            connection.abort()
        self._idle.clear()


def _time_out(waiter: asyncio.Future[Response]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError(NO_ANSWER))
