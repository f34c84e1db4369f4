"""The consumer of one queue: receive, process, settle, and drain at the end.

``Consumer.run`` receives as many messages as there are free slots. Each message, or each group of a FIFO queue, has a
task, in which ``GroupRunner`` processes and settles it. ``Consumer.drain`` ends all of these in order.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import time
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from smartpipe.consumer.decide import Release
from smartpipe.consumer.handlers import slots_for
from smartpipe.consumer.history import DeliveryHistory
from smartpipe.consumer.isolation import Isolation
from smartpipe.consumer.leases import OVERDUE, SETTLING, Leases
from smartpipe.consumer.prefetch import Prefetch, ReceivedAhead
from smartpipe.consumer.processor import SKIPPED, Processed, Processor, Resources
from smartpipe.consumer.receive_health import ReceiveHealth
from smartpipe.consumer.settle import ERROR_RETRY_SECONDS, Acknowledger, Settled, Settler
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
"""Messages to handle one after the other; the first is being handled. A deque would take half a kilobyte each."""
_Task: TypeAlias = asyncio.Task[None]


class Consumer:
    """Handles the messages of one queue of a service.

    Args:
        concurrency: The maximum number of messages handled at a time, unless the handlers' own options replace it.
        poll_seconds: How long a receive call waits for messages, in whole seconds up to 20.
        prefetch: Receive messages ahead of free slots if handlers are faster than the network; see ``Prefetch``.
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
        prefetch: bool = True,
        observer: Callable[[Settled], None] | None = None,
    ) -> None:
        handlers = service.handlers_on(queue.name)
        self.queue = queue
        self.counters = Counters()
        self._transport = transport
        self._poll_seconds = poll_seconds
        self._loop = asyncio.get_running_loop()
        self._isolation = resources.isolation or Isolation()
        resources = resources._replace(isolation=self._isolation)
        self.processor = Processor(service, queue.name, resources, self.counters)
        size = slots_for(handlers, concurrency)
        self.slots = Slots(size, [*self.processor.gates, self._isolation])
        self.leases = Leases(
            queue.name, transport, visibility_timeout_seconds=queue.visibility_timeout_seconds, counters=self.counters
        )
        self._acknowledger = Acknowledger(
            queue.name, transport, leases=self.leases, slots=self.slots, counters=self.counters
        )
        settler = Settler(service.name, queue, transport, acknowledger=self._acknowledger, counters=self.counters)
        self._runner = GroupRunner(queue, self.processor, settler, slots=self.slots, isolation=self._isolation)
        self._runner.observer = observer
        # A batch collects messages as long as there are slots, so it needs none ahead.
        prefetch = prefetch and not any(handler.options.batch for handler in handlers)
        self._ahead = ReceivedAhead(self._runner, self.slots, Prefetch(size) if prefetch else None)
        self._isolation.join(self)
        self._health = ReceiveHealth(queue.name)
        self._calls: dict[_Task, float] = {}  # open receive calls, with the time at which each began
        self._stopping = asyncio.Event()
        self._running: _Task | None = None
        self._ticker: _Task | None = None

    def start(self) -> None:
        """Start to receive messages and to extend their leases."""
        self._ticker = self._loop.create_task(self._tick())
        self._running = self._loop.create_task(self.run())

    async def run(self) -> None:
        """Receive messages and start tasks that handle them, until ``drain`` is called."""
        while wanted := await self.slots.acquire():
            if not self._calls and not self._health.failing:
                # Every slot was taken, so no call was due. The time without one must not count as a failure.
                self._health.succeeded_at = self._loop.time()
            if self.slots.prefetched:
                self._ahead.check()
            call = self._loop.create_task(self._receive(wanted, ahead=self.slots.prefetched > 0))
            self._calls[call] = self._loop.time()
            call.add_done_callback(self._end_call)

    async def _receive(self, wanted: int, *, ahead: bool) -> None:
        """Make one receive call, for *wanted* messages at most, and start a task for each message or FIFO group.

        If some are received *ahead* of slots and a pause or a gate would not let them be received now, return them.

        The call is never cancelled: SQS may have handed out messages already, and they would stay invisible until their
        visibility timeout.
        """
        began = self._loop.time()
        try:
            messages = await self._transport.receive(
                self.queue.name,
                max_messages=wanted,
                wait_seconds=self._poll_seconds,
                visibility_timeout_seconds=self.queue.visibility_timeout_seconds,
            )
        except Exception as error:  # noqa: BLE001 - receiving goes on after any error
            self.slots.return_unused(wanted, 0)
            await self._health.back_off(error, self._stopping)
            return
        self.slots.return_unused(wanted, len(messages))
        self._health.succeeded_at = self._loop.time()
        if self._health.failing:
            self._health.recover()
        if messages:
            self._accept(messages, ahead=ahead)
            if len(messages) == wanted:
                self._ahead.record_full_response(messages, began)
        elif self.slots.prefetched:  # the queue is empty, and the next messages may be other ones
            self._ahead.return_all()

    def _accept(self, messages: Sequence[Message], *, ahead: bool = False) -> None:
        self.counters.received += len(messages)
        for lease in self.leases.hold(messages):
            group = self._runner.enqueue(lease)
            if group is None:
                continue
            if ahead or self._ahead.groups or len(self._runner.tasks) >= self.slots.size:
                self._ahead.start(group, ahead=ahead)
            else:
                # While draining, too: the task returns the message to the queue, so every message ends in `settle`.
                self._runner.start_group(group)

    def _end_call(self, call: _Task) -> None:
        del self._calls[call]
        self.slots.end_call()

    async def drain(self, *, handlers_until: float, flush_until: float, hard: asyncio.Event) -> None:
        """Stop receiving, and settle every message that is here. Times are the event loop's.

        Wait for open receive calls, and return the messages that they bring to the queue. Meanwhile handlers finish,
        and their leases are extended. At *handlers_until*, or when *hard* is set, cancel the other handlers and return
        their messages. Send deletes last. Messages that are not settled at *flush_until* are counted, and will be
        delivered again.
        """
        # Nothing new begins: no receive call, no handler, no wait for a batch to fill.
        self._stopping.set()
        self.slots.close()
        self._acknowledger.start_drain()
        self._runner.stopping = True
        self._isolation.stop()
        self._ahead.return_all()
        self.processor.stop()
        await self._wait_for_handlers(handlers_until, hard)
        await self._runner.cancel(CANCEL_SECONDS)
        if self._calls:
            log.warning(
                "Queue %s: a receive call was still open; its messages will reappear after the visibility timeout",
                self.queue.name,
            )
        # Again after `_finish`, which may have been cut off: cancelled handlers have left messages, too.
        self._release_held()
        await self._flush(flush_until)
        self.processor.close()
        # The ticker goes last: a message keeps its lease until its delete is confirmed.
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
        # Unhandled messages return only now: an open call of ours would have received them again.
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
            self.counters.not_deleted += self.slots.unsettled
            log.error(  # noqa: TRY400 - the traceback of a timeout explains nothing
                "Queue %s: %d messages could not be settled in time and will be delivered again",
                self.queue.name,
                self.slots.unsettled,
            )

    async def _tick(self) -> None:
        """Run the ticker, and restart it after an error: without it, SQS would deliver each slow message again."""
        while True:
            try:
                await self.leases.run()
            except Exception:
                log.exception("Queue %s: extending visibility timeouts failed, will start again", self.queue.name)
                await asyncio.sleep(TICKER_RESTART_SECONDS)

    def return_waiting(self) -> None:
        """Return the messages that were received ahead of free slots to the queue."""
        self._ahead.return_all()

    def pause(self) -> None:
        """Make no receive call until ``resume``; open ones may still bring messages. A second call does nothing."""
        self.slots.pause()
        self._ahead.return_all()

    def resume(self) -> None:
        """Make receive calls again."""
        self.slots.resume()

    @property
    def in_flight(self) -> int:
        """The number of messages that are being handled, or wait for their group or for a slot."""
        return sum(map(len, self._runner.tasks.values())) + sum(map(len, self._ahead.groups))

    @property
    def open_calls(self) -> int:
        """The number of receive calls that wait for a response, or for their next attempt."""
        return len(self._calls)

    @property
    def open_work(self) -> int:
        """The number of groups being handled, of receive calls that may bring more, and of unsettled messages.

        A message that may kill this process must not begin before deletes and returns are confirmed. If it did, SQS
        would deliver handled messages again, and count one more delivery of each.
        """
        return len(self._runner.tasks) + len(self._ahead.groups) + len(self._calls) + self.slots.unsettled

    @property
    def failing(self) -> bool:
        """Whether the last receive call failed."""
        return self._health.failing

    def seconds_since_success(self) -> float:
        """Return how long ago a receive call succeeded; 0 while no call is open, because every slot is taken then."""
        if self._health.succeeded_at is None or not self._calls:
            return 0.0
        return self._loop.time() - self._health.succeeded_at

    def seconds_until_closed(self) -> float:
        """Return the number of seconds for which SQS may still hand messages to an open receive call."""
        if not self._calls:
            return 0.0
        return max(0.0, max(self._calls.values()) + self._poll_seconds - self._loop.time())


