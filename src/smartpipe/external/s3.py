"""The notifications of Amazon S3, as S3 sends them to a queue or a topic.

Source: Amazon S3 User Guide, "Event message structure".
"""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - Pydantic reads the annotation
from hashlib import sha256
from typing import Annotated, Any
from urllib.parse import unquote_plus

from pydantic import AfterValidator, Field

from smartpipe.external.matchers import field, where
from smartpipe.raw_messages import ExternalModel, Matcher, RawContext, RawMessage

TEST_EVENT = "s3:TestEvent"


class S3Bucket(ExternalModel):
    """The bucket of a notification."""

    name: str
    arn: str | None = None


class S3Object(ExternalModel):
    """The object of a notification.

    Args:
        key: The key of the object. S3 sends it URL-encoded, and the model decodes it: ``my+file.txt`` is read as
            ``my file.txt``.
        sequencer: A hexadecimal number that orders the events of one key.
    """

    key: Annotated[str, AfterValidator(unquote_plus)]
    size: int | None = None
    e_tag: str | None = Field(default=None, alias="eTag")
    version_id: str | None = None
    sequencer: str | None = None


class S3Entity(ExternalModel):
    """The bucket and the object of a notification, and the id of the rule that caused it."""

    configuration_id: str | None = None
    bucket: S3Bucket
    object: S3Object


class S3Record(ExternalModel):
    """One event of S3.

    Args:
        event_name: Such as ``ObjectCreated:Put``, without the prefix ``s3:``.
    """

    event_version: str
    event_source: str
    aws_region: str = ""
    event_time: datetime
    event_name: str
    user_identity: dict[str, Any] = Field(default_factory=dict)
    request_parameters: dict[str, Any] = Field(default_factory=dict)
    response_elements: dict[str, Any] = Field(default_factory=dict)
    s3: S3Entity

    @property
    def bucket(self) -> str:
        """The name of the bucket."""
        return self.s3.bucket.name

    @property
    def key(self) -> str:
        """The key of the object, URL-decoded."""
        return self.s3.object.key


class S3Notification(ExternalModel):
    """A notification of S3, sent to the queue directly or through an SNS topic. S3 sends one record in each today.

    S3 sends ``s3:TestEvent`` when notifications are set up. A queue with a handler of this model deletes it and logs
    ``Ignored`` at the level DEBUG.
    """

    records: tuple[S3Record, ...] = Field(alias="Records")

    @classmethod
    def get_matcher(cls) -> Matcher | None:
        """Select JSON objects whose records come from S3."""
        return where(_has_s3_records)

    @classmethod
    def is_test(cls, message: RawMessage) -> bool:
        """Return whether *message* is ``s3:TestEvent``."""
        return TEST_EVENT in message.body and field("Event", TEST_EVENT)(message)

    def get_context(self) -> RawContext:
        """Return an id that is the same for copies of the notification, the source, and the time of the first event."""
        if not self.records:
            return RawContext()
        sequencers = [record.s3.object.sequencer for record in self.records]
        names = [
            f"{one.event_name}\n{one.bucket}\n{one.key}\n{one.s3.object.version_id}\n{one.s3.object.sequencer}"
            for one in self.records
        ]
        digest = sha256("\n\n".join(names).encode(errors="replace")).hexdigest()
        event_id = f"s3-{digest[:32]}" if all(sequencers) else None  # without a sequencer, two events look alike
        first = self.records[0]
        return RawContext(event_id, first.event_source, first.event_time if first.event_time.tzinfo else None)


def _has_s3_records(message: RawMessage) -> bool:
    records = message.json.get("Records") if isinstance(message.json, dict) else None
    return isinstance(records, list) and any(
        isinstance(one, dict) and str(one.get("eventSource", "")).endswith(":s3") for one in records
    )
