"""The asyncio publisher: typed events in, PublishBatch requests out."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Self

from smartpipe.attempts import deliver
from smartpipe.batcher import Batcher
from smartpipe.bulk import Requests
from smartpipe.errors import ConfigError, PublishError, PublishFailure, TransportError
from smartpipe.message import Failure
from smartpipe.outgoing import Chunker, Outgoing, PublishReport, TopicChunks, prepare
from smartpipe.transport import open_transport

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    from smartpipe.events import Event
    from smartpipe.topology.model import Topic
    from smartpipe.transport import Transport

log = logging.getLogger("smartpipe.publisher")

MAX_IN_FLIGHT = 16


_CLOSED_TOO_SOON = Failure(0, "DeadlineExceeded", "the publisher was closed before SNS answered", retryable=True)


class _Waiting:
    """A single publish: the message, who waits for its fate, and until when it is tried."""

    __slots__ = ("deadline", "failure", "future", "outgoing")

    def __init__(self, outgoing: Outgoing, future: asyncio.Future[None], deadline: float) -> None:
        self.outgoing = outgoing
        self.future = future
        self.deadline = deadline
        self.failure: PublishFailure | None = None

    def settle(self, failure: PublishFailure | None) -> None:
        """Tell whoever waits, unless told or gone already."""
        if not self.future.done():
            self.failure = failure
            self.future.set_result(None)


class Publisher:
    """Publishes events to their topics. One for a process is enough; it belongs to one event loop.

    Use it as an async context manager, or call ``aclose`` at the end.

    Args:
        source: CloudEvents ``source``: which component publishes, as in ``"signup-api"``.
        transport: Where to; by default AWS as the environment has it (region, credentials,
            ``AWS_ENDPOINT_URL``, ``SMARTPIPE_PREFIX``).
        linger_seconds: How long a single ``publish`` waits for others to share its request. 0 turns
            coalescing off.
        deadline_seconds: For how long what SNS refuses for the moment (throttling, 5xx, a lost
            connection) is tried again, with full jitter.

    Raises:
        ConfigError: An empty source, a negative time, or faulty settings in the environment.
    """

    def __init__(
        self,
        source: str,
        *,
        transport: Transport | None = None,
        linger_seconds: float = 0.005,
        deadline_seconds: float = 30.0,
    ) -> None:
        problems = [] if source else ["Publisher: source is empty; name the component, as in 'signup-api'"]
        if linger_seconds < 0 or deadline_seconds < 0:
            problems.append("Publisher: linger_seconds and deadline_seconds cannot be negative")
        if problems:
            raise ConfigError(problems)
        self.source = source
        self._owns_transport = transport is None
        self._transport = open_transport() if transport is None else transport
        self._linger_seconds = linger_seconds
        self._deadline_seconds = deadline_seconds
        self._batchers: dict[Topic, Batcher[_Waiting]] = {}
        self._waiting: dict[_Waiting, None] = {}  # a set that keeps its order
        self._bulk: set[asyncio.Future[None]] = set()
        self._closed = False
        self._fault: str | None = None

    async def __aenter__(self) -> Self:
        """Return itself; connections open with the first publish."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Flush and close, also when the block failed."""
        await self.aclose()

    async def publish(self, event: Event, *, attributes: Mapping[str, str] | None = None) -> str:
        """Publish *event* to its topic and return its envelope id.

        Returns once SNS has taken it; the delivery to queues is SNS's. Publishing the same object
        again publishes a second event with a new id. Cancelled, it is withdrawn if its request has
        not started; otherwise it may or may not be published.

        Args:
            attributes: Further message attributes, up to nine, for other subscribers' filter policies.

        Raises:
            EventTooLarge: Before any I/O: it exceeds its topic's ``limit_bytes``.
            PublishError: SNS refused it, or could not be reached until the deadline.
            ConfigError: Its class declares no type.
        """
        outgoing = prepare(event, source=self.source, attributes=attributes)
        self._refuse_if_closed(outgoing)
        loop = asyncio.get_running_loop()
        waiting = _Waiting(outgoing, loop.create_future(), loop.time() + self._deadline_seconds)
        self._waiting[waiting] = None
        try:
            self._batcher(outgoing.topic).add(waiting)
            await waiting.future
        finally:
            del self._waiting[waiting]
        if waiting.failure is not None:
            raise PublishError([waiting.failure])
        return outgoing.event_id

    async def publish_many(
        self, events: Iterable[Event], *, attributes: Mapping[str, str] | None = None
    ) -> PublishReport:
        """Publish *events*, ten to a request, several requests at once, and report when all is done.

        The iterable is read as requests leave, so it may be long. An event that cannot be published
        does not stop the others; an exception of the iterable itself, or a class that declares no type,
        does, after what was read before has been sent. Cancelled, it abandons what has not been sent.

        Raises:
            PublishError: After every event has been tried: ``failures`` has those not published.
            ConfigError: An event's class declares no type.
        """
        failures: list[PublishFailure] = []
        requests = Requests(lambda chunk: self._deliver(chunk, self._deadline_seconds), failures, MAX_IN_FLIGHT)
        bulk = asyncio.get_running_loop().create_future()
        self._bulk.add(bulk)
        try:
            event_ids = await self._read(events, attributes, requests, failures)
            await requests.finish()
        except Exception:
            await requests.finish()  # what was read before the iterable, or a declaration, failed still goes out
            raise
        finally:
            requests.cancel()
            bulk.set_result(None)
            self._bulk.discard(bulk)
        if failures:
            raise PublishError(failures)
        return PublishReport(event_ids)

    async def _read(
        self,
        events: Iterable[Event],
        attributes: Mapping[str, str] | None,
        requests: Requests,
        failures: list[PublishFailure],
    ) -> list[str]:
        """Prepare each event and start each full request; return the ids of those on their way."""
        event_ids: list[str] = []
        chunks = TopicChunks()
        try:
            for event in events:
                try:
                    outgoing = prepare(event, source=self.source, attributes=attributes)
                    self._refuse_if_closed(outgoing)
                except PublishError as error:
                    failures.extend(error.failures)
                    continue
                event_ids.append(outgoing.event_id)
                chunk = chunks.add(outgoing)
                if chunk is not None:
                    await requests.start(chunk)
        finally:
            for chunk in chunks.take():
                await requests.start(chunk)
        return event_ids

    async def aclose(self, *, timeout_seconds: float | None = None) -> None:
        """Send what is being gathered, wait for it and for ``publish_many``, and release connections.

        A second call does nothing; a publish after it fails.

        Args:
            timeout_seconds: For how long it waits; by default the publisher's deadline.

        Raises:
            PublishError: Some of what was waiting could not be published, or not in time.
        """
        if self._closed:
            return
        self._closed = True
        waiting = list(self._waiting)
        drains = [asyncio.ensure_future(batcher.drain()) for batcher in self._batchers.values()]
        try:
            if drains or self._bulk:
                seconds = self._deadline_seconds if timeout_seconds is None else timeout_seconds
                await asyncio.wait([*drains, *self._bulk], timeout=seconds)
        finally:
            for pending in drains:
                pending.cancel()
            for one in waiting:
                one.settle(one.outgoing.failed(_CLOSED_TOO_SOON))
            if self._owns_transport:
                await self._transport.aclose()
        failures = [one.failure for one in waiting if one.failure is not None]
        if failures:
            raise PublishError(failures)

    def _batcher(self, topic: Topic) -> Batcher[_Waiting]:
        batcher = self._batchers.get(topic)
        if batcher is None:
            batcher = self._batchers[topic] = Batcher(
                self._send,
                linger_seconds=self._linger_seconds,
                chunker=Chunker(topic.limit_bytes, lambda waiting: waiting.outgoing.message.size_bytes),
                max_in_flight=MAX_IN_FLIGHT,
            )
        return batcher

    async def _send(self, batch: list[_Waiting]) -> None:
        wanted = [waiting for waiting in batch if not waiting.future.done()]
        if not wanted:
            return
        seconds = max(0.0, wanted[0].deadline - asyncio.get_running_loop().time())
        try:
            failures = await self._deliver([waiting.outgoing for waiting in wanted], seconds)
        except Exception as error:  # noqa: BLE001 - a bug must reach those who wait, not only a log
            for waiting in wanted:
                if not waiting.future.done():
                    waiting.future.set_exception(error)
            return
        by_id = {failure.event_id: failure for failure in failures}
        for waiting in wanted:
            waiting.settle(by_id.get(waiting.outgoing.event_id))

    async def _deliver(self, chunk: list[Outgoing], deadline_seconds: float) -> list[PublishFailure]:
        topic = chunk[0].topic

        async def call(entries: list[Outgoing]) -> list[Failure]:
            try:
                failed = await self._transport.publish(topic.name, [outgoing.message for outgoing in entries])
            except TransportError as error:
                self._note(error)
                raise
            self._note(None)
            return failed

        failed = await deliver(call, chunk, deadline_seconds=deadline_seconds)
        return [outgoing.failed(failure) for outgoing, failure in failed]

    def _note(self, error: TransportError | None) -> None:
        """Say once that events wait, and once that they go out again: a publish may take its whole deadline."""
        code = error.code if error is not None and error.retryable else None
        if code is not None and self._fault is None:
            log.warning("events cannot be published for now, trying for %g s: %s", self._deadline_seconds, error)
        elif error is None and self._fault is not None:
            log.info("events can be published again")
        self._fault = code

    def _refuse_if_closed(self, outgoing: Outgoing) -> None:
        if self._closed:
            detail = "the publisher is closed; publish inside of its `async with` block"
            raise PublishError([outgoing.failed(Failure(0, "PublisherClosed", detail, retryable=False))])
