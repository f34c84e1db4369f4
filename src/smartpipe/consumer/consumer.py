"""The consumer of one queue: receive for free slots → process → settle; and the drain.

Only ``_process`` and the settler touch a message. What is received holds a lease until it is settled:
deleted, given back, or copied to the dead-letter queue and then deleted. It holds its slot until its
handlers have ended, or longer where settling cannot keep up. Of a FIFO queue each group has one task,
which takes its messages one after the other; of a standard queue each message has one.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from smartpipe.consumer.acknowledger import Acknowledger
from smartpipe.consumer.groups import Groups
from smartpipe.consumer.handlers import slots_for
from smartpipe.consumer.isolation import Isolation
from smartpipe.consumer.leases import Leases
from smartpipe.consumer.poller import Poller
from smartpipe.consumer.processor import NotBegun, Processed, Processor, Resources
from smartpipe.consumer.settle import Settler
from smartpipe.counters import Counters

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from smartpipe.consumer.groups import Chain
    from smartpipe.consumer.leases import Lease
    from smartpipe.delivery import Delivery
    from smartpipe.message import Message
    from smartpipe.service import Service
    from smartpipe.topics import Queue
    from smartpipe.transport import Transport

log = logging.getLogger("smartpipe.consumer")

CANCEL_SECONDS = 1.0
MAX_UNSETTLED = 200
"""With so many messages waiting to be settled, no slot becomes free: the queue keeps the rest better."""
TICKER_RESTART_SECONDS = 1.0

_Task: TypeAlias = asyncio.Task[None]


class Settled(NamedTuple):
    """How a delivery ended: what an observer of a consumer is told.

    Args:
        again_seconds: In how many seconds the message comes again; None when it is done with.
    """

    queue: str
    message: Message
    processed: Processed
    again_seconds: float | None


class Consumer:
    """Handles the messages of one queue of a service.

    Args:
        concurrency: How many messages are out at once, where the handlers ask for nothing else.
        poll_seconds: How long a poll waits, in whole seconds up to 20.
        observer: Told of each delivery that has been settled.
    """

    def __init__(
        self,
        service: Service,
        queue: Queue,
        transport: Transport,
        *,
        resources: Resources,
        concurrency: int,
        poll_seconds: int,
        observer: Callable[[Settled], None] | None = None,
    ) -> None:
        self.queue = queue
        self.counts = Counters()
        self._service = service
        self._transport = transport
        self._poll_seconds = poll_seconds
        self._observer = observer
        self._isolation = resources.isolation or Isolation()
        resources = resources._replace(isolation=self._isolation)
        self._processor = Processor(service, queue.name, resources, self.counts, on_overdue=self._overdue)
        self._visibility = Leases(
            queue.name,
            transport,
            visibility_timeout_seconds=queue.visibility_timeout_seconds,
            counts=self.counts,
        )
        self._acknowledger = Acknowledger(queue.name, transport, on_settled=self._settled, counts=self.counts)
        self._settler = Settler(service.name, queue, transport, acknowledger=self._acknowledger, counts=self.counts)
        self.poller = Poller(
            queue.name,
            self._receive,
            self._accept,
            slots=slots_for(service.handlers_on(queue.name), concurrency),
            gates=[*self._processor.gates, self._isolation],
        )
        self._isolation.join(lambda: len(self._tasks) + self.poller.open_polls, self.poller.wake)
        for circuit in self._processor.circuits:
            circuit.on_change = self.poller.wake
        resources.threads.capacity.on_room(self.poller.wake)
        self._groups = Groups(fifo=queue.fifo)
        self._tasks: dict[_Task, Chain] = {}
        self._not_ended: set[_Task] = set()
        self._ended = 0
        self._held_back: list[tuple[Lease, float]] = []
        self._ticker: _Task | None = None
        self._draining = False

    @property
    def in_flight(self) -> int:
        """How many messages are here: being handled, or waiting for their group."""
        return sum(map(len, self._tasks.values()))

    def start(self) -> None:
        """Begin to keep leases and to poll."""
        self._ticker = asyncio.get_running_loop().create_task(self._tick())
        self.poller.start()

    async def drain(self, *, handlers_until: float, flush_until: float, hard: asyncio.Event) -> None:
        """Stop taking messages and settle what is here, in this order. Times are the loop's.

        The open polls are awaited, and what they bring is given back; meanwhile handlers finish, their
        leases extended. At *handlers_until*, or when *hard* is set, the rest is cancelled and given
        back. Deletes are flushed last; what is not settled at *flush_until* is counted.
        """
        loop = asyncio.get_running_loop()
        self._draining = True
        self.poller.stop()
        self._isolation.stop()
        self._processor.stop()
        await self._wait_for_handlers(handlers_until, hard)
        for task in (*self._tasks, *self._not_ended):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CANCEL_SECONDS)
        for lease in [lease for leases in self._tasks.values() for lease in leases]:
            self._cancelled(lease, "does not end though cancelled")
        if self.poller.open_polls:
            log.warning("queue %s: a poll was still open; what it brings returns after its timeout", self.queue.name)
        self._release_held_back()
        try:
            async with asyncio.timeout(max(CANCEL_SECONDS, flush_until - loop.time())):
                await self._acknowledger.drain()
        except TimeoutError:
            self.counts.not_deleted += self._acknowledger.unsettled
            log.error(  # noqa: TRY400 - a timeout's traceback says nothing
                "queue %s: %d messages could not be settled in time and will be delivered again",
                self.queue.name,
                self._acknowledger.unsettled,
            )
        self._processor.close()
        if self._ticker is not None:
            self._ticker.cancel()

    async def _wait_for_handlers(self, until: float, hard: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        waits = {loop.create_task(self._finished()), loop.create_task(hard.wait())}
        try:
            await asyncio.wait(waits, timeout=max(0.0, until - loop.time()), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _finished(self) -> None:
        await self.poller.closed()
        self._release_held_back()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _give_back(self, lease: Lease, seconds: float = 0) -> None:
        """Make it visible in *seconds*; in a drain when no poll of ours would only take it again, and strand it."""
        self._held_back.append((lease, seconds))
        if not self._draining or not self.poller.open_polls:
            self._release_held_back()

    def _release_held_back(self) -> None:
        closed_in = math.ceil(self.poller.seconds_until_closed(self._poll_seconds)) if self._draining else 0
        for lease, seconds in self._held_back:
            self._acknowledger.release(lease, max(seconds, closed_in))
        self._held_back.clear()

    async def _receive(self, max_messages: int) -> list[Message]:
        return await self._transport.receive(
            self.queue.name,
            max_messages=max_messages,
            wait_seconds=self._poll_seconds,
            visibility_timeout_seconds=self.queue.visibility_timeout_seconds,
        )

    def _accept(self, messages: Sequence[Message]) -> None:
        self.counts.received += len(messages)
        for lease in self._visibility.hold(messages):
            chain = self._groups.chain_for(lease)
            if chain is not None:
                self._run(chain, self._process_in_turn if self.queue.fifo else self._process_of(lease))

    def _run(self, chain: Chain, process: Callable[[Lease], Awaitable[float | None]]) -> None:
        task = asyncio.get_running_loop().create_task(
            self._groups.run(chain, process, self._give_back_unbegun, self._ended_one)
        )
        self._tasks[task] = chain
        task.add_done_callback(self._done)

    def _overdue(self, task: _Task, delivery: Delivery) -> None:
        """Go on in a new task, first with the message whose handler does not end; the old task is left to itself."""
        self._not_ended.add(task)
        chain = self._groups.take_over(self._tasks.pop(task))
        late, processed, started = chain[0], self._processor.timed_out(delivery, chain[0]), time.perf_counter()

        async def process(lease: Lease) -> float | None:
            if lease is not late:
                return await self._process_in_turn(lease)
            try:
                return await self._settle(lease, processed, started)
            except Exception as error:  # noqa: BLE001 - an internal error; nothing is lost
                return self._settler.fault(lease, error)

        self._run(chain, process)

    def _done(self, task: _Task) -> None:
        self._not_ended.discard(task)
        chain = self._tasks.pop(task, [])
        while chain:  # cancelled before its first step, so that it could not give back its messages itself
            self._cancelled(chain[0], "cancelled before it began, and given back")
            self._ended_one(chain)

    def _ended_one(self, chain: Chain) -> None:
        self._groups.ended(chain)
        self._ended += 1
        self._free_slots()

    def _settled(self, leases: Sequence[Lease]) -> None:
        self._visibility.drop(leases)
        if self._ended:
            self._free_slots()

    def _free_slots(self) -> None:
        while self._ended and self._acknowledger.unsettled < MAX_UNSETTLED:
            self._ended -= 1
            self.poller.free()

    def _give_back_unbegun(self, lease: Lease, seconds: float) -> None:
        self.counts.released += 1
        self._give_back(lease, seconds)

    async def _process(self, lease: Lease) -> float | None:
        """Process and settle; return in how many seconds the message comes again, or None when it is done with."""
        try:
            if self._draining:  # received by the last polls, or just before the stop
                raise NotBegun  # noqa: TRY301 - given back in the one way
            started = time.perf_counter()
            processed = await self._processor.process(lease.message, lease)
            return None if lease.detached else await self._settle(lease, processed, started)
        except NotBegun:
            self._give_back_unbegun(lease, 0)
            return 0
        except asyncio.CancelledError:
            if not lease.detached:
                self._cancelled(lease, "cancelled and given back")
            return 0
        except Exception as error:  # noqa: BLE001 - a fault of ours; nothing is lost
            return 0 if lease.detached else self._settler.fault(lease, error)

    def _process_of(self, lease: Lease) -> Callable[[Lease], Awaitable[float | None]]:
        return self._process_alone if self._processor.is_suspect(lease) else self._process

    async def _process_in_turn(self, lease: Lease) -> float | None:
        return await self._process_of(lease)(lease)

    async def _process_alone(self, lease: Lease) -> float | None:
        """Do the same when nothing else is being handled: the message may have killed its process before."""
        fields = self._settler.fields(lease.message)
        log.warning("Delivered more often than failures explain, so it is handled last and alone", extra=fields)
        try:
            async with self._isolation.alone(lease):
                return await self._process(lease)
        except asyncio.CancelledError:  # before its turn
            self._cancelled(lease, "cancelled and given back")
            return 0

    async def _settle(self, lease: Lease, processed: Processed, started: float) -> float | None:
        again_seconds = await self._settler.settle(lease, processed, time.perf_counter() - started)
        if self._observer is not None:
            self._observer(Settled(self.queue.name, lease.message, processed, again_seconds))
        return again_seconds

    def _cancelled(self, lease: Lease, what: str) -> None:
        self.counts.cancelled += 1
        log.warning(what, extra=self._settler.fields(lease.message, handler=lease.handler))
        self._give_back(lease)

    async def _tick(self) -> None:
        """Keep the ticker going: without heartbeats every long handler would run twice."""
        while True:
            try:
                await self._visibility.run()
            except Exception:
                log.exception("queue %s: the heartbeat failed and starts again", self.queue.name)
                await asyncio.sleep(TICKER_RESTART_SECONDS)
