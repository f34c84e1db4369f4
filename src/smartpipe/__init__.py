"""Event-driven pub/sub for Python on Amazon SNS and SQS: smart endpoints, dumb pipes.

Names are imported at their first use, so that ``import smartpipe`` is fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smartpipe.version import __version__

if TYPE_CHECKING:
    from smartpipe.batch import Batch, BatchDelivery
    from smartpipe.consumer.breaker import CircuitBreaker
    from smartpipe.delivery import Delivery
    from smartpipe.errors import (
        ConfigError,
        DecodeError,
        EventTooLarge,
        MessageError,
        PublishError,
        PublishFailure,
        Reject,
        Retry,
        SmartpipeError,
        StoreError,
        TopologyError,
        TransportError,
        UnknownEventType,
    )
    from smartpipe.events import Event
    from smartpipe.failures import DeliveryFailure
    from smartpipe.filter_policy import FilterPolicy
    from smartpipe.idempotency.store import Idempotency
    from smartpipe.local import EmbeddedBroker
    from smartpipe.publisher.prepare import PublishReport
    from smartpipe.publisher.publisher import Publisher
    from smartpipe.retry import RetryPolicy
    from smartpipe.service import Service
    from smartpipe.topics import Queue, Topic
    from smartpipe.transport import Transport
    from smartpipe.worker.worker import Worker

__all__ = [
    "Batch",
    "BatchDelivery",
    "CircuitBreaker",
    "ConfigError",
    "DecodeError",
    "Delivery",
    "DeliveryFailure",
    "EmbeddedBroker",
    "Event",
    "EventTooLarge",
    "FilterPolicy",
    "Idempotency",
    "MessageError",
    "PublishError",
    "PublishFailure",
    "PublishReport",
    "Publisher",
    "Queue",
    "Reject",
    "Retry",
    "RetryPolicy",
    "Service",
    "SmartpipeError",
    "StoreError",
    "Topic",
    "TopologyError",
    "Transport",
    "TransportError",
    "UnknownEventType",
    "Worker",
    "__version__",
]

_ERRORS = {name for name in __all__ if name.endswith("Error")} | {
    "EventTooLarge",
    "PublishFailure",
    "Reject",
    "Retry",
    "UnknownEventType",
}
_MODULES = {
    "Batch": "batch",
    "BatchDelivery": "batch",
    "CircuitBreaker": "consumer.breaker",
    "Delivery": "delivery",
    "DeliveryFailure": "failures",
    "EmbeddedBroker": "local",
    "Event": "events",
    "FilterPolicy": "filter_policy",
    "Idempotency": "idempotency.store",
    "PublishReport": "publisher.prepare",
    "Publisher": "publisher.publisher",
    "Queue": "topics",
    "RetryPolicy": "retry",
    "Service": "service",
    "Topic": "topics",
    "Transport": "transport",
    "Worker": "worker.worker",
    **dict.fromkeys(_ERRORS, "errors"),
}


def __getattr__(name: str) -> object:
    """Import *name* from its module at its first use."""
    from importlib import import_module

    if name not in _MODULES:
        msg = f"module 'smartpipe' has no attribute {name!r}"
        raise AttributeError(msg)
    value = globals()[name] = getattr(import_module(f"smartpipe.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    """Return the public names, whether they have been imported or not."""
    return [*globals(), *__all__]
