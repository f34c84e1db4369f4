"""HTTP/1.1, as far as one service at one address needs it: kept-alive connections, one request at a time on each.

Source: RFC 9112.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, cast

from smartpipe.batching.timers import Timers
from smartpipe.transports.aws.direct.connect import connect
from smartpipe.transports.aws.direct.response import END, Framing, Response

if TYPE_CHECKING:
    import ssl

IDLE_SECONDS = 20.0
"""A connection that was idle for longer is not used again: the other side may be closing it at this moment."""
MAX_HEAD_BYTES = 65_536
MAX_ANSWER_BYTES = 128 * 1024 * 1024
"""Ten messages of 1 MiB with every character escaped take half of it; what does not end fits no memory."""
NO_ANSWER = "no answer in time"


class Lost(ConnectionError):
    """The connection ended before the answer did. *unheard*: not one byte of an answer had come."""

    def __init__(self, detail: str, *, unheard: bool) -> None:
        self.unheard = unheard
        super().__init__(detail)


class Connection(asyncio.Protocol):
    """One connection. A request at a time; whoever stops waiting has to abort it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.used = False
        self.idle_since = 0.0
        self.open = False
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Response] | None = None
        self._received: bytes | bytearray = b""
        self._framing: Framing | None = None

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
        waiter = self._waiter = self._loop.create_future()
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
        if not self._received:
            self._received = data  # most often the whole answer: not copied
        else:
            if isinstance(self._received, bytes):
                self._received = bytearray(self._received)
            self._received += data
        try:
            self._read()
        except ValueError as error:
            self._fail(error)

    def _read(self) -> None:
        if len(self._received) > MAX_ANSWER_BYTES:
            raise ValueError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
        while True:
            if self._framing is None:
                end = self._received.find(END)
                if end < 0:
                    if len(self._received) > MAX_HEAD_BYTES:
                        raise ValueError("the head of the answer does not end")
                    return
                self._framing = Framing(bytes(self._received[:end]), end + len(END))
                if self._framing.status < 200:  # noqa: PLR2004 - an interim answer: the real one follows
                    self._received = self._received[end + len(END) :]
                    self._framing = None
                    continue
            body = self._framing.body_in(self._received)
            if body is not None:
                if len(self._received) > self._framing.end:
                    self._framing.keep_alive = False  # what nobody asked for would be read as the next answer
                self._finish(self._framing, body)
            return

    def _finish(self, framing: Framing, body: bytes) -> None:
        waiter, self._waiter = self._waiter, None
        self._received, self._framing = b"", None
        self.used = True
        if not framing.keep_alive:
            self.abort()
        if waiter is not None:
            waiter.set_result(Response(framing.status, framing.head, body))

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
        if error is None and self._framing is not None and self._framing.to_the_end:
            self._finish(self._framing, bytes(self._received[self._framing.start :]))
            return
        detail = f"the connection was closed: {error}" if error else "the connection was closed before the answer ended"
        self._fail(Lost(detail, unheard=not self._received))


class Pool:
    """The connections to one address: as many as there are requests at once, the one used last used next.

    It has no limit, for the number of requests is bounded where they are made, and a poll must never keep a delete
    waiting. It belongs to the event loop in which it is made.

    Args:
        tls: None for plain HTTP.
    """

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._timers = Timers()
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
        self._busy.add(connection)
        waiter = connection.send(request)
        deadline = self._timers.call_later(timeout_seconds, partial(_time_out, waiter))
        try:
            response = await waiter
        except BaseException:
            connection.abort()  # its answer would be taken for the next one's
            raise
        finally:
            self._timers.cancel(deadline)
            self._busy.discard(connection)
        if self._closed:
            connection.abort()
        elif connection.open:
            connection.idle_since = self._loop.time()
            self._idle.append(connection)
        return response

    def _kept(self) -> Connection | None:
        now = self._loop.time()
        while self._idle and now - self._idle[0].idle_since >= IDLE_SECONDS:
            self._idle.pop(0).abort()
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
        return None

    async def _connected(self) -> Connection:
        connection = await connect(partial(Connection, self._loop), self._host, self._port, self._tls)
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
        self._timers.close()


def _time_out(waiter: asyncio.Future[Response]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError(NO_ANSWER))
