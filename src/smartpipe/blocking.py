"""The publisher for blocking code (Flask, Django, scripts): on boto3, with the same encoding and errors."""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Self, Unpack

from smartpipe.batching.resend import send_with_retries_blocking
from smartpipe.envelope.body_encoding import BodyEncoding
from smartpipe.envelope.encode import source_errors
from smartpipe.envelope.object_store import put_in_memory
from smartpipe.envelope.traceparent import OPENTELEMETRY
from smartpipe.errors import ConfigError, PublishError, PublishFailure
from smartpipe.message import Failure
from smartpipe.names import physical_name, region_in
from smartpipe.payload_offload import reindex, split_failed
from smartpipe.publisher.prepare import (
    PreparedEvent,
    Publication,
    PublishReport,
    prepare,
    read_many_options,
    read_options,
)
from smartpipe.publisher.publish_many import StoppedGroups, add_failures, read_chunks
from smartpipe.publisher.traced import find_publish_tracing
from smartpipe.settings import AwsSettings
from smartpipe.telemetry.call_metrics import PublishMetrics
from smartpipe.telemetry.spans import is_ready
from smartpipe.topics import Topic
from smartpipe.transports.aws.blocking_session import BlockingAwsSession
from smartpipe.transports.aws.configuration import check_urls
from smartpipe.transports.aws.entries import publish_entries, put_object_request, read_failures, send_entries
from smartpipe.transports.aws.errors import MISSING, classify
from smartpipe.transports.aws.own_attributes import mark_own

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

    import boto3

    from smartpipe.errors import TransportError
    from smartpipe.events import Event
    from smartpipe.message import OutgoingMessage, Payload
    from smartpipe.options import PublishManyOptions, PublishOptions
    from smartpipe.publisher.traced import PublicationFields, PublishTracing
    from smartpipe.telemetry.families import Family

SERVICES = ("sns", "sqs", "s3", "sts")


