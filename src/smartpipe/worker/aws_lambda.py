"""A service as an AWS Lambda function on an SQS event source: the same handlers, with partial batch responses.

Source: AWS Lambda developer guide, "Using Lambda with Amazon SQS" and "Implementing partial batch responses".
"""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from contextlib import AsyncExitStack
from random import shuffle
from typing import TYPE_CHECKING, Any, NamedTuple

from smartpipe.consumer.groups import Groups
from smartpipe.consumer.handlers import slots_for
from smartpipe.consumer.leases import Lease
from smartpipe.consumer.processor import Processor, Resources
from smartpipe.consumer.settle import Settler
from smartpipe.consumer.threads import Threads, use_loop_executor
from smartpipe.counters import Counters
from smartpipe.errors import ConfigError, TransportError
from smartpipe.idempotency.claims import open_claims
from smartpipe.limits import MAX_BATCH_ENTRIES
from smartpipe.message import Attribute, received_message
from smartpipe.publisher.publisher import Publisher
from smartpipe.settings import AwsSettings, ConcurrencySettings
from smartpipe.transports.open import open_transport

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from smartpipe.consumer.groups import Chain
    from smartpipe.consumer.processor import Processed
    from smartpipe.delivery import Delivery
    from smartpipe.message import Message
    from smartpipe.service import Service
    from smartpipe.transport import Transport

log = logging.getLogger("smartpipe.lambda")

MARGIN_SECONDS = 1.0
"""So long before Lambda's own end handlers are cut off, that their messages can still be reported."""
CANCEL_SECONDS = 0.3
GIVE_BACK_SECONDS = 0.8
DELETE_SECONDS = 3.0
NO_LIMIT_SECONDS = 900.0
GATHERED_EVERY_SECONDS = 0.01


class _Unfinished:
    """What Lambda is told to give back, in place of an acknowledger: what is not in it, Lambda deletes."""

    def __init__(self) -> None:
        self.message_ids: set[str] = set()
        self.leases: list[tuple[str, float]] = []

    def clear(self) -> None:
        self.message_ids.clear()
        self.leases.clear()

    def delete(self, lease: Lease) -> None:
        self.message_ids.discard(lease.message.message_id)

    def release(self, lease: Lease, seconds: float) -> None:
        self.message_ids.add(lease.message.message_id)
        self.leases.append((lease.message.receipt_handle, seconds))


class _Source(NamedTuple):
    """One queue that the function is invoked for."""

    name: str
    processor: Processor
    settler: Settler
    groups: Groups
    room: asyncio.Semaphore
    unfinished: _Unfinished


