"""The transactional outbox: an event is published if and only if the transaction that wrote it commits."""

from smartpipe.outbox.alembic import include_object
from smartpipe.outbox.outbox import Outbox
from smartpipe.outbox.relay import Relay, RelayOptions

__all__ = ["Outbox", "Relay", "RelayOptions", "include_object"]
