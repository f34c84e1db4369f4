"""A proxy in front of a broker, which records every call and injects the faults of a test."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TypeAlias
from xml.sax.saxutils import escape

from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

from tests.support.calls import Call, read_call

if TYPE_CHECKING:
    import ssl
    from types import TracebackType

HOP_BY_HOP = frozenset({"connection", "content-length", "content-encoding", "transfer-encoding", "keep-alive", "host"})

STEPS_OF_AN_ACCEPT = 10
"""Enough turns of the event loop to hand a connection that was accepted to its server. Python 3.11 needs 4. A server
that stops in between leaves that connection open."""

Rewrite: TypeAlias = Callable[[int, dict[str, str], bytes], tuple[int, dict[str, str], bytes]]


@dataclass
class Fault:
    """A fault that is injected into matching calls.

    Args:
        operation: The operation, such as ``ReceiveMessage``. The empty string matches all operations.
        skip: The number of matching calls that pass before the first fault.
        times: The number of calls that get the fault. None means all.
        delay_seconds: Delay the call before any other step.
        answer: Return this error without forwarding the call: status, error code, message.
        respond: Return the result of this function, status, headers and body, without forwarding the call.
        drop: ``request`` closes the connection before the broker gets the call, ``reply`` after it has acted.
        truncate: Send only half of the response's body, and close the connection.
        headers: Headers for the response, both of the broker and of the proxy.
        rewrite: Change the response. It takes and returns status, headers and body; see ``tests.support.answers``.
        when: A further condition on the call.
    """

    operation: str = ""
    skip: int = 0
    times: int | None = None
    delay_seconds: float = 0.0
    answer: tuple[int, str, str] | None = None
    respond: Callable[[Call], tuple[int, dict[str, str], bytes]] | None = None
    drop: str = ""
    truncate: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    rewrite: Rewrite | None = None
    when: Callable[[Call], bool] = lambda _: True
    seen: int = field(default=0, init=False)
    hits: int = field(default=0, init=False)
    hit_at: list[float] = field(default_factory=list, init=False)

    def applies_to(self, call: Call) -> bool:
        """Return whether this call gets the fault, and count it."""
        if (self.operation and call.operation != self.operation) or not self.when(call):
            return False
        self.seen += 1
        if self.seen <= self.skip or (self.times is not None and self.hits >= self.times):
            return False
        self.hits += 1
        self.hit_at.append(time.monotonic())
        return True


class FaultProxy:
    """A context manager that serves on loopback from a separate thread.

    ``calls`` contains all calls in order, ``open_calls`` those without a response yet, and ``peak_concurrency`` is the
    highest number of concurrent calls. Tests may change ``faults`` at any time.

    Args:
        tls: Serve HTTPS with this context, as ``localhost``.
        max_concurrent: The number of calls that reach the broker concurrently. moto needs 1, because its conditional
            writes are not atomic between threads.
    """

    def __init__(self, upstream: str, *, tls: ssl.SSLContext | None = None, max_concurrent: int = 1_000) -> None:
        self.calls: list[Call] = []
        self.faults: list[Fault] = []
        self.judge: Callable[[Call], tuple[int, str, str] | None] = lambda _: None
        self._upstream = upstream
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None
        self._session: ClientSession | None = None
        self._limit = asyncio.Semaphore(max_concurrent)
        self.open_calls: list[Call] = []
        self.peak_concurrency = 0
        self.port = 0

    @property
    def endpoint_url(self) -> str:
        return f"https://localhost:{self.port}" if self._tls else f"http://127.0.0.1:{self.port}"

    def operations(self) -> list[str]:
        return [call.operation for call in self.calls]

    def add(self, fault: Fault) -> Fault:
        self.faults.append(fault)
        return fault

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def refuse(self) -> None:
        """Stop listening and close all connections. The kernel refuses new ones until ``listen``."""
        asyncio.run_coroutine_threadsafe(self._refuse(), self._loop).result(10)

    def listen(self) -> None:
        """Listen again, on the same port."""
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    async def _start(self) -> None:
        self._session = ClientSession(
            connector=TCPConnector(limit=0), timeout=ClientTimeout(total=60), auto_decompress=False
        )
        app = web.Application(client_max_size=16 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await self._listen()

    async def _listen(self) -> None:
        assert self._runner is not None
        self._site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self._tls)
        await self._site.start()
        self.port = self._site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    async def _refuse(self) -> None:
        assert self._runner is not None
        assert self._runner.server is not None
        assert self._site is not None
        self._loop.remove_reader(self._site._server.sockets[0])  # type: ignore[union-attr]
        for _ in range(STEPS_OF_AN_ACCEPT):
            await asyncio.sleep(0)
        await self._site.stop()
        await self._runner.server.shutdown(0.1)

    async def _stop(self) -> None:
        assert self._runner is not None
        assert self._session is not None
        await self._runner.cleanup()
        await self._session.close()
        # Cancel calls that still hang, because an unawaited task would cause a warning in a later test.
        hanging = asyncio.all_tasks() - {asyncio.current_task()}
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        call = read_call(request.path, request.headers, body)
        self.calls.append(call)
        self.open_calls.append(call)
        self.peak_concurrency = max(self.peak_concurrency, len(self.open_calls))
        try:
            return await self._answer(request, call, body)
        finally:
            self.open_calls.remove(call)

    async def _answer(self, request: web.Request, call: Call, body: bytes) -> web.StreamResponse:
        fault = next((fault for fault in self.faults if fault.applies_to(call)), None)
        if fault is not None and fault.delay_seconds:
            await asyncio.sleep(fault.delay_seconds)
        error = self.judge(call) or (fault.answer if fault else None)
        if error is not None:
            return error_answer(call, *error, headers=fault.headers if fault else {})
        if fault is not None and fault.respond is not None:
            status, headers, answer = fault.respond(call)
            return web.Response(status=status, headers=headers, body=answer)
        if fault is not None and fault.drop == "request":
            return _cut(request)
        status, headers, answer = await self._forward(request, body)
        if fault is None:
            return web.Response(status=status, headers=headers, body=answer)
        if fault.drop == "reply":
            return _cut(request)
        if fault.rewrite is not None:
            status, headers, answer = fault.rewrite(status, headers, answer)
        headers |= fault.headers
        if fault.truncate:
            return await _send_half(request, status, headers, answer)
        return web.Response(status=status, headers=headers, body=answer)

    async def _forward(self, request: web.Request, body: bytes) -> tuple[int, dict[str, str], bytes]:
        assert self._session is not None
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        url = self._upstream + request.path_qs
        async with self._limit, self._session.request(request.method, url, data=body, headers=headers) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}
            return answer.status, kept, await answer.read()


def error_answer(
    call: Call, status: int, code: str, message: str, *, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return an error in the format of the service: XML for SNS and STS, JSON for the others."""
    if call.service in {"sns", "sts"}:
        sender = "Sender" if status < 500 else "Receiver"
        text = (
            f"<ErrorResponse><Error><Type>{sender}</Type><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
            "<RequestId>r</RequestId></ErrorResponse>"
        )
        return web.Response(status=status, text=text, content_type="text/xml", headers=headers)
    body = json.dumps({"__type": f"com.amazonaws.{call.service}#{code}", "message": message})
    return web.Response(status=status, text=body, content_type="application/x-amz-json-1.0", headers=headers)