class _Running:
    """The tasks of one invocation: each with its queue and its messages."""

    def __init__(self) -> None:
        self.tasks: dict[asyncio.Task[None], tuple[_Source, Chain]] = {}
        self.changed = asyncio.Event()

    async def wait(self, until: float) -> list[asyncio.Task[None]]:
        """Wait for all tasks, also for those that are added meanwhile; return the ones that still run at *until*."""
        loop = asyncio.get_running_loop()
        while (pending := [task for task in self.tasks if not task.done()]) and loop.time() < until:
            self.changed.clear()
            waits = {loop.create_task(asyncio.wait(pending)), loop.create_task(self.changed.wait())}
            try:
                await asyncio.wait(waits, timeout=until - loop.time(), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
        return pending


class LambdaHandler:
    """The function for Lambda to call: ``handler(event, context)``. See ``Service.lambda_handler``."""

    def __init__(self, service: Service) -> None:
        if not service.handlers:
            msg = f"service {service.name!r} has no handlers: decorate functions with @service.subscribe(...)"
            raise ConfigError(msg)
        self._service = service
        self._runner: asyncio.Runner | None = None
        self._stack = AsyncExitStack()
        self._transport: Transport | None = None
        self._resources: Resources | None = None
        self._sources: dict[str, _Source] = {}
        self._running = _Running()

    def __call__(self, event: Mapping[str, Any], context: Any = None) -> dict[str, Any]:
        """Handle one invocation; return the partial batch response."""
        if self._runner is None:
            self._runner = asyncio.Runner()  # one loop for all invocations: what the lifespan opens belongs to it
        return self._runner.run(self.handle(event, context))

    async def handle(self, event: Mapping[str, Any], context: Any = None) -> dict[str, Any]:
        """Do the same in a running loop, always the same one.

        Raises:
            ConfigError: The event is none of SQS, or of a queue that the service has no handlers on.
        """
        records = event.get("Records")
        if not records or any(record.get("eventSource") != "aws:sqs" for record in records):
            msg = "the event is not from SQS: map an SQS queue to this function, with ReportBatchItemFailures"
            raise ConfigError(msg)
        loop = asyncio.get_running_loop()
        remaining: Any = getattr(context, "get_remaining_time_in_millis", None)
        seconds = remaining() / 1_000 - MARGIN_SECONDS if remaining else NO_LIMIT_SECONDS
        until = loop.time() + max(0.0, seconds)
        sources: dict[str, _Source] = {}
        chains: list[tuple[_Source, Chain]] = []
        for record in records:
            arn = record["eventSourceARN"]
            if arn not in sources:
                sources[arn] = await self._source(arn)
            source = sources[arn]
            chain = source.groups.chain_for(Lease(_message(record, loop.time()), until, until, loop.time))
            if chain is not None:
                chains.append((source, chain))
        ordinary: list[tuple[_Source, Chain]] = []
        suspects: list[tuple[_Source, Chain]] = []
        for source, chain in chains:
            suspect = any(map(source.processor.is_suspect, chain))
            (suspects if suspect else ordinary).append((source, chain))
        await self._run_all(ordinary, until)
        if suspects:
            await self._run_suspects(suspects, records, sources, until)
        for source in sources.values():
            await self._give_back(source, until + GIVE_BACK_SECONDS)
        failures = [
            {"itemIdentifier": record["messageId"]}
            for record in records
            if record["messageId"] in sources[record["eventSourceARN"]].unfinished.message_ids
        ]
        return {"batchItemFailures": failures}

    def close(self) -> None:
        """Close all that invocations opened, and their loop: at the end of a test. A second call does nothing."""
        runner, self._runner = self._runner, None
        if runner is not None:
            with runner:
                runner.run(self.aclose())

    async def aclose(self) -> None:
        """Close what the lifespan opened, and connections. Lambda itself never calls it: it ends the process."""
        await self._stack.aclose()
        self._resources = None
        self._sources.clear()

    async def _run_all(self, chains: list[tuple[_Source, Chain]], until: float) -> None:
        loop = asyncio.get_running_loop()
        running = self._running = _Running()
        for source, chain in chains:
            running.tasks[loop.create_task(self._run(source, chain))] = source, chain
        processors = {source.name: source.processor for source, _ in chains if source.processor.gathers}
        gathering = loop.create_task(_flush_when_all_wait(list(processors.values()), running.tasks))
        try:
            late = await running.wait(until)
            if late:
                log.warning("%d messages are given back: the function's time is over", len(late))
                for task in late:
                    task.cancel()
                await asyncio.wait(late, timeout=CANCEL_SECONDS)
        finally:  # also when this invocation is cancelled
            for task in (gathering, *running.tasks):
                task.cancel()
        for source, chain in running.tasks.values():  # of tasks that were cancelled before they began, or do not end
            while chain:
                lease = source.groups.ended(chain)
                lease.returning = True  # whatever its handler still does changes nothing in a later invocation
                source.unfinished.release(lease, 0)

    async def _run_suspects(
        self,
        suspects: list[tuple[_Source, Chain]],
        records: Sequence[Mapping[str, Any]],
        sources: Mapping[str, _Source],
        until: float,
    ) -> None:
        """Handle messages that may kill this process: last, one at a time, and when the others have been deleted.

        Lambda deletes the others only when the function returns, and would deliver them again.
        """
        theirs = {lease.message.message_id for _, chain in suspects for lease in chain}
        for arn, source in sources.items():
            done = [
                record["receiptHandle"]
                for record in records
                if record["eventSourceARN"] == arn
                and record["messageId"] not in theirs
                and record["messageId"] not in source.unfinished.message_ids
            ]
            try:
                async with asyncio.timeout(DELETE_SECONDS):
                    for start in range(0, len(done), MAX_BATCH_ENTRIES):
                        await self._opened_transport.delete(source.name, done[start : start + MAX_BATCH_ENTRIES])
            except (TransportError, TimeoutError) as error:
                log.warning("Cannot delete handled messages before a message that may end this process: %s", error)
        shuffle(suspects)  # one that kills this process must not always come before the same others
        for suspect in suspects:
            log.warning(
                "Delivered more often than failures explain, so it is handled last and alone",
                extra=suspect[0].settler.fields(suspect[1][0].message),
            )
            await self._run_all([suspect], until)

    @property
    def _opened_transport(self) -> Transport:
        assert self._transport is not None  # noqa: S101 - _source has opened it
        return self._transport

    def _overdue(self, task: asyncio.Task[None], delivery: Delivery) -> None:
        """Go on in a new task, first with the message whose handler does not end; the old task is left to itself.

        Where the task is of an earlier invocation, Lambda has its messages back already.
        """
        if task not in self._running.tasks:
            return
        source, chain = self._running.tasks.pop(task)
        source.room.release()
        chain = source.groups.take_over(chain)
        late = chain[0], source.processor.timed_out(delivery, chain[0])
        self._running.tasks[asyncio.get_running_loop().create_task(self._run(source, chain, late))] = source, chain
        self._running.changed.set()

    async def _run(self, source: _Source, chain: Chain, late: tuple[Lease, Processed] | None = None) -> None:
        async def process(lease: Lease) -> float | None:
            started = time.perf_counter()
            try:
                if late is not None and lease is late[0]:
                    return await source.settler.settle(lease, late[1], 0.0)
                processed = await self._process(source, lease)
                if lease.detached or lease.returning:
                    return 0
                return await source.settler.settle(lease, processed, time.perf_counter() - started)
            except asyncio.CancelledError:
                if not (lease.detached or lease.returning):
                    source.unfinished.release(lease, 0)
                return 0
            except Exception as error:  # noqa: BLE001 - a fault of ours; nothing is lost
                return source.settler.fault(lease, error)

        await source.groups.run(chain, process, source.unfinished.release, source.groups.ended)

    async def _process(self, source: _Source, lease: Lease) -> Processed:
        await source.room.acquire()
        try:
            return await source.processor.process(lease.message, lease)
        finally:
            if not lease.detached:
                source.room.release()

    async def _give_back(self, source: _Source, until: float) -> None:
        """Ask for the retries' delays. Lambda's own is the queue's visibility timeout; that is right too, if later."""
        leases = source.unfinished.leases
        transport = self._transport
        if transport is None or not leases:
            return
        try:
            async with asyncio.timeout_at(until):
                for start in range(0, len(leases), MAX_BATCH_ENTRIES):
                    await transport.change_visibility(source.name, leases[start : start + MAX_BATCH_ENTRIES])
        except (TransportError, TimeoutError) as error:
            log.warning("failed messages come back after the visibility timeout, not by their policy: %s", error)

    async def _source(self, arn: str) -> _Source:
        """Return what the queue is handled with, without a trace of what an earlier invocation left undone."""
        known = self._sources.get(arn)
        if known is not None:
            known.unfinished.clear()
            return known._replace(groups=known.groups.anew())
        resources, transport = await self._opened()
        name = arn.rpartition(":")[2].removeprefix(AwsSettings.load().prefix)
        queues = {binding.queue.name: binding.queue for binding in self._service.bindings}
        if name not in queues:
            msg = (
                f"service {self._service.name!r} has no handlers on queue {name!r} ({arn}); it has on "
                f"{', '.join(queues)}. Is SMARTPIPE_PREFIX set as it was when the topology was applied?"
            )
            raise ConfigError(msg)
        counts, unfinished = Counters(), _Unfinished()
        source = self._sources[arn] = _Source(
            name,
            Processor(self._service, name, resources, counts, on_overdue=self._overdue),
            Settler(self._service.name, queues[name], transport, acknowledger=unfinished, counts=counts),
            Groups(fifo=queues[name].fifo),
            asyncio.Semaphore(slots_for(self._service.handlers_on(name), ConcurrencySettings.load().concurrency)),
            unfinished,
        )
        return source

    async def _opened(self) -> tuple[Resources, Transport]:
        """Open, in the first invocation, what lasts for all of them."""
        if self._resources is None or self._transport is None:
            async with AsyncExitStack() as stack:
                transport = open_transport()
                stack.push_async_callback(transport.aclose)
                threads = Threads(self._service.slots(ConcurrencySettings.load().concurrency))
                stack.callback(threads.close)
                use_loop_executor(threads.capacity)
                publisher = await stack.enter_async_context(Publisher(self._service.name, transport=transport))
                claims = await open_claims(self._service, ConcurrencySettings.load().idempotency_url)
                if claims is not None:
                    stack.push_async_callback(claims.aclose)
                state = await stack.enter_async_context(self._service.open())
                self._stack = stack.pop_all()
            self._transport, self._resources = (
                transport,
                Resources(publisher, threads, publisher.payloads, state, claims),
            )
        return self._resources, self._transport


async def _flush_when_all_wait(processors: list[Processor], tasks: Collection[asyncio.Task[None]]) -> None:
    """Let batches go out as soon as nobody else can join them: Lambda's time costs more than a linger is worth."""
    while processors:
        await asyncio.sleep(GATHERED_EVERY_SECONDS)
        if sum(processor.gathered for processor in processors) >= sum(not task.done() for task in tasks):
            for processor in processors:
                processor.flush()


def _message(record: Mapping[str, Any], received_at: float) -> Message:
    """Read one record of the event."""
    attributes = {name: _attribute(fields) for name, fields in (record.get("messageAttributes") or {}).items()}
    ids = record["messageId"], record["receiptHandle"]
    return received_message(ids, record["body"], record["attributes"], attributes, received_at)


def _attribute(fields: Mapping[str, Any]) -> Attribute:
    text = fields.get("stringValue")
    return Attribute(fields["dataType"], base64.b64decode(fields["binaryValue"]) if text is None else text)