class GroupRunner:
    """Processes and settles messages: those of a FIFO group one after the other, all others concurrently.

    Each message of a standard queue is a group by itself. Its group id, if it has one, only names a tenant.

    Args:
        slots: Where each handled message frees its slot.
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
        self.on_end: Callable[[], None] | None = None
        self.takeover = asyncio.Event()
        self._slots = slots
        self._isolation = isolation
        self._limit = limit
        self._groups: dict[str, GroupQueue] = {}
        self._history = DeliveryHistory()
        self._suspect_after = processor.thresholds.suspect
        processor.on_overdue = self._take_over
        settler.failure_hooks = processor.failure_hooks

    def enqueue(self, lease: Lease) -> GroupQueue | None:
        """Return the group that *lease* begins, or None if it has joined one that has a task."""
        if self._history.returned:
            self._history.recall(lease)
        group_id = lease.message.group_id
        if not self.queue.fifo or group_id is None:
            return [lease]
        group = self._groups.get(group_id)
        # SQS hands out no more messages of a group in flight, unless a lease was lost.
        if group is not None:
            group.append(lease)
            return None
        group = self._groups[group_id] = [lease]
        return group

    def is_suspect(self, lease: Lease) -> bool:
        """Return whether *lease* has more deliveries than failures explain: it may have killed a process."""
        return lease.message.receive_count - lease.returned > self._suspect_after

    def start_group(self, group: GroupQueue, overdue: Processed | None = None) -> None:
        """Start a task for *group*; *overdue* is the result of its first message, if there is one already.

        From Python 3.12 on, the task of a standard queue begins at once, and often has ended when this returns. That
        saves a turn of the event loop. Messages of a FIFO queue that were received together join their group first.
        """
        loop = asyncio.get_running_loop()
        if sys.version_info < (3, 12) or self.queue.fifo or loop.get_task_factory() is not None:
            self._add_task(self._run_group(group, overdue), group)
            return
        task = asyncio.Task(self._run_group(group, overdue), loop=loop, eager_start=True)
        if task.done():
            self._end_task(task, by_caller=True)
        else:
            task.add_done_callback(self._end_task)

    def _add_task(self, coroutine: Coroutine[Any, Any, None], group: GroupQueue) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self.tasks[task] = group
        task.add_done_callback(self._end_task)

    async def _run_group(self, group: GroupQueue, overdue: Processed | None) -> None:
        """Handle the messages of a group one after the other, until one of them will be delivered again.

        The messages behind that one must not overtake it, so they are returned and received together with it. No
        message of a FIFO group begins after its lease was lost, because another worker may have the group by then.
        """
        if sys.version_info >= (3, 12):  # it may begin before `start_group` has its task
            self.tasks[cast("_Task", asyncio.current_task())] = group
        redelivery_seconds: float | None = None
        while group and redelivery_seconds is None and not (self.queue.fifo and group[0].lost):
            lease = group[0]
            if self._isolation is not None and overdue is None and self.is_suspect(lease):
                redelivery_seconds = await self._handle_alone(lease, self._isolation)
            else:
                redelivery_seconds = await self._handle(lease, overdue)
            overdue = None
            if not group:  # `_take_over` emptied it: another task has the group, and this one may touch nothing
                return
            if redelivery_seconds is not None:
                self._history.record_return(lease)
            elif self._history.returned:
                self._history.forget(lease)
            self._end_message(group)
        # They become visible together with the message before them, so none of them can overtake it.
        await self._skip(group, redelivery_seconds or 0)

    async def _skip(self, group: GroupQueue, seconds: float) -> None:
        while group:
            self._history.record_skip(group[0])
            await self.settler.settle(group[0], Processed(Release(seconds, "skipped")), 0.0)
            self._end_message(group)

    def return_unhandled(self, group: GroupQueue) -> None:
        """Start a task that returns the messages of a group that has none."""
        self._add_task(self._skip(group, 0), group)

    async def _handle(self, lease: Lease, overdue: Processed | None = None) -> float | None:
        """Process and settle a message; return the seconds until its next delivery, or None if it has no other."""
        # If its handler overruns its timeout, another task settles the message, and this one must not.
        settled_elsewhere = OVERDUE if overdue is None else SETTLING
        started = time.perf_counter()
        try:
            processed = overdue or await self._process(lease)
            if lease.state < settled_elsewhere:
                return await self._settle(lease, processed, started)
        except asyncio.CancelledError:  # by `cancel`: swallowed, as the message must still be returned
            processed = CANCELLED
        except Exception as error:  # noqa: BLE001 - an internal error; the message must not be lost
            processed = Processed(Release(ERROR_RETRY_SECONDS, "internal-error", error))
        else:
            return 0
        return await self._settle(lease, processed, started) if lease.state < settled_elsewhere else 0

    async def _process(self, lease: Lease) -> Processed:
        if self.stopping:  # received by the last calls, or just before the drain began
            return SKIPPED
        if self._limit is None:
            return await self.processor.process(lease.message, lease)
        await self._limit.acquire(lease, stop_when_closed=False)
        try:
            return await self.processor.process(lease.message, lease)
        finally:
            self._limit.release(lease)

    async def _handle_alone(self, lease: Lease, isolation: Isolation) -> float | None:
        """Handle a message while no other is being handled: this one may have killed its process before."""
        log.warning(
            "Delivered more often than failures explain: it will be handled last and alone",
            extra=self.settler.fields(lease.message),
        )
        try:
            async with isolation.alone(lease):
                return await self._handle(lease)
        except asyncio.CancelledError:  # while it waited for its turn
            return await self._settle(lease, CANCELLED, time.perf_counter())

    async def _settle(self, lease: Lease, processed: Processed, started: float) -> float | None:
        redelivery_seconds = await self.settler.settle(lease, processed, time.perf_counter() - started)
        if self.observer is not None and not isinstance(processed.outcome, Release):
            self.observer(Settled(self.queue.name, lease.message, processed, redelivery_seconds))
        return redelivery_seconds

    def _end_message(self, group: GroupQueue) -> None:
        """Remove the first message from its group, and free its slot."""
        lease = group.pop(0)
        if self.queue.fifo and not group and lease.message.group_id is not None:
            self._groups.pop(lease.message.group_id, None)
        if self._slots is not None:
            self._slots.release()

    def _take_over(self, task: _Task, delivery: Delivery) -> None:
        """Continue in a new task, with the message whose handler does not end first, and abandon the old task."""
        if task not in self.tasks:
            return  # on Lambda, a task of an earlier invocation, whose messages have been returned
        self.overdue_tasks.add(task)
        old = self.tasks.pop(task)
        group = old[:]
        old.clear()  # ends the loop of the old task, whenever its handler ends
        lease = group[0]
        if self.queue.fifo and lease.message.group_id is not None:
            self._groups[lease.message.group_id] = group
        if self._limit is not None:
            self._limit.release(lease)  # for the old task, which may never do it
        self.start_group(group, self.processor.decide_overdue(delivery, lease))
        if self.on_end is not None:  # the new task may have ended already, and the old one may never end
            self.on_end()
        self.takeover.set()

    def _end_task(self, task: _Task, *, by_caller: bool = False) -> None:
        self.overdue_tasks.discard(task)
        group = self.tasks.pop(task, None)
        if group:  # the task was cancelled before its first step, or failed, so its messages have not been returned
            self._add_task(self._return_group(group), group)
        if self.on_end is not None and not by_caller:
            self.on_end()

    async def cancel(self, timeout_seconds: float) -> None:
        """Cancel every task, and return the messages of those that do not end in time or had not begun."""
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
        """Forget the groups and tasks of an earlier invocation, on Lambda; the history of deliveries stays."""
        self.tasks = {}
        self._groups = {}