class Publisher:
    """Publishes events to their topics, each call in the calling thread. Threads may share one.

    The asyncio publisher combines concurrent calls into one request. This one makes one request for each ``publish``,
    so use ``publish_many`` for many events. After a fork, only the process that used a publisher first may use it:
    create one in each process.

    Args:
        source: CloudEvents ``source``: the component that publishes, such as ``"signup-api"``.
        deadline_seconds: The time during which temporary failures are retried.
        session: By default one that reads the environment and the AWS files.
        metrics: Count results and measure publications, for ``collect_metrics``.

    Raises:
        ConfigError: A source that is empty, longer than 256 characters or not a URI reference (RFC 3986), a negative
            time, an error in the settings or in the AWS configuration, or no region.
    """

    def __init__(
        self,
        source: str,
        *,
        deadline_seconds: float = 30.0,
        session: boto3.Session | None = None,
        metrics: bool = True,
    ) -> None:
        errors = source_errors("Publisher", source)
        if deadline_seconds < 0:
            errors.append("Publisher: deadline_seconds cannot be negative")
        if errors:
            raise ConfigError(errors)
        self.source = source
        self._deadline_seconds = deadline_seconds
        self._settings = AwsSettings.load()
        self._encoding = BodyEncoding.from_environment()
        self._session = BlockingAwsSession(self._settings, session=session)
        for service in SERVICES:
            check_urls(service)
        self._session.client("sns")  # a wrong configuration is an error now, and not at the first publish
        self._closed = False
        self._metrics = PublishMetrics() if metrics else None
        self._tracing: PublishTracing | None = None
        self._tracing_found = False

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def publish(self, event: Event, **options: Unpack[PublishOptions]) -> str:
        """Publish *event* in one request and return its envelope id. Options as those of the asyncio publisher.

        On a FIFO topic, publish the events of one key from one thread: their order is the order of the calls.

        Raises:
            ConfigError: The publisher was used in another process before a fork, or the credentials can never be
                fetched.
            EventTooLarge: Before any I/O.
            PublishError: SNS or SQS refused it, or could not be reached before the deadline.
        """
        publication = Publication(event, *read_options(**options))
        tracing = self._find_tracing()
        if tracing is not None:
            with tracing.trace_event(publication) as traced:
                return self._publish_prepared(traced.prepare(self._prepare))
        return self._publish_prepared(self._prepare(publication))

    def publish_many(self, events: Iterable[Event], **options: Unpack[PublishManyOptions]) -> PublishReport:
        """Publish *events*, ten to a request, one request after the other.

        An event that cannot be published does not stop the others, except those of its key on a FIFO topic. If the
        iterable itself raises, a note of its exception lists the events read before that were not published.

        Raises:
            PublishError: After every event has been tried. ``failures`` has those that were not published.
        """
        fields = read_many_options(**options)
        tracing = self._find_tracing()
        if tracing is not None:
            with tracing.trace_many(events, fields) as (traced_events, traced_fields):
                return self._publish_all(traced_events, traced_fields)
        return self._publish_all(events, fields)

    def _publish_all(self, events: Iterable[Event], fields: PublicationFields) -> PublishReport:
        publications = (Publication(event, *fields) for event in events)
        event_ids: list[str] = []
        failed: list[PublishFailure] = []
        groups = StoppedGroups()
        try:
            for chunk in read_chunks(publications, self._prepare, groups, event_ids, failed):
                sendable, stopped = groups.split_stopped(chunk)
                for outgoing, failure in [*(self._send_chunk(sendable) if sendable else []), *stopped]:
                    failed.append(failure)
                    groups.stop(outgoing)
        except Exception as error:
            add_failures(error, failed)
            raise
        if failed:
            raise PublishError(failed)
        return PublishReport(event_ids)

    def close(self) -> None:
        """Close the connections. Nothing has to be flushed. A publish after it fails."""
        self._closed = True
        self._session.close()

    def _prepare(self, publication: Publication) -> PreparedEvent:
        return prepare(publication, source=self.source, encoding=self._encoding)

    def _publish_prepared(self, prepared: PreparedEvent) -> str:
        failed = self._send_chunk([prepared])
        if failed:
            raise PublishError([failure for _, failure in failed])
        return prepared.event_id

    def _find_tracing(self) -> PublishTracing | None:
        """Look for a tracer provider once, when the application has imported OpenTelemetry."""
        if not self._tracing_found and OPENTELEMETRY in sys.modules and is_ready():
            self._tracing, self._tracing_found = find_publish_tracing(self.source), True
        return self._tracing

    def collect_metrics(self) -> list[Family]:
        """Return the results of all events, and how long they took, each with the label ``service``.

        Write them for Prometheus with ``smartpipe.telemetry.render``.
        """
        return [] if self._metrics is None else list(self._metrics.collect({"service": self.source}))

    def _send_chunk(self, chunk: list[PreparedEvent]) -> list[tuple[PreparedEvent, PublishFailure]]:
        if self._closed:
            closed = Failure(0, "PublisherClosed", "the publisher is closed", retryable=False)
            return [(outgoing, outgoing.make_failure(closed)) for outgoing in chunk]
        self._session.check_usable()
        destination = chunk[0].destination

        def call(entries: list[PreparedEvent]) -> list[Failure]:
            sendable, failed = split_failed([self._put(outgoing.message.payload) for outgoing in entries])
            if not sendable:
                return failed
            messages = [entries[index].message for index in sendable]
            send = self._publish if isinstance(destination, Topic) else self._send
            with nullcontext() if self._tracing is None else self._tracing.suppress_others():
                return [*failed, *reindex(send(destination.name, messages), sendable)]

        started = time.perf_counter()
        failed = send_with_retries_blocking(call, chunk, deadline_seconds=self._deadline_seconds)
        if self._metrics is not None:
            seconds = time.perf_counter() - started
            self._metrics.record(destination.name, len(chunk), [one.code for _, one in failed], seconds)
        return [(outgoing, outgoing.make_failure(failure)) for outgoing, failure in failed]

    def _publish(self, topic: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        target = f"topic {topic!r}"
        try:
            arn = self._session.naming().topic_arn(topic)
            target = f"topic {arn}"
            sns = self._session.client("sns", region=region_in(arn))
            response = sns.publish_batch(TopicArn=arn, PublishBatchRequestEntries=mark_own(publish_entries(messages)))
        except Exception as error:
            raise classify(error, action="sns:Publish", target=target) from error
        return read_failures(response, len(messages))

    def _send(self, queue: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        name = physical_name(self._settings.prefix, queue)
        try:
            url = self._session.queue_url(queue)
            response = self._session.client("sqs").send_message_batch(
                QueueUrl=url, Entries=mark_own(send_entries(messages))
            )
        except Exception as error:
            classified = classify(error, action="sqs:SendMessage", target=f"queue {name!r}")
            if classified.code in MISSING:
                self._session.forget_queue(queue)
            raise classified from error
        return read_failures(response, len(messages))

    def _put(self, payload: Payload | None) -> TransportError | None:
        """Write a large body to S3 (or, for tests, to memory), and return the error if that fails."""
        location = self._encoding.claim_check
        if payload is None or location is None:
            return None
        if location.scheme == "memory":
            put_in_memory(payload)
            return None
        try:
            self._session.client("s3").put_object(**put_object_request(payload, self._session.account_id()))
        except Exception as error:  # noqa: BLE001 - classify returns it
            return classify(error, action="s3:PutObject", target=payload.url)
        return None