def allowed_by(policies: Mapping[str, Any], account_id: str) -> Callable[[Call], tuple[int, str, str] | None]:
    """Return a function that checks calls against the IAM policy of their access key. Without one, all are denied."""

    def judge(call: Call) -> tuple[int, str, str] | None:
        if call.service == "sts":  # GetCallerIdentity: "No permissions are required"
            return None
        for action in call.actions:
            if not permits(policies.get(call.access_key, {}), action, call.resource(account_id)):
                return 403, "AccessDenied", f"{call.access_key} may not {action} on {call.resource(account_id)}"
        return None

    return judge


def permits(policy: Mapping[str, Any], action: str, resource: str) -> bool:
    return any(
        _matches_any(statement["Action"], action) and _matches_any(statement["Resource"], resource)
        for statement in policy.get("Statement", [])
        if statement["Effect"] == "Allow"
    )


def _matches_any(patterns: str | list[str], text: str) -> bool:
    found = [patterns] if isinstance(patterns, str) else patterns
    return any(
        text.startswith(pattern.removesuffix("*")) if pattern.endswith("*") else text == pattern for pattern in found
    )


def _cut(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response(status=500)


async def _send_half(request: web.Request, status: int, headers: dict[str, str], body: bytes) -> web.StreamResponse:
    response = web.StreamResponse(status=status, headers={**headers, "Content-Length": str(len(body))})
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    return _cut(request)
