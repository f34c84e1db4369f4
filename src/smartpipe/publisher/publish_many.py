"""The requests of one ``publish_many``: so many at once and no more, groups in order, and what failed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeAlias, TypeVar

from smartpipe.batching.batcher import Chunker
from smartpipe.errors import PublishError
from smartpipe.limits import MAX_BATCH_ENTRIES
from smartpipe.message import Failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Iterator
    from types import TracebackType

    from smartpipe.errors import PublishFailure
    from smartpipe.publisher.prepare import Destination, Outgoing, Publication

MAX_IN_FLIGHT = 16
"""Requests at once, of one ``publish_many`` or to one destination."""


class Ordered(Protocol):
    """What is requested: a Publication, or an event on its way."""

    @property
    def ordered_group(self) -> Hashable:
        """What it must stay in order with, or None."""

    def failed(self, failure: Failure) -> PublishFailure:
        """Say of it what the service said of its entry."""


T = TypeVar("T", bound=Ordered)
Deliver: TypeAlias = "Callable[[list[T]], Coroutine[Any, Any, list[tuple[T, PublishFailure]]]]"

STOPPED = Failure(
    0,
    "GroupStopped",
    "an event with the same key before it was not published, and this one would have overtaken it",
    retryable=True,
)


class Chunks:
    """Fills requests, each for one destination and within its limits."""

    def __init__(self) -> None:
        self._chunkers: dict[Destination, Chunker[Outgoing]] = {}

    def add(self, outgoing: Outgoing) -> list[Outgoing] | None:
        """Take *outgoing*; return its destination's chunk that had no room for it, if there was one."""
        chunker = self._chunkers.get(outgoing.destination)
        if chunker is None:
            destination = outgoing.destination
            chunker = self._chunkers[destination] = Chunker(
                destination.limit_bytes,
                lambda item: item.message.size_bytes,
                (lambda item: item.ordered_group) if destination.fifo else None,
            )
        return chunker.add(outgoing)

    def take(self) -> list[list[Outgoing]]:
        """Return what waits for each destination."""
        return [chunker.take() for chunker in self._chunkers.values() if chunker]


class StoppedGroups:
    """Which FIFO groups go on: one is stopped by its first event that is not published."""

    def __init__(self) -> None:
        self._refused: set[Hashable] = set()
        self._stopped: set[Hashable] = set()

    def refuse(self, item: Ordered) -> None:
        """Let nothing of its group follow what cannot even be sent; what was read before it still goes."""
        if item.ordered_group is not None:
            self._refused.add(item.ordered_group)

    def stop(self, item: Ordered) -> None:
        """Let nothing more of its group be published: what was sent of it has failed."""
        if item.ordered_group is not None:
            self._stopped.add(item.ordered_group)

    def admits(self, item: Ordered) -> bool:
        """Return whether what is read now may follow what was read of its group before."""
        if not self._refused and not self._stopped:
            return True
        group = item.ordered_group
        return group is None or (group not in self._refused and group not in self._stopped)

    def part(self, chunk: list[T]) -> tuple[list[T], list[tuple[T, PublishFailure]]]:
        """Return what may be published, and what may not be any more."""
        if not self._stopped:
            return chunk, []
        going = [item for item in chunk if item.ordered_group not in self._stopped]
        return going, [(item, item.failed(STOPPED)) for item in chunk if item.ordered_group in self._stopped]


