"""A service as an AWS Lambda function on an SQS event source: the same handlers, with partial batch responses.

Source: AWS Lambda developer guide, "Using Lambda with Amazon SQS" and "Implementing partial batch responses".
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import sys
import time
from contextlib import AsyncExitStack
from random import shuffle
from typing import TYPE_CHECKING, Any, NamedTuple

from smartpipe.consumer.consumer import GroupRunner
from smartpipe.consumer.handler_limits import HandlerLimit
from smartpipe.consumer.handlers import slots_for
from smartpipe.consumer.leases import Lease
from smartpipe.consumer.processor import Processor
from smartpipe.consumer.settle import Settler
from smartpipe.counters import Counters
from smartpipe.errors import ConfigError, TransportError
from smartpipe.limits import MAX_BATCH_ENTRIES
from smartpipe.log_fields import add_delivery_filter
from smartpipe.message import Attribute, received_message
from smartpipe.settings import AwsSettings, ConcurrencySettings, LambdaSettings
from smartpipe.transports.measured import measure
from smartpipe.transports.open import open_transport
from smartpipe.transports.traced import TracedTransport
from smartpipe.worker.emf import EmfDocuments
from smartpipe.worker.runtime import open_runtime

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from smartpipe.consumer.consumer import GroupQueue
    from smartpipe.consumer.processor import Resources
    from smartpipe.message import Message
    from smartpipe.service import Service
    from smartpipe.transport import Transport

log = logging.getLogger("smartpipe.lambda")

MARGIN_SECONDS = 1.0
"""Handlers are cancelled this long before Lambda ends the function, so that their messages can still be reported."""
CANCEL_SECONDS = 0.3
RETURN_SECONDS = 0.8
DELETE_SECONDS = 3.0
NO_LIMIT_SECONDS = 900.0
MAX_RETRY_SECONDS = 42_000.0
"""SQS refuses to hide a message for more than 12 hours after its receipt. That was up to 20 minutes ago: 5 minutes of
the batching window, and 15 of this function."""
FLUSH_EVERY_SECONDS = 0.01
FLUSH_SPANS_SECONDS = 1.0


class _BatchResponse:
    """In place of an acknowledger: collects the messages for Lambda to delete. It returns all others to the queue."""

    def __init__(self) -> None:
        self.deleted_ids: set[str] = set()
        self.leases: list[tuple[str, float]] = []

    def clear(self) -> None:
        self.deleted_ids.clear()
        self.leases.clear()

    def delete(self, lease: Lease) -> None:
        lease.start_delete()
        self.deleted_ids.add(lease.message.message_id)

    def release(self, lease: Lease, seconds: float) -> None:
        lease.start_return()
        self.deleted_ids.discard(lease.message.message_id)
        self.leases.append((lease.message.receipt_handle, min(seconds, MAX_RETRY_SECONDS)))

    release_unhandled = release


class _Source(NamedTuple):
    """A queue that invokes the function."""

    name: str
    runner: GroupRunner
    response: _BatchResponse
    metrics: EmfDocuments | None


class LambdaHandler:
    """The function for Lambda to call: ``handler(event, context)``. See ``Service.lambda_handler``."""

    def __init__(self, service: Service) -> None:
        if not service.bindings:  # raises ConfigError if upcasters leave a gap
            msg = f"service {service.name!r} has no handlers: decorate functions with @service.subscribe(...)"
            raise ConfigError(msg)
        self._service = service
        self._runner: asyncio.Runner | None = None
        self._stack = AsyncExitStack()
        self._transport: Transport | None = None
        self._resources: Resources | None = None
        self._sources: dict[str, _Source] = {}

    def __call__(self, event: Mapping[str, Any], context: Any = None) -> dict[str, Any]:
        """Handle one invocation, and return the partial batch response."""
        if self._runner is None:
            self._runner = asyncio.Runner()  # one loop for all invocations, to which the lifespan's resources belong
        return self._runner.run(self.handle(event, context))

    async def handle(self, event: Mapping[str, Any], context: Any = None) -> dict[str, Any]:
        """Handle one invocation in the running loop, which must be the same for all invocations.

        Raises:
            ConfigError: The event is not from SQS, or the service has no handlers on its queue.
        """
        records = event.get("Records")
        if not records or any(record.get("eventSource") != "aws:sqs" for record in records):
            msg = "the event is not from SQS: map an SQS queue to this function, with ReportBatchItemFailures"
            raise ConfigError(msg)
        add_delivery_filter()
        loop = asyncio.get_running_loop()
        remaining: Any = getattr(context, "get_remaining_time_in_millis", None)
        seconds = remaining() / 1_000 - MARGIN_SECONDS if remaining else NO_LIMIT_SECONDS
        until = loop.time() + max(0.0, seconds)
        sources: dict[str, _Source] = {}
        ordinary: list[tuple[_Source, GroupQueue]] = []
        for record in records:
            arn = record["eventSourceARN"]
            if arn not in sources:
                sources[arn] = await self._get_source(arn)
            source = sources[arn]
            # A handler without a time limit has until the end of the lease: it is cancelled before that, at *until*.
            lease = Lease(_read_message(record, loop.time()), until, until + MARGIN_SECONDS, loop.time)
            group = source.runner.enqueue(lease)
            if group is not None:
                ordinary.append((source, group))
        suspects = [(source, group) for source, group in ordinary if any(map(source.runner.is_suspect, group))]
        await self._run_all([pair for pair in ordinary if pair not in suspects], until)
        if suspects:
            await self._run_suspects(suspects, records, sources, until)
        for source in sources.values():
            await self._set_delays(source, until + RETURN_SECONDS)
            _write_metrics(source, getattr(context, "aws_request_id", None))
        if self._resources is not None and self._resources.tracing is not None:  # Lambda freezes the process
            await self._resources.tracing.flush(min(FLUSH_SPANS_SECONDS, until - loop.time()))
        failures = [
            {"itemIdentifier": record["messageId"]}
            for record in records
            if record["messageId"] not in sources[record["eventSourceARN"]].response.deleted_ids
        ]
        return {"batchItemFailures": failures}

    def close(self) -> None:
        """Close all resources that invocations opened, and their loop, for tests. A second call does nothing."""
        runner, self._runner = self._runner, None
        if runner is not None:
            with runner:
                runner.run(self.aclose())

    async def aclose(self) -> None:
        """Close the lifespan and connections. Lambda itself never calls this, but ends the process."""
        await self._stack.aclose()
        self._resources = None
        self._sources.clear()

    async def _run_all(self, groups: list[tuple[_Source, GroupQueue]], until: float) -> None:
        runners = list(dict.fromkeys(source.runner for source, _ in groups))
        for source, group in groups:
            source.runner.start_group(group)
        flushing = asyncio.get_running_loop().create_task(_flush_when_all_wait(runners))
        try:
            late = await _wait_for(runners, until)
            if late:
                log.warning("%d messages will be redelivered: the time of the function is over", late)
        finally:  # even if this invocation is cancelled
            flushing.cancel()
            for runner in runners:
                await runner.cancel(CANCEL_SECONDS)

    async def _run_suspects(
        self,
        suspects: list[tuple[_Source, GroupQueue]],
        records: Sequence[Mapping[str, Any]],
        sources: Mapping[str, _Source],
        until: float,
    ) -> None:
        """Handle messages that may kill this process: last, one at a time, and after the others have been deleted.

        Lambda deletes the others only after the function has returned. If the process dies, it delivers them again.
        """
        suspect_ids = {lease.message.message_id for _, group in suspects for lease in group}
        for arn, source in sources.items():
            handled = [
                record["receiptHandle"]
                for record in records
                if record["eventSourceARN"] == arn
                and record["messageId"] not in suspect_ids
                and record["messageId"] in source.response.deleted_ids
            ]
            try:
                async with asyncio.timeout(DELETE_SECONDS):
                    for start in range(0, len(handled), MAX_BATCH_ENTRIES):
                        await self._opened_transport.delete(source.name, handled[start : start + MAX_BATCH_ENTRIES])
            except (TransportError, TimeoutError) as error:
                log.warning("Cannot delete handled messages before a message that may end this process: %s", error)
        shuffle(suspects)  # a message that kills this process must not always come before the same others
        for source, group in suspects:
            log.warning(
                "Delivered more often than failures explain: it will be handled last and alone",
                extra=source.runner.settler.fields(group[0].message),
            )
            await self._run_all([(source, group)], until)

    @property
    def _opened_transport(self) -> Transport:
        assert self._transport is not None  # noqa: S101 - `_get_source` has opened it
        return self._transport

    async def _set_delays(self, source: _Source, until: float) -> None:
        """Set the delays of retries. If that fails, Lambda makes messages visible after their visibility timeout."""
        leases = source.response.leases
        transport = self._transport
        if transport is None or not leases:
            return
        problem = ""
        try:
            async with asyncio.timeout_at(until):
                for start in range(0, len(leases), MAX_BATCH_ENTRIES):
                    entries = leases[start : start + MAX_BATCH_ENTRIES]
                    for failure in await transport.change_visibility(source.name, entries):
                        problem = f"{failure.code}: {failure.detail}"
        except (TransportError, TimeoutError) as error:
            problem = str(error) or "no answer"
        if problem:
            log.warning(
                "Cannot set the delays of retries, messages will reappear after the visibility timeout: %s", problem
            )

    async def _get_source(self, arn: str) -> _Source:
        """Return the source of a queue, cleared of messages that an earlier invocation did not finish."""
        known = self._sources.get(arn)
        if known is not None:
            known.response.clear()
            known.runner.reset()
            return known
        resources, transport = await self._open()
        name = arn.rpartition(":")[2].removeprefix(AwsSettings.load().prefix)
        queues = {binding.queue.name: binding.queue for binding in self._service.bindings}
        if name not in queues:
            msg = (
                f"service {self._service.name!r} has no handlers on queue {name!r} ({arn}); its queues are "
                f"{', '.join(queues)}. Is SMARTPIPE_PREFIX set as it was when the topology was applied?"
            )
            raise ConfigError(msg)
        counters, response = Counters(), _BatchResponse()
        runner = GroupRunner(
            queues[name],
            Processor(self._service, name, resources, counters),
            Settler(self._service.name, queues[name], transport, acknowledger=response, counters=counters),
            limit=HandlerLimit(slots_for(self._service.handlers_on(name), ConcurrencySettings.load().concurrency)),
        )
        metrics = self._create_metrics(arn.rpartition(":")[2], counters)
        source = self._sources[arn] = _Source(name, runner, response, metrics)
        return source

    def _create_metrics(self, queue: str, counters: Counters) -> EmfDocuments | None:
        """Return the metrics of a queue. None: this is not Lambda, or the settings turn them off."""
        settings = LambdaSettings.load()
        if counters.histograms is None or not settings.emf or "AWS_LAMBDA_FUNCTION_NAME" not in os.environ:
            return None
        return EmfDocuments(self._service.name, queue, settings.emf_namespace, counters)

    async def _open(self) -> tuple[Resources, Transport]:
        """Return the resources of all invocations; the first invocation opens them."""
        if self._resources is None or self._transport is None:
            async with AsyncExitStack() as stack:
                settings = ConcurrencySettings.load()
                transport = open_transport()
                if settings.metrics:
                    transport = measure(transport)
                stack.push_async_callback(transport.aclose)
                runtime = await stack.enter_async_context(open_runtime(self._service, transport, settings))
                self._stack = stack.pop_all()
            self._transport, self._resources = transport, runtime.resources()
            if settings.trace_calls and self._resources.tracing is not None:
                self._transport = TracedTransport(transport, self._resources.tracing)
        return self._resources, self._transport


def _write_metrics(source: _Source, request_id: str | None) -> None:
    """Write the metrics of an invocation to standard output, each line at once. Raises nothing."""
    if source.metrics is None:
        return
    try:
        for line in source.metrics.render(time.time(), request_id):
            sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except Exception as error:  # noqa: BLE001 - the messages have been handled
        log.warning("Cannot write the metrics of this invocation: %s", error)


async def _wait_for(runners: Sequence[GroupRunner], until: float) -> int:
    """Wait for all tasks, including later ones; return the number of those that are still running at *until*."""
    loop = asyncio.get_running_loop()
    while (tasks := [task for runner in runners for task in runner.tasks]) and loop.time() < until:
        for runner in runners:
            runner.takeover.clear()
        waits = {
            loop.create_task(asyncio.wait(tasks)),
            *(loop.create_task(runner.takeover.wait()) for runner in runners),
        }
        try:
            await asyncio.wait(waits, timeout=until - loop.time(), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
    return len(tasks)


async def _flush_when_all_wait(runners: Sequence[GroupRunner]) -> None:
    """Start batches as soon as no other message can join them: Lambda's time costs more than a linger is worth."""
    processors = [runner.processor for runner in runners if runner.processor.has_batch_handlers]
    while processors:
        await asyncio.sleep(FLUSH_EVERY_SECONDS)
        if sum(processor.pending for processor in processors) >= sum(len(runner.tasks) for runner in runners):
            for processor in processors:
                processor.flush()


def _read_message(record: Mapping[str, Any], received_at: float) -> Message:
    """Return the message of one record of the event."""
    attributes = {name: _read_attribute(fields) for name, fields in (record.get("messageAttributes") or {}).items()}
    ids = record["messageId"], record["receiptHandle"]
    return received_message(ids, record["body"], record["attributes"], attributes, received_at)


def _read_attribute(fields: Mapping[str, Any]) -> Attribute:
    text = fields.get("stringValue")
    return Attribute(fields["dataType"], base64.b64decode(fields["binaryValue"]) if text is None else text)
