"""The publisher for blocking code (Flask, Django, scripts): on boto3, with the same encoding and errors."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

import boto3
import botocore.session
from botocore.config import Config
from botocore.credentials import EnvProvider
from botocore.exceptions import BotoCoreError

from smartpipe.batching.resend import send_with_retries_blocking
from smartpipe.envelope.body_encoding import BodyEncoding
from smartpipe.envelope.encode import source_errors
from smartpipe.envelope.object_store import put_in_memory
from smartpipe.errors import ConfigError, PublishError, PublishFailure
from smartpipe.message import Failure
from smartpipe.names import Naming, physical_name, region_in
from smartpipe.payload_offload import reindex, split_failed
from smartpipe.publisher.prepare import PreparedEvent, Publication, PublishReport, prepare, queue_of
from smartpipe.publisher.publish_many import StoppedGroups, read_chunks
from smartpipe.settings import AwsSettings
from smartpipe.topics import Topic
from smartpipe.transports.aws.addresses import queue_lookup
from smartpipe.transports.aws.client import (
    check_ca_bundle,
    check_urls,
    client_options,
    configuration_faults,
    endpoint_fault,
    put_request,
    region_of,
)
from smartpipe.transports.aws.credentials import refresh_when_refused_blocking
from smartpipe.transports.aws.entries import failures, publish_entries, send_entries
from smartpipe.transports.aws.errors import MISSING, classify
from smartpipe.transports.aws.variables import check_before_signing_blocking, check_variables, read_as_other_sdks_do
from smartpipe.urls import redact

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

    from types_boto3_s3 import S3Client
    from types_boto3_sns import SNSClient
    from types_boto3_sqs import SQSClient

    from smartpipe.errors import TransportError
    from smartpipe.events import Event
    from smartpipe.message import OutgoingMessage, Payload
    from smartpipe.topics import Queue

MAX_CONNECTIONS = 50


class Publisher:
    """Publishes events to their topics, each call in the calling thread. Threads may share one.

    Where the asyncio publisher lets concurrent calls share a request, this one makes one request a
    ``publish``; use ``publish_many`` for many events. A forked process needs one of its own.

    Args:
        source: CloudEvents ``source``: which component publishes, as in ``"signup-api"``.
        deadline_seconds: For how long what SNS refuses for the moment is tried again.

    Raises:
        ConfigError: A source that is empty or longer than 256 characters, a negative time, faulty settings, or no
            region.
    """

    def __init__(self, source: str, *, deadline_seconds: float = 30.0, session: boto3.Session | None = None) -> None:
        problems = source_errors("Publisher", source)
        if deadline_seconds < 0:
            problems.append("Publisher: deadline_seconds cannot be negative")
        if problems:
            raise ConfigError(problems)
        self.source = source
        self._deadline_seconds = deadline_seconds
        self._settings = AwsSettings.load()
        self._encoding = BodyEncoding.from_environment()
        try:
            self._session = session or _session_of_the_environment()
        except BotoCoreError as error:  # a profile that does not exist
            raise ConfigError(f"AWS configuration: {error}") from None
        self._config = Config(max_pool_connections=MAX_CONNECTIONS, **client_options())
        botocore_session = self._session._session  # noqa: SLF001 - where boto3 keeps its configuration
        if session is not None:
            check_variables(botocore_session)
        self._region = region_of(botocore_session)
        check_ca_bundle(botocore_session)
        check_before_signing_blocking(botocore_session)
        refresh_when_refused_blocking(botocore_session)
        for service in ("sns", "sqs", "s3", "sts"):
            check_urls(service)
        here: SNSClient = self._client("sns")
        self._sns = {self._region: here}
        self._sqs: SQSClient | None = None
        self._s3: S3Client | None = None
        self._queue_urls: dict[str, str] = {}
        self._known_account_id = self._settings.account_id
        self._naming: Naming | None = None
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def publish(
        self,
        event: Event,
        *,
        queue: Queue | str | None = None,
        delay_seconds: float | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> str:
        """Publish *event* and return its envelope id; as the asyncio publisher's, in one request of its own.

        On a FIFO topic, publish the events of one key from one thread: order is that of the calls.

        Raises:
            EventTooLarge: Before any I/O.
            PublishError: SNS refused it, or could not be reached until the deadline.
        """
        publication = Publication(event, attributes, queue_of(queue), delay_seconds)
        outgoing = prepare(publication, source=self.source, encoding=self._encoding)
        failed = self._deliver([outgoing])
        if failed:
            raise PublishError([failure for _, failure in failed])
        return outgoing.event_id

    def publish_many(
        self,
        events: Iterable[Event],
        *,
        queue: Queue | str | None = None,
        delay_seconds: float | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> PublishReport:
        """Publish *events*, ten to a request, one request after the other.

        An event that cannot be published does not stop the others, but for those of its key on a FIFO topic.

        Raises:
            PublishError: After every event has been tried: ``failures`` has those not published.
        """
        target = queue_of(queue)
        publications = (Publication(event, attributes, target, delay_seconds) for event in events)
        event_ids: list[str] = []
        failed: list[PublishFailure] = []
        groups = StoppedGroups()
        prepared = partial(prepare, source=self.source, encoding=self._encoding)
        for chunk in read_chunks(publications, prepared, groups, event_ids, failed):
            going, stopped = groups.split_stopped(chunk)
            for outgoing, failure in [*(self._deliver(going) if going else []), *stopped]:
                failed.append(failure)
                groups.stop(outgoing)
        if failed:
            raise PublishError(failed)
        return PublishReport(event_ids)

    def close(self) -> None:
        """Close the connections. Nothing waits to be flushed; a publish after it fails."""
        self._closed = True
        for client in self._sns.values():
            client.close()
        for other in (self._sqs, self._s3):
            if other is not None:
                other.close()

    def _deliver(self, chunk: list[PreparedEvent]) -> list[tuple[PreparedEvent, PublishFailure]]:
        if self._closed:
            closed = Failure(0, "PublisherClosed", "the publisher is closed", retryable=False)
            return [(outgoing, outgoing.make_failure(closed)) for outgoing in chunk]
        destination = chunk[0].destination

        def call(entries: list[PreparedEvent]) -> list[Failure]:
            going, failed = split_failed([self._put(outgoing.message.payload) for outgoing in entries])
            if not going:
                return failed
            messages = [entries[index].message for index in going]
            send = self._publish if isinstance(destination, Topic) else self._send
            return [*failed, *reindex(send(destination.name, messages), going)]

        failed = send_with_retries_blocking(call, chunk, deadline_seconds=self._deadline_seconds)
        return [(outgoing, outgoing.make_failure(failure)) for outgoing, failure in failed]

    def _publish(self, topic: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        target = f"topic {topic!r}"
        try:
            arn = self._topic_arn(topic)
            target = f"topic {arn}"
            entries: Any = publish_entries(messages)
            answer = self._client_of(region_in(arn)).publish_batch(TopicArn=arn, PublishBatchRequestEntries=entries)
        except Exception as error:
            raise classify(error, action="sns:Publish", target=target) from error
        return failures(answer, len(messages))

    def _send(self, queue: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        name = physical_name(self._settings.prefix, queue)
        try:
            with self._lock:
                if self._sqs is None:
                    self._sqs = self._client("sqs")
                if queue not in self._queue_urls:
                    lookup = queue_lookup(self._settings.prefix, queue, self._region)
                    self._queue_urls[queue] = self._sqs.get_queue_url(**lookup)["QueueUrl"]
            entries: Any = send_entries(messages)
            answer = self._sqs.send_message_batch(QueueUrl=self._queue_urls[queue], Entries=entries)
        except Exception as error:
            fault = classify(error, action="sqs:SendMessage", target=f"queue {name!r}")
            if fault.code in MISSING:
                self._queue_urls.pop(queue, None)
            raise fault from error
        return failures(answer, len(messages))

    def _put(self, payload: Payload | None) -> TransportError | None:
        """Write what a message points to into S3 (or, for tests, memory); return what went wrong."""
        at = self._encoding.claim_check
        if payload is None or at is None:
            return None
        if at.scheme == "memory":
            put_in_memory(payload)
            return None
        try:
            with self._lock:
                if self._s3 is None:
                    self._s3 = self._client("s3")
            self._s3.put_object(**put_request(payload, self._account_id()))
        except Exception as error:  # noqa: BLE001 - whatever it is, classified
            return classify(error, action="s3:PutObject", target=payload.url)
        return None

    def _client_of(self, region: str) -> SNSClient:
        """Return the client of a topic's region: one declared by its ARN may have another."""
        with self._lock:
            if region not in self._sns:
                self._sns[region] = self._client("sns", region)
            return self._sns[region]

    def _topic_arn(self, topic: str) -> str:
        if self._naming is None:
            partition = self._sns[self._region].meta.partition
            self._naming = Naming(partition, self._region, self._account_id(), self._settings.prefix)
        return self._naming.topic_arn(topic)

    def _client(self, service: Literal["sns", "sqs", "s3", "sts"], region: str | None = None) -> Any:
        try:
            with configuration_faults():
                client: Any = self._session.client(service, region_name=region or self._region, config=self._config)
        except BotoCoreError as error:  # boto3 asks for credentials now, and its text quotes where
            raise ConfigError(f"AWS configuration: {redact(str(error))}") from None
        fault = endpoint_fault(client.meta.endpoint_url)
        if fault:  # of an AWS profile; those of the environment have been checked
            raise ConfigError(f"AWS configuration: endpoint_url {fault}")
        return client

    def _account_id(self) -> str:
        """Return the account of the settings or, asked for once, of the credentials."""
        with self._lock:
            if self._known_account_id is None:
                sts = self._client("sts")
                self._known_account_id = str(sts.get_caller_identity()["Account"])
            return self._known_account_id


def _session_of_the_environment() -> boto3.Session:
    session = botocore.session.Session()
    check_variables(session)
    read_as_other_sdks_do(session, EnvProvider)
    return boto3.Session(botocore_session=session)
