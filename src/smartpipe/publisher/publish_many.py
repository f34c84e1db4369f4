"""The requests of one ``publish_many``: limits their number, keeps groups in order, and collects failures."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeAlias, TypeVar

from smartpipe.batching.batcher import Chunker
from smartpipe.errors import PublishError
from smartpipe.limits import MAX_BATCH_ENTRIES
from smartpipe.message import Failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Iterator, Sequence
    from types import TracebackType

    from smartpipe.errors import PublishFailure
    from smartpipe.publisher.prepare import Destination, PreparedEvent, Publication

MAX_IN_FLIGHT = 16
"""The maximum number of concurrent requests, of one ``publish_many`` or to one destination."""


class Ordered(Protocol):
    """An item of a request: a Publication, a PreparedEvent, or a row of the outbox."""

    @property
    def ordered_group(self) -> Hashable:
        """The FIFO group within which the item must keep its order, or None."""

    def make_failure(self, failure: Failure) -> PublishFailure:
        """Return the failure of this item, from the service's failure of its entry."""


T = TypeVar("T", bound=Ordered)
SendChunk: TypeAlias = "Callable[[list[T]], Coroutine[Any, Any, list[tuple[T, PublishFailure]]]]"

STOPPED = Failure(
    0,
    "GroupStopped",
    "an earlier event with the same key was not published, and this one would have overtaken it",
    retryable=True,
)


class Chunks:
    """Fills requests, each for one destination and within its limits."""

    def __init__(self) -> None:
        self._chunkers: dict[Destination, Chunker[PreparedEvent]] = {}

    def add(self, prepared: PreparedEvent) -> list[PreparedEvent] | None:
        """Add *prepared*; return its destination's chunk that it did not fit into, if there was one."""
        chunker = self._chunkers.get(prepared.destination)
        if chunker is None:
            destination = prepared.destination
            chunker = self._chunkers[destination] = Chunker(
                destination.limit_bytes,
                lambda item: item.message.size_bytes,
                (lambda item: item.ordered_group) if destination.fifo else None,
            )
        return chunker.add(prepared)

    def take(self) -> list[list[PreparedEvent]]:
        """Return the pending chunk of each destination."""
        return [chunker.take() for chunker in self._chunkers.values() if chunker]


class StoppedGroups:
    """The FIFO groups that are stopped. A group is stopped by its first event that is not published."""

    def __init__(self) -> None:
        self._rejected: set[Hashable] = set()
        self._stopped: set[Hashable] = set()

    def reject(self, item: Ordered) -> None:
        """Stop the group for events read after *item*, which cannot be sent. Events read before are still sent."""
        if item.ordered_group is not None:
            self._rejected.add(item.ordered_group)

    def stop(self, item: Ordered) -> None:
        """Stop the group for all events that are not sent yet, because *item* was sent and has failed."""
        if item.ordered_group is not None:
            self._stopped.add(item.ordered_group)

    def admits(self, item: Ordered) -> bool:
        """Return whether *item*, which is read now, may be sent after the events of its group before it."""
        if not self._rejected and not self._stopped:
            return True
        group = item.ordered_group
        return group is None or (group not in self._rejected and group not in self._stopped)

    def split_stopped(self, chunk: list[T]) -> tuple[list[T], list[tuple[T, PublishFailure]]]:
        """Return the items that may be sent, and the others with their failures."""
        if not self._stopped:
            return chunk, []
        going = [item for item in chunk if item.ordered_group not in self._stopped]
        return going, [(item, item.make_failure(STOPPED)) for item in chunk if item.ordered_group in self._stopped]


