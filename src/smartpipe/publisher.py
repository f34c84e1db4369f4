"""The asyncio publisher: typed events in, PublishBatch requests out."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from smartpipe.attempts import deliver
from smartpipe.batcher import Batcher
from smartpipe.errors import ConfigError, PublishError, PublishFailure
from smartpipe.message import Failure
from smartpipe.outgoing import Chunker, Outgoing, PublishReport, prepare
from smartpipe.transport import open_transport

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping
    from types import TracebackType

    from smartpipe.events import Event
    from smartpipe.topology.model import Topic
    from smartpipe.transport import Transport

MAX_IN_FLIGHT = 16


class _Waiting:
    """A single publish: the message, and who waits for its fate."""

    __slots__ = ("future", "outgoing")

    def __init__(self, outgoing: Outgoing, future: asyncio.Future[PublishFailure | None]) -> None:
        self.outgoing = outgoing
        self.future = future


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
        self._closed = False

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
        waiting = _Waiting(outgoing, asyncio.get_running_loop().create_future())
        self._waiting[waiting] = None
        try:
            self._batcher(outgoing.topic).add(waiting)
            failure = await waiting.future
        finally:
            del self._waiting[waiting]
        if failure is not None:
            raise PublishError([failure])
        return outgoing.event_id

    async def publish_many(
        self, events: Iterable[Event], *, attributes: Mapping[str, str] | None = None
    ) -> PublishReport:
        """Publish *events*, ten to a request, several requests at once, and report when all is done.

        The iterable is read as requests leave, so it may be long. One event's failure does not stop
        the others. Cancelled, it abandons what has not been sent.

        Raises:
            PublishError: After every event has been tried: ``failures`` has those not published.
        """
        event_ids: list[str] = []
        failures: list[PublishFailure] = []
        chunkers: dict[Topic, Chunker[Outgoing]] = {}
        requests = _Requests(self._deliver, failures)
        try:
            for event in events:
                try:
                    outgoing = prepare(event, source=self.source, attributes=attributes)
                    self._refuse_if_closed(outgoing)
                except PublishError as error:
                    failures.extend(error.failures)
                    continue
                event_ids.append(outgoing.event_id)
                chunker = chunkers.get(outgoing.topic)
                if chunker is None:
                    chunker = chunkers[outgoing.topic] = Outgoing.chunker(outgoing.topic)
                chunk = chunker.add(outgoing)
                if chunk is not None:
                    await requests.start(chunk)
            for chunker in chunkers.values():
                await requests.start(chunker.take())
            await requests.finish()
        finally:
            requests.cancel()
        if failures:
            raise PublishError(failures)
        return PublishReport(event_ids)

    async def aclose(self) -> None:
        """Send what is being gathered, wait for it (at most the deadline), and release connections.

        A second call does nothing; a publish after it fails.

        Raises:
            PublishError: Some of what was waiting could not be published.
        """
        if self._closed:
            return
        self._closed = True
        waiting = list(self._waiting)
        try:
            await asyncio.gather(*(batcher.drain() for batcher in self._batchers.values()))
        finally:
            if self._owns_transport:
                await self._transport.aclose()
        left = [w.future.result() for w in waiting if w.future.done() and not w.future.cancelled()]
        failures = [failure for failure in left if failure is not None]
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
        wanted = [waiting for waiting in batch if not waiting.future.cancelled()]
        if not wanted:
            return
        try:
            failures = {f.event_id: f for f in await self._deliver([waiting.outgoing for waiting in wanted])}
        except Exception as error:  # noqa: BLE001 - a bug must reach those who wait, not only a log
            for waiting in wanted:
                if not waiting.future.done():
                    waiting.future.set_exception(error)
            return
        for waiting in wanted:
            if not waiting.future.done():
                waiting.future.set_result(failures.get(waiting.outgoing.event_id))

    async def _deliver(self, chunk: list[Outgoing]) -> list[PublishFailure]:
        topic = chunk[0].topic

        async def call(entries: list[Outgoing]) -> list[Failure]:
            return await self._transport.publish(topic.name, [outgoing.message for outgoing in entries])

        failed = await deliver(call, chunk, deadline_seconds=self._deadline_seconds)
        return [outgoing.failed(failure) for outgoing, failure in failed]

    def _refuse_if_closed(self, outgoing: Outgoing) -> None:
        if self._closed:
            detail = "the publisher is closed; publish inside of its `async with` block"
            raise PublishError([outgoing.failed(Failure(0, "PublisherClosed", detail, retryable=False))])


class _Requests:
    """The requests of one publish_many: at most so many at once; the first fault of ours ends them."""

    def __init__(
        self,
        deliver_chunk: Callable[[list[Outgoing]], Coroutine[Any, Any, list[PublishFailure]]],
        failures: list[PublishFailure],
    ) -> None:
        self._deliver = deliver_chunk
        self._failures = failures
        self._tasks: set[asyncio.Task[list[PublishFailure]]] = set()

    async def start(self, chunk: list[Outgoing]) -> None:
        while len(self._tasks) >= MAX_IN_FLIGHT:
            await self._collect(asyncio.FIRST_COMPLETED)
        self._tasks.add(asyncio.get_running_loop().create_task(self._deliver(chunk)))

    async def finish(self) -> None:
        if self._tasks:
            await self._collect(asyncio.ALL_COMPLETED)

    def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _collect(self, when: str) -> None:
        done, self._tasks = await asyncio.wait(self._tasks, return_when=when)
        for task in done:
            self._failures.extend(task.result())
