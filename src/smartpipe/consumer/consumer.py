"""The consumer of one queue: receive → process → settle; and the drain.

``Consumer.run`` receives as many messages as there are free slots. Each message, or each group of a FIFO queue, has a
task, in which ``GroupRunner`` processes and settles it. ``Consumer.drain`` ends all of it in order.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from smartpipe.consumer.decide import Release
from smartpipe.consumer.handlers import slots_for
from smartpipe.consumer.history import DeliveryHistory
from smartpipe.consumer.isolation import Isolation
from smartpipe.consumer.leases import OVERDUE, SETTLING, Leases
from smartpipe.consumer.processor import SKIPPED, Processed, Processor, Resources
from smartpipe.consumer.receive_health import ReceiveHealth
from smartpipe.consumer.settle import FAULT_RETRY_SECONDS, Acknowledger, Settler
from smartpipe.consumer.slots import Slots
from smartpipe.counters import Counters

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from smartpipe.consumer.handler_limits import HandlerLimit
    from smartpipe.consumer.leases import Lease
    from smartpipe.delivery import Delivery
    from smartpipe.message import Message
    from smartpipe.service import Service
    from smartpipe.topics import Queue
    from smartpipe.transport import Transport

log = logging.getLogger("smartpipe.consumer")

CANCEL_SECONDS = 1.0
TICKER_RESTART_SECONDS = 1.0
CANCELLED = Processed(Release(0, "cancelled"))

GroupQueue: TypeAlias = "list[Lease]"
"""Messages to be handled one after the other, of which the first is being handled; a deque takes half a kilobyte."""
_Task: TypeAlias = asyncio.Task[None]


class Settled(NamedTuple):
    """How a delivery ended, for an observer of a consumer.

    Args:
        again_seconds: In how many seconds the message comes again; None if it does not.
    """

    queue: str
    message: Message
    processed: Processed
    again_seconds: float | None


class Consumer:
    """Handles the messages of one queue of a service.

    Args:
        concurrency: The maximum number of messages held at a time, where the handlers ask for nothing else.
        poll_seconds: How long a receive call waits for messages, in whole seconds up to 20.
        observer: Called with each delivery that has been settled.
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
        self._transport = transport
        self._poll_seconds = poll_seconds
        self._loop = asyncio.get_running_loop()
        self._isolation = resources.isolation or Isolation()
        resources = resources._replace(isolation=self._isolation)
        self._processor = Processor(service, queue.name, resources, self.counts)
        self._slots = Slots(
            slots_for(service.handlers_on(queue.name), concurrency), [*self._processor.gates, self._isolation]
        )
        self._leases = Leases(
            queue.name,
            transport,
            visibility_timeout_seconds=queue.visibility_timeout_seconds,
            counters=self.counts,
        )
        self._acknowledger = Acknowledger(
            queue.name, transport, leases=self._leases, slots=self._slots, counters=self.counts
        )
        settler = Settler(service.name, queue, transport, acknowledger=self._acknowledger, counters=self.counts)
        self._runner = GroupRunner(queue, self._processor, settler, slots=self._slots, isolation=self._isolation)
        self._runner.observer = observer
        self._isolation.join(self)
        self._health = ReceiveHealth(queue.name)
        self._calls: dict[_Task, float] = {}  # open receive calls, with the time at which each began
        self._stopping = asyncio.Event()
        self._running: _Task | None = None
        self._ticker: _Task | None = None

    def start(self) -> None:
        """Begin to receive messages and to extend their leases."""
        self._ticker = self._loop.create_task(self._tick())
        self._running = self._loop.create_task(self.run())

    async def run(self) -> None:
        """Receive messages and have them handled, until ``drain`` is called."""
        while wanted := await self._slots.acquire():
            if not self._calls and not self._health.failing:
                self._health.succeeded_at = self._loop.time()  # no call was due while every slot was taken
            call = self._loop.create_task(self._receive(wanted))
            self._calls[call] = self._loop.time()
            call.add_done_callback(self._end_call)

    async def _receive(self, wanted: int) -> None:
        """Make one receive call, for *wanted* messages at most, and start a task for each message or FIFO group.

        It is never cancelled: SQS may have handed out messages already, which would stay invisible until their timeout.
        """
        try:
            messages = await self._transport.receive(
                self.queue.name,
                max_messages=wanted,
                wait_seconds=self._poll_seconds,
                visibility_timeout_seconds=self.queue.visibility_timeout_seconds,
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, receiving goes on
            self._slots.return_unused(wanted, 0)
            await self._health.back_off(error, self._stopping)
            return
        self._slots.return_unused(wanted, len(messages))
        self._health.succeeded_at = self._loop.time()
        if self._health.failing:
            self._health.recover()
        if messages:
            self._accept(messages)

    def _accept(self, messages: Sequence[Message]) -> None:
        self.counts.received += len(messages)
        for lease in self._leases.hold(messages):
            self._runner.start(lease)

    def _end_call(self, call: _Task) -> None:
        del self._calls[call]
        self._slots.end_call()

    async def drain(self, *, handlers_until: float, flush_until: float, hard: asyncio.Event) -> None:
        """Stop receiving, and settle every message that is here. Times are the event loop's.

        Open receive calls are awaited, and the messages that they bring are returned to the queue. Meanwhile handlers
        finish, and their leases are extended. At *handlers_until*, or when *hard* is set, the other handlers are
        cancelled and their messages returned. Deletes are sent last. Messages that are not settled at *flush_until* are
        counted, and will be delivered again.
        """
        self._stopping.set()
        self._slots.close()
        self._acknowledger.start_drain()
        self._runner.stopping = True
        self._isolation.stop()
        self._processor.stop()
        await self._wait_for_handlers(handlers_until, hard)
        await self._runner.cancel(CANCEL_SECONDS)
        if self._calls:
            log.warning(
                "queue %s: A receive call was still open; its messages will reappear after the visibility timeout",
                self.queue.name,
            )
        self._release_held()
        await self._flush(flush_until)
        self._processor.close()
        if self._ticker is not None:
            self._ticker.cancel()

    async def _wait_for_handlers(self, until: float, hard: asyncio.Event) -> None:
        waits = {self._loop.create_task(self._finish()), self._loop.create_task(hard.wait())}
        try:
            await asyncio.wait(waits, timeout=max(0.0, until - self._loop.time()), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _finish(self) -> None:
        while self._calls:
            await asyncio.wait(self._calls)
        self._release_held()
        while self._runner.tasks:
            await asyncio.wait(self._runner.tasks)

    def _release_held(self) -> None:
        self._acknowledger.release_held(math.ceil(self.seconds_until_closed()))

    async def _flush(self, until: float) -> None:
        try:
            async with asyncio.timeout(max(CANCEL_SECONDS, until - self._loop.time())):
                await self._acknowledger.drain()
        except TimeoutError:
            self.counts.not_deleted += self._slots.unsettled
            log.error(  # noqa: TRY400 - a timeout's traceback says nothing
                "queue %s: %d messages could not be settled in time and will be delivered again",
                self.queue.name,
                self._slots.unsettled,
            )

    async def _tick(self) -> None:
        """Keep the ticker going: without it, every message of a long handler would be delivered twice."""
        while True:
            try:
                await self._leases.run()
            except Exception:
                log.exception("queue %s: extending visibility timeouts failed and starts again", self.queue.name)
                await asyncio.sleep(TICKER_RESTART_SECONDS)

    def pause(self) -> None:
        """Make no receive call until ``resume``; open ones still bring messages. A second call does nothing."""
        self._slots.pause()

    def resume(self) -> None:
        """Make receive calls again."""
        self._slots.resume()

    @property
    def in_flight(self) -> int:
        """The number of messages that are being handled, or wait for their group."""
        return sum(map(len, self._runner.tasks.values()))

    @property
    def open_calls(self) -> int:
        """The number of receive calls that wait for a response, or for their next attempt."""
        return len(self._calls)

    @property
    def open_work(self) -> int:
        """The number of groups that are being handled, and of receive calls that may bring more."""
        return len(self._runner.tasks) + len(self._calls)

    @property
    def failing(self) -> bool:
        """Whether the last receive call failed."""
        return self._health.failing

    def seconds_since_success(self) -> float:
        """Return how long ago a receive call succeeded; 0 while none is open, because then every slot is taken."""
        if self._health.succeeded_at is None or not self._calls:
            return 0.0
        return self._loop.time() - self._health.succeeded_at

    def seconds_until_closed(self) -> float:
        """Return for how long SQS may still hand messages to an open receive call."""
        if not self._calls:
            return 0.0
        return max(0.0, max(self._calls.values()) + self._poll_seconds - self._loop.time())


class GroupRunner:
    """Processes and settles messages: those of a FIFO group one after the other, all others concurrently.

    A message of a standard queue is a group of its own. Its group id, if it has one, names a tenant there and orders
    nothing.

    Args:
        slots: Where each message that was handled frees its slot.
        isolation: Where messages that may have killed their process take turns; None: the caller arranges that.
        limit: The maximum number of messages being processed; None: the caller starts no more than that.
    """

    def __init__(
        self,
        queue: Queue,
        processor: Processor,
        settler: Settler,
        *,
        slots: Slots | None = None,
        isolation: Isolation | None = None,
        limit: HandlerLimit | None = None,
    ) -> None:
        self.queue = queue
        self.processor = processor
        self.settler = settler
        self.tasks: dict[_Task, GroupQueue] = {}
        self.overdue_tasks: set[_Task] = set()
        self.stopping = False
        self.observer: Callable[[Settled], None] | None = None
        self.takeover = asyncio.Event()
        self._slots = slots
        self._isolation = isolation
        self._limit = limit
        self._groups: dict[str, GroupQueue] = {}
        self._history = DeliveryHistory()
        self._suspect_after = processor.thresholds.suspect
        processor.on_overdue = self._take_over

    def start(self, lease: Lease) -> None:
        """Start a task for a received message, or put it behind the others of its FIFO group."""
        group = self.enqueue(lease)
        if group is not None:
            self.start_group(group)

    def enqueue(self, lease: Lease) -> GroupQueue | None:
        """Return the group that *lease* begins, or None if it has joined one that has a task."""
        if self._history.returned:
            self._history.recall(lease)
        group_id = lease.message.group_id
        if not self.queue.fifo or group_id is None:
            return [lease]
        group = self._groups.get(group_id)
        if group is not None:  # SQS hands out no more messages of a group in flight, except where a lease was lost
            group.append(lease)
            return None
        group = self._groups[group_id] = [lease]
        return group

    def is_suspect(self, lease: Lease) -> bool:
        """Return whether more deliveries than failures explain ended without a result: it may have killed a process."""
        return lease.message.receive_count - lease.returned > self._suspect_after

    def start_group(self, group: GroupQueue, overdue: Processed | None = None) -> None:
        """Start a task for *group*; *overdue* is the result of its first message, if that has one already."""
        self._add_task(self._run_group(group, overdue), group)

    def _add_task(self, coroutine: Coroutine[Any, Any, None], group: GroupQueue) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self.tasks[task] = group
        task.add_done_callback(self._end_task)

    async def _run_group(self, group: GroupQueue, overdue: Processed | None) -> None:
        """Handle the messages of a group one after the other, until one of them comes again.

        The messages behind that one must not overtake it: they are returned, to be received together with it. No
        message of a FIFO group begins after its lease was lost, because another worker may have the group by then.
        """
        again_seconds: float | None = None
        while group and again_seconds is None and not (self.queue.fifo and group[0].lost):
            lease = group[0]
            if self._isolation is not None and overdue is None and self.is_suspect(lease):
                again_seconds = await self._handle_alone(lease, self._isolation)
            else:
                again_seconds = await self._handle(lease, overdue)
            overdue = None
            if not group:  # another task has taken the group over
                return
            if again_seconds is not None:
                self._history.record_return(lease)
            elif self._history.returned:
                self._history.forget(lease)
            self._end_message(group)
        while group:
            self._history.record_skip(group[0])
            await self.settler.settle(group[0], Processed(Release(again_seconds or 0, "skipped")), 0.0)
            self._end_message(group)

    async def _handle(self, lease: Lease, overdue: Processed | None = None) -> float | None:
        """Process and settle a message; return in how many seconds it comes again, or None if it does not."""
        # If its handler overruns its time, another task settles the message, and this one must not.
        settled_elsewhere = OVERDUE if overdue is None else SETTLING
        started = time.perf_counter()
        try:
            processed = overdue or await self._process(lease)
            if lease.state < settled_elsewhere:
                return await self._settle(lease, processed, started)
        except asyncio.CancelledError:
            processed = CANCELLED
        except Exception as error:  # noqa: BLE001 - a fault of ours; the message must not be lost
            processed = Processed(Release(FAULT_RETRY_SECONDS, "internal-error", error))
        else:
            return 0
        return await self._settle(lease, processed, started) if lease.state < settled_elsewhere else 0

    async def _process(self, lease: Lease) -> Processed:
        if self.stopping:  # received by the last calls, or just before the stop
            return SKIPPED
        if self._limit is None:
            return await self.processor.process(lease.message, lease)
        await self._limit.acquire(lease, may_leave=False)
        try:
            return await self.processor.process(lease.message, lease)
        finally:
            self._limit.release(lease)

    async def _handle_alone(self, lease: Lease, isolation: Isolation) -> float | None:
        """Do the same while no other message is being handled: this one may have killed its process before."""
        log.warning(
            "Delivered more often than failures explain: it will be handled last and alone",
            extra=self.settler.fields(lease.message),
        )
        try:
            async with isolation.alone(lease):
                return await self._handle(lease)
        except asyncio.CancelledError:  # before its turn
            return await self._settle(lease, CANCELLED, time.perf_counter())

    async def _settle(self, lease: Lease, processed: Processed, started: float) -> float | None:
        again_seconds = await self.settler.settle(lease, processed, time.perf_counter() - started)
        if self.observer is not None and not isinstance(processed.outcome, Release):
            self.observer(Settled(self.queue.name, lease.message, processed, again_seconds))
        return again_seconds

    def _end_message(self, group: GroupQueue) -> None:
        """Take the first message from its group, and free its slot."""
        lease = group.pop(0)
        if self.queue.fifo and not group and lease.message.group_id is not None:
            self._groups.pop(lease.message.group_id, None)
        if self._slots is not None:
            self._slots.release()

    def _take_over(self, task: _Task, delivery: Delivery) -> None:
        """Go on in a new task, first with the message whose handler does not end, and leave the old task alone."""
        if task not in self.tasks:
            return  # on Lambda, of an earlier invocation, whose messages have been returned
        self.overdue_tasks.add(task)
        old = self.tasks.pop(task)
        group = old[:]
        old.clear()  # which ends the loop of the old task
        lease = group[0]
        if self.queue.fifo and lease.message.group_id is not None:
            self._groups[lease.message.group_id] = group
        if self._limit is not None:
            self._limit.release(lease)
        self.start_group(group, self.processor.timed_out(delivery, lease))
        self.takeover.set()

    def _end_task(self, task: _Task) -> None:
        self.overdue_tasks.discard(task)
        group = self.tasks.pop(task, None)
        if group:  # cancelled before its first step
            self._add_task(self._return_group(group), group)

    async def cancel(self, timeout_seconds: float) -> None:
        """Cancel every task, and return the messages of those that do not end in time, or had not begun."""
        for task in (*self.tasks, *self.overdue_tasks):
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=timeout_seconds)
        for group in list(self.tasks.values()):
            await self._return_group(group)

    async def _return_group(self, group: GroupQueue) -> None:
        while group:
            if group[0].state < SETTLING:
                await self._settle(group[0], CANCELLED, time.perf_counter())
            self._end_message(group)

    def reset(self) -> None:
        """Forget groups and tasks of an earlier invocation, on Lambda; the history of deliveries stays."""
        self.tasks = {}
        self._groups = {}