class Requests(Generic[T]):
    """Starts a request for each chunk, at most *max_in_flight* at once, and no two that share a group.

    An async context manager: its end waits for all of them, also when the block failed; cancelled, it
    abandons those that are open.

    Args:
        failures: Where the failures of finished requests are added.
    """

    def __init__(self, deliver: Deliver[T], failures: list[PublishFailure], max_in_flight: int) -> None:
        self.groups = StoppedGroups()
        self._deliver = deliver
        self._failures = failures
        self._max_in_flight = max_in_flight
        self._tasks: dict[asyncio.Task[list[tuple[T, PublishFailure]]], set[Hashable]] = {}

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for what was started, unless cancelled."""
        try:
            if self._tasks and (error is None or isinstance(error, Exception)):
                await self._collect(asyncio.ALL_COMPLETED)
        finally:
            for task in self._tasks:
                task.cancel()

    async def start(self, chunk: list[T]) -> None:
        """Start a request, after waiting for room, and for the requests with the same groups."""
        groups = {item.ordered_group for item in chunk} - {None}
        while len(self._tasks) >= self._max_in_flight or (
            groups and any(groups & busy for busy in self._tasks.values())
        ):
            await self._collect(asyncio.FIRST_COMPLETED)
        going, stopped = self.groups.part(chunk)
        self._failures.extend(failure for _, failure in stopped)
        if going:
            self._tasks[asyncio.get_running_loop().create_task(self._deliver(going))] = groups

    async def _collect(self, when: str) -> None:
        done, _ = await asyncio.wait(self._tasks, return_when=when)
        for task in done:
            del self._tasks[task]
            for item, failure in task.result():
                self._failures.append(failure)
                self.groups.stop(item)


def read_chunks(
    publications: Iterable[Publication],
    prepare: Callable[[Publication], Outgoing],
    groups: StoppedGroups,
    event_ids: list[str],
    failures: list[PublishFailure],
) -> Iterator[list[Outgoing]]:
    """Prepare each event and yield each full chunk, at the end those that are not; both publishers read so.

    When the iterable itself fails, what was read before is yielded first.

    Args:
        event_ids: Where the ids of those yielded are added.
        failures: Where those are added that cannot be sent, or must not follow one of their group.
    """
    chunks = Chunks()
    try:
        for publication in publications:
            try:
                outgoing = prepare(publication)
            except PublishError as error:
                failures.extend(error.failures)
                groups.refuse(publication)
                continue
            if not groups.admits(outgoing):
                failures.append(outgoing.failed(STOPPED))
                continue
            event_ids.append(outgoing.event_id)
            chunk = chunks.add(outgoing)
            if chunk is not None:
                yield chunk
    except Exception:
        yield from chunks.take()
        raise
    yield from chunks.take()


async def publish_in_chunks(
    publications: Iterable[Publication],
    prepare: Callable[[Publication], Outgoing],
    deliver: Deliver[Outgoing],
    failures: list[PublishFailure],
) -> list[str]:
    """Start a request for each chunk; return the ids of those that were tried."""
    event_ids: list[str] = []
    async with Requests(deliver, failures, MAX_IN_FLIGHT) as requests:
        for chunk in read_chunks(publications, prepare, requests.groups, event_ids, failures):
            await requests.start(chunk)
    return event_ids


@dataclass(frozen=True, slots=True)
class _Numbered:
    publication: Publication
    number: int

    @property
    def ordered_group(self) -> Hashable:
        return self.publication.ordered_group

    def failed(self, failure: Failure) -> PublishFailure:
        return self.publication.failed(failure)


async def publish_each(
    publications: Iterable[Publication],
    publish: Callable[[Publication], Awaitable[str]],
    failures: list[PublishFailure],
) -> list[str]:
    """Publish event by event, for middleware to see each; return the ids of those published, in order."""
    event_ids: dict[int, str] = {}

    async def deliver(chunk: list[_Numbered]) -> list[tuple[_Numbered, PublishFailure]]:
        [one] = chunk
        try:
            event_ids[one.number] = await publish(one.publication)
        except PublishError as error:
            return [(one, failure) for failure in error.failures]
        except Exception as error:  # noqa: BLE001 - a middleware's own: of this event, not of the others
            return [(one, one.failed(Failure(0, type(error).__name__, str(error), retryable=False)))]
        return []

    async with Requests(deliver, failures, MAX_IN_FLIGHT * MAX_BATCH_ENTRIES) as requests:
        for number, publication in enumerate(publications):
            await requests.start([_Numbered(publication, number)])
    return [event_ids[number] for number in sorted(event_ids)]
