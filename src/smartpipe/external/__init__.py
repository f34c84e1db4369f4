"""Models and matchers for messages of other systems, which ``Service.subscribe_raw`` takes."""

from smartpipe.external.eventbridge import EventBridgeEvent, S3Detail, S3EventBridgeEvent
from smartpipe.external.matchers import attribute, field, where
from smartpipe.external.s3 import S3Notification, S3Record
from smartpipe.raw_messages import ExternalModel, Matcher, RawContext, RawMessage

__all__ = [
    "EventBridgeEvent",
    "ExternalModel",
    "Matcher",
    "RawContext",
    "RawMessage",
    "S3Detail",
    "S3EventBridgeEvent",
    "S3Notification",
    "S3Record",
    "attribute",
    "field",
    "where",
]
