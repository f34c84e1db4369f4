"""The publisher for blocking code (Flask, Django, scripts): on boto3, with the same encoding and errors."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Self

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from smartpipe.attempts import deliver_blocking
from smartpipe.aws.client import client_options, region_of
from smartpipe.aws.entries import failures, publish_entries
from smartpipe.aws.faults import classify
from smartpipe.errors import ConfigError, PublishError, PublishFailure
from smartpipe.message import Failure
from smartpipe.outgoing import Outgoing, PublishReport, TopicChunks, prepare
from smartpipe.settings import AwsSettings
from smartpipe.topology.naming import Naming

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    from types_boto3_sns import SNSClient

    from smartpipe.events import Event
    from smartpipe.topology.model import Topic

MAX_CONNECTIONS = 50


class Publisher:
    """Publishes events to their topics, each call in the calling thread. Threads may share one.

    Where the asyncio publisher lets concurrent calls share a request, this one makes one request a
    ``publish``; use ``publish_many`` for many events. A forked process needs one of its own.

    Args:
        source: CloudEvents ``source``: which component publishes, as in ``"signup-api"``.
        deadline_seconds: For how long what SNS refuses for the moment is tried again.

    Raises:
        ConfigError: An empty source, a negative time, faulty settings or no region.
    """

    def __init__(self, source: str, *, deadline_seconds: float = 30.0, session: boto3.Session | None = None) -> None:
        if not source or deadline_seconds < 0:
            msg = "Publisher: source is empty or deadline_seconds is negative; write Publisher('signup-api')"
            raise ConfigError(msg)
        self.source = source
        self._deadline_seconds = deadline_seconds
        self._settings = AwsSettings.load()
        try:
            self._session = session or boto3.Session()
        except BotoCoreError as error:  # a profile that does not exist
            raise ConfigError(f"AWS configuration: {error}") from None
        self._config = Config(max_pool_connections=MAX_CONNECTIONS, **client_options())
        self._region = region_of(self._session._session)  # noqa: SLF001 - where boto3 keeps its configuration
        self._sns: SNSClient = self._session.client("sns", region_name=self._region, config=self._config)
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

    def publish(self, event: Event, *, attributes: Mapping[str, str] | None = None) -> str:
        """Publish *event* and return its envelope id; as the asyncio publisher's, in one request of its own.

        Raises:
            EventTooLarge: Before any I/O.
            PublishError: SNS refused it, or could not be reached until the deadline.
        """
        outgoing = prepare(event, source=self.source, attributes=attributes)
        failed = self._deliver([outgoing])
        if failed:
            raise PublishError(failed)
        return outgoing.event_id

    def publish_many(self, events: Iterable[Event], *, attributes: Mapping[str, str] | None = None) -> PublishReport:
        """Publish *events*, ten to a request, one request after the other.

        Raises:
            PublishError: After every event has been tried: ``failures`` has those not published.
        """
        event_ids: list[str] = []
        failed: list[PublishFailure] = []
        chunks = TopicChunks()
        for event in events:
            try:
                outgoing = prepare(event, source=self.source, attributes=attributes)
            except PublishError as error:
                failed.extend(error.failures)
                continue
            event_ids.append(outgoing.event_id)
            chunk = chunks.add(outgoing)
            if chunk is not None:
                failed.extend(self._deliver(chunk))
        for chunk in chunks.take():
            failed.extend(self._deliver(chunk))
        if failed:
            raise PublishError(failed)
        return PublishReport(event_ids)

    def close(self) -> None:
        """Close the connections. Nothing waits to be flushed; a publish after it fails."""
        self._closed = True
        self._sns.close()

    def _deliver(self, chunk: list[Outgoing]) -> list[PublishFailure]:
        if self._closed:
            closed = Failure(0, "PublisherClosed", "the publisher is closed", retryable=False)
            return [outgoing.failed(closed) for outgoing in chunk]

        def call(entries: list[Outgoing]) -> list[Failure]:
            return self._publish(chunk[0].topic, entries)

        failed = deliver_blocking(call, chunk, deadline_seconds=self._deadline_seconds)
        return [outgoing.failed(failure) for outgoing, failure in failed]

    def _publish(self, topic: Topic, entries: list[Outgoing]) -> list[Failure]:
        target = f"topic {topic.name!r}"
        try:
            arn = self._topic_arn(topic)
            target = f"topic {arn}"
            messages: Any = publish_entries([outgoing.message for outgoing in entries])
            answer = self._sns.publish_batch(TopicArn=arn, PublishBatchRequestEntries=messages)
        except Exception as error:
            raise classify(error, action="sns:Publish", target=target) from error
        return failures(answer, len(entries))

    def _topic_arn(self, topic: Topic) -> str:
        with self._lock:
            if self._naming is None:
                account_id = self._settings.account_id
                if account_id is None:
                    sts = self._session.client("sts", region_name=self._region, config=self._config)
                    account_id = sts.get_caller_identity()["Account"]
                self._naming = Naming(self._sns.meta.partition, self._region, account_id, self._settings.prefix)
        return self._naming.topic_arn(topic.name)