class Requests(Generic[T]):
    """Starts a request for each chunk: at most *max_in_flight* concurrently, and never two that share a group.

    An async context manager. Its exit waits for all requests, even if the block failed. If cancelled, it abandons the
    open ones.

    Args:
        failures: The list to which the failures of finished requests are added.
    """

    def __init__(self, send_chunk: SendChunk[T], failures: list[PublishFailure], max_in_flight: int) -> None:
        self.groups = StoppedGroups()
        self._send_chunk = send_chunk
        self._failures = failures
        self._max_in_flight = max_in_flight
        self._tasks: dict[asyncio.Task[list[tuple[T, PublishFailure]]], set[Hashable]] = {}

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for the started requests, unless the block was cancelled."""
        try:
            if self._tasks and (error is None or isinstance(error, Exception)):
                await self._collect(asyncio.ALL_COMPLETED)
        finally:
            for task in self._tasks:
                task.cancel()

    async def start(self, chunk: list[T]) -> None:
        """Start a request, when the number of open ones allows it and none of them has the same groups."""
        groups = {item.ordered_group for item in chunk} - {None}
        while len(self._tasks) >= self._max_in_flight or (
            groups and any(groups & busy for busy in self._tasks.values())
        ):
            await self._collect(asyncio.FIRST_COMPLETED)
        # Only now: a request that this one waited for may have stopped a group of the chunk.
        going, stopped = self.groups.split_stopped(chunk)
        self._failures.extend(failure for _, failure in stopped)
        if going:
            self._tasks[asyncio.get_running_loop().create_task(self._send_chunk(going))] = groups

    async def _collect(self, when: str) -> None:
        done, _ = await asyncio.wait(self._tasks, return_when=when)
        for task in done:
            del self._tasks[task]
            for item, failure in task.result():
                self._failures.append(failure)
                self.groups.stop(item)


def read_chunks(
    publications: Iterable[Publication],
    prepare: Callable[[Publication], PreparedEvent],
    groups: StoppedGroups,
    event_ids: list[str],
    failures: list[PublishFailure],
) -> Iterator[list[PreparedEvent]]:
    """Prepare each event and yield each full chunk, and finally the incomplete ones. Both publishers use it.

    If the iterable itself fails, yield the events read before it first.

    Args:
        event_ids: The list to which the ids of the yielded events are added.
        failures: The list to which events are added that cannot be sent, or must not follow one of their group.
    """
    chunks = Chunks()
    try:
        for publication in publications:
            try:
                prepared = prepare(publication)
            except PublishError as error:
                failures.extend(error.failures)
                groups.reject(publication)
                continue
            if not groups.admits(prepared):
                failures.append(prepared.make_failure(STOPPED))
                continue
            event_ids.append(prepared.event_id)
            chunk = chunks.add(prepared)
            if chunk is not None:
                yield chunk
    except Exception:
        yield from chunks.take()
        raise
    yield from chunks.take()


def add_failures(error: Exception, failures: Sequence[PublishFailure]) -> None:
    """Add a note about *failures* to the error that ends ``publish_many``. They would be lost with it.

    An error that refuses the note, such as a frozen dataclass, stays as it is, because the caller must get this error.
    """
    if failures:
        with suppress(Exception):
            error.add_note(f"publish_many: of the events read before, {PublishError(failures)}")


async def publish_in_chunks(
    publications: Iterable[Publication],
    prepare: Callable[[Publication], PreparedEvent],
    send_chunk: SendChunk[PreparedEvent],
    failures: list[PublishFailure],
) -> list[str]:
    """Start a request for each chunk; return the ids of the events that were sent, including failed ones."""
    event_ids: list[str] = []
    async with Requests(send_chunk, failures, MAX_IN_FLIGHT) as requests:
        for chunk in read_chunks(publications, prepare, requests.groups, event_ids, failures):
            await requests.start(chunk)
    return event_ids


@dataclass(frozen=True, slots=True)
class _NumberedEvent:
    publication: Publication
    number: int

    @property
    def ordered_group(self) -> Hashable:
        return self.publication.ordered_group

    def make_failure(self, failure: Failure) -> PublishFailure:
        return self.publication.make_failure(failure)


async def publish_each(
    publications: Iterable[Publication],
    publish: Callable[[Publication], Awaitable[str]],
    failures: list[PublishFailure],
) -> list[str]:
    """Publish the events one by one, so that middleware sees each; return the ids of the published ones, in order."""
    event_ids: dict[int, str] = {}

    async def send_chunk(chunk: list[_NumberedEvent]) -> list[tuple[_NumberedEvent, PublishFailure]]:
        [one] = chunk
        try:
            event_ids[one.number] = await publish(one.publication)
        except PublishError as error:
            return [(one, failure) for failure in error.failures]
        except Exception as error:  # noqa: BLE001 - raised by a middleware, for this event only
            return [(one, one.make_failure(Failure(0, type(error).__name__, str(error), retryable=False)))]
        return []

    async with Requests(send_chunk, failures, MAX_IN_FLIGHT * MAX_BATCH_ENTRIES) as requests:
        for number, publication in enumerate(publications):
            await requests.start([_NumberedEvent(publication, number)])
    return [event_ids[number] for number in sorted(event_ids)]
