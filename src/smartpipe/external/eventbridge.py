"""The events of Amazon EventBridge, as a rule sends them to a queue or a topic.

Source: Amazon EventBridge User Guide, "Event structure"; Amazon S3 User Guide, "EventBridge event message structure".
"""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - Pydantic reads the annotation
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from smartpipe.external.matchers import field
from smartpipe.raw_messages import ExternalModel, Matcher, RawContext

D = TypeVar("D")


class EventBridgeEvent(ExternalModel, Generic[D]):
    """An event of EventBridge: ``EventBridgeEvent[OrderDetail]``, or ``EventBridgeEvent[dict]`` for any detail.

    Without a matcher, a handler takes the events of all sources:
    ``subscribe_raw(EventBridgeEvent[OrderDetail], match=field("detail-type", "Order Placed"))``.
    """

    version: str = "0"
    id: str
    detail_type: str = Field(alias="detail-type")
    source: str
    account: str = ""
    time: datetime
    region: str = ""
    resources: tuple[str, ...] = ()
    detail: D
    replay_name: str | None = Field(default=None, alias="replay-name")

    @classmethod
    def get_matcher(cls) -> Matcher | None:
        """Select JSON objects with ``detail-type`` and ``detail``."""
        return field("detail-type") & field("detail")

    def get_context(self) -> RawContext:
        """Return the id, the source and the time of the event."""
        return RawContext(self.id, self.source, self.time if self.time.tzinfo else None)


def _to_kebab(name: str) -> str:
    return name.replace("_", "-")


class _S3Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=_to_kebab, validate_by_name=True)


class S3EventBridgeBucket(_S3Model):
    """The bucket of an event of S3."""

    name: str


class S3EventBridgeObject(_S3Model):
    """The object of an event of S3. EventBridge does not URL-encode its ``key``."""

    key: str
    size: int | None = None
    etag: str | None = None
    version_id: str | None = None
    sequencer: str | None = None


class S3Detail(_S3Model):
    """The detail of an event that S3 sends to EventBridge."""

    bucket: S3EventBridgeBucket
    object: S3EventBridgeObject
    request_id: str | None = None
    requester: str | None = None
    source_ip_address: str | None = None
    reason: str | None = None
    deletion_type: str | None = None


class S3EventBridgeEvent(EventBridgeEvent[S3Detail]):
    """An event of S3 that arrives by EventBridge, such as ``Object Created`` or ``Object Deleted``."""

    @classmethod
    def get_matcher(cls) -> Matcher | None:
        """Select the events of S3 about objects."""
        return field("source", "aws.s3") & field("detail.object")
