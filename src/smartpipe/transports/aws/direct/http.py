"""An HTTP/1.1 client for one service at one address: connections that are kept alive, each with one request at a time.

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
from smartpipe.transports.aws.direct.response import Response, ResponseReader

if TYPE_CHECKING:
    import ssl

IDLE_SECONDS = 20.0
"""A connection that was idle for longer is not used again: the server may be closing it at this moment."""
NO_RESPONSE = "no response in time"


class ConnectionLost(ConnectionError):
    """The connection ended before the response was complete.

    Args:
        unanswered: No byte of a response had been received.
    """

    def __init__(self, detail: str, *, unanswered: bool) -> None:
        self.unanswered = unanswered
        super().__init__(detail)


class Connection(asyncio.Protocol):
    """One connection, with one request at a time. A caller that stops waiting for a response must abort it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.used = False
        self.idle_since = 0.0
        self.open = False
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Response] | None = None
        self._reader = ResponseReader()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Enable TCP keepalive. asyncio sets only TCP_NODELAY."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not inherit from it
        self.open = True
        connected = transport.get_extra_info("socket")
        if connected is not None:
            with suppress(OSError):
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def send(self, request: bytes) -> asyncio.Future[Response]:
        """Write *request*, and return a future for its response.

        The future fails with ConnectionLost, or with ValueError if the response is not HTTP.
        """
        waiter = self._waiter = self._loop.create_future()
        if self._transport is not None:
            self._transport.write(request)
        return waiter

    def abort(self) -> None:
        """Close the connection immediately."""
        self.open = False
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Read *data*, and set the result of the future once the response is complete."""
        if self._waiter is None or self._waiter.done():
            self.abort()  # no request is open, so these bytes would be read as the response to the next one
            return
        try:
            response = self._reader.feed(data)
        except ValueError as error:
            self._fail(error)
            return
        if response is not None:
            self._finish(response)

    def _finish(self, response: Response) -> None:
        waiter, self._waiter = self._waiter, None
        self.used = True
        if not self._reader.keep_alive:
            self.abort()
        if waiter is not None:
            waiter.set_result(response)

    def _fail(self, error: Exception) -> None:
        waiter, self._waiter = self._waiter, None
        self.abort()
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)

    def eof_received(self) -> None:
        """Take no further request. asyncio calls ``connection_lost`` only in the next turn of the loop."""
        self.open = False

    def connection_lost(self, error: Exception | None) -> None:
        """Complete a response that ends with its connection, or fail the request."""
        self.open = False
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        unanswered = not self._reader.received_bytes
        response = self._reader.finish() if error is None else None
        if response is not None:
            self._finish(response)
            return
        detail = (
            f"the connection was closed: {error}" if error else "the connection was closed before the response ended"
        )
        self._fail(ConnectionLost(detail, unanswered=unanswered))


class Pool:
    """The connections to one address. A request takes the one that was used last, or opens another.

    The pool has no limit. The callers limit the number of concurrent requests, and a poll must never make a delete
    wait. A pool belongs to the event loop in which it is created.

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
        """Send *request* and return the response, of any status. A cancel closes the connection.

        Args:
            timeout_seconds: The time from writing the request to the end of the response.
            resend: Send the request once more, on a new connection, if a kept connection turns out to be closed. The
                service has probably not seen the first one, but it may have. So ``resent`` counts these.

        Raises:
            OSError, TimeoutError: No connection, a lost connection, or no response in time.
            ValueError: The response is not HTTP.
        """
        connection = self._take_idle() or await self._open()
        while True:
            fresh = not connection.used
            try:
                return await self._exchange(connection, request, timeout_seconds)
            except ConnectionLost as error:
                if fresh or not resend or not error.unanswered or self._closed:
                    raise
            self.resent += 1
            connection = await self._open()

    async def _exchange(self, connection: Connection, request: bytes, timeout_seconds: float) -> Response:
        self._busy.add(connection)
        waiter = connection.send(request)
        deadline = self._timers.call_later(timeout_seconds, partial(_time_out, waiter))
        try:
            response = await waiter
        except BaseException:
            connection.abort()  # its response would be read as the response to the next request
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

    def _take_idle(self) -> Connection | None:
        now = self._loop.time()
        while self._idle and now - self._idle[0].idle_since >= IDLE_SECONDS:
            self._idle.pop(0).abort()
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
        return None

    async def _open(self) -> Connection:
        connection = await connect(partial(Connection, self._loop), self._host, self._port, self._tls)
        if self._closed:
            connection.abort()
            raise ConnectionLost("the pool was closed", unanswered=True)
        return connection

    def close(self) -> None:
        """Close every connection. Requests in flight fail, and none is sent again."""
        self._closed = True
        for connection in (*self._idle, *self._busy):
            connection.abort()
        self._timers.close()


def _time_out(waiter: asyncio.Future[Response]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError(NO_RESPONSE))
