"""Which messages this process has returned to their queue, and how often.

SQS counts every delivery, also of messages that were returned without having failed. The retry policy counts attempts,
and a message that has killed its process is recognized by deliveries that nothing explains. Only the deliveries of this
process are known, of the latest 10,000 messages. All others count as attempts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smartpipe.consumer.leases import Lease

MAX_REMEMBERED = 10_000


class DeliveryHistory:
    """Counts earlier deliveries by message id.

    ``returned`` has all deliveries that ended here and whose messages come again. ``skipped`` has those among them that
    no handler saw, which happens often to messages behind a retried one in a FIFO group.
    """

    def __init__(self) -> None:
        self.returned: dict[str, int] = {}
        self.skipped: dict[str, int] = {}

    def recall(self, lease: Lease) -> None:
        """Tell a new *lease* how often its message was returned before."""
        message_id = lease.message.message_id
        lease.returned = self.returned.get(message_id, 0)
        lease.skipped = self.skipped.get(message_id, 0)

    def record_return(self, lease: Lease) -> None:
        """Count a delivery whose message comes again."""
        remember(self.returned, lease.message.message_id, lease.returned + 1)

    def record_skip(self, lease: Lease) -> None:
        """Count a delivery whose message comes again, and which no handler saw."""
        self.record_return(lease)
        remember(self.skipped, lease.message.message_id, lease.skipped + 1)

    def forget(self, lease: Lease) -> None:
        """Forget a message that does not come again."""
        self.returned.pop(lease.message.message_id, None)
        self.skipped.pop(lease.message.message_id, None)


def remember(counts: dict[str, int], message_id: str, count: int) -> None:
    """Note the *count* of a message; if there are more than 10,000, forget the one that was noted first."""
    counts[message_id] = count
    if len(counts) > MAX_REMEMBERED:
        del counts[next(iter(counts))]
