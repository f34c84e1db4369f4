"""Counts how often this process has returned each message to its queue.

SQS counts every delivery, including those of messages that were returned without a failure. The retry policy counts
attempts, and a message that has killed its process is recognized by the number of unexplained deliveries. Only the
deliveries of this process are known, for the latest 10,000 messages. All others count as attempts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smartpipe.consumer.leases import Lease

MAX_REMEMBERED = 10_000


class DeliveryHistory:
    """Counts earlier deliveries by message id.

    ``returned`` has all deliveries that ended here and whose messages will be delivered again. ``skipped`` has those
    among them that no handler saw. They are frequent for messages behind a retried one in a FIFO group.
    """

    def __init__(self) -> None:
        self.returned: dict[str, int] = {}
        self.skipped: dict[str, int] = {}

    def recall(self, lease: Lease) -> None:
        """Write to a new *lease* how often its message was returned before."""
        message_id = lease.message.message_id
        lease.returned = self.returned.get(message_id, 0)
        lease.skipped = self.skipped.get(message_id, 0)

    def record_return(self, lease: Lease) -> None:
        """Count a delivery whose message will be delivered again."""
        remember(self.returned, lease.message.message_id, lease.returned + 1)

    def record_skip(self, lease: Lease) -> None:
        """Count a delivery that no handler saw, and whose message will be delivered again."""
        self.record_return(lease)
        remember(self.skipped, lease.message.message_id, lease.skipped + 1)

    def forget(self, lease: Lease) -> None:
        """Forget a message that will not be delivered again."""
        self.returned.pop(lease.message.message_id, None)
        self.skipped.pop(lease.message.message_id, None)


def remember(counts: dict[str, int], message_id: str, count: int) -> None:
    """Store the *count* of a message; above 10,000 messages, forget the one that was stored first."""
    counts[message_id] = count
    if len(counts) > MAX_REMEMBERED:
        del counts[next(iter(counts))]
