"""Which messages wait for which: of a FIFO queue those of one group, of a standard queue none."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from smartpipe.visibility import Lease

MAX_UNBEGUN = 10_000

Chain: TypeAlias = "deque[Lease]"
"""Messages to be taken one after the other; the first is being processed."""


class Groups:
    """Puts received messages into chains.

    Whether a queue is FIFO is told by the queue: messages of a standard queue have groups too, which
    are tenants, and order nothing.

    It also remembers how often messages were given back without having begun. SQS counts these
    deliveries as well, and a group behind a message that is tried again has many. Only this process's
    own are known, of the latest 10,000 messages; what else is counted is taken for attempts.
    """

    def __init__(self, *, fifo: bool) -> None:
        self._fifo = fifo
        self._chains: dict[str, Chain] = {}
        self._unbegun: dict[str, int] = {}

    def chain_for(self, lease: Lease) -> Chain | None:
        """Return the new chain that *lease* begins, or None when it has joined one that is under way."""
        group = lease.message.group_id
        if not self._fifo or group is None:
            return deque([lease])
        lease.unbegun = self._unbegun.get(lease.message.message_id, 0)
        under_way = self._chains.get(group)
        if under_way is not None:  # SQS hands out no more of it, but where leases of ours were lost
            under_way.append(lease)
            return None
        chain = self._chains[group] = deque([lease])
        return chain

    def ended(self, chain: Chain) -> Lease:
        """Take the first of *chain* from it, which has been dealt with."""
        lease = chain.popleft()
        if self._fifo and not chain and lease.message.group_id is not None:
            self._chains.pop(lease.message.group_id, None)
        return lease

    def stops_at(self, lease: Lease) -> bool:
        """Return whether *lease* must not begin: somebody else may have it, and its group, by now."""
        return self._fifo and lease.lost

    def done_with(self, lease: Lease) -> None:
        """Forget it."""
        self._unbegun.pop(lease.message.message_id, None)

    def not_begun(self, lease: Lease) -> None:
        """Take note that this delivery is given back without a handler having seen it."""
        self._unbegun[lease.message.message_id] = lease.unbegun + 1
        if len(self._unbegun) > MAX_UNBEGUN:
            del self._unbegun[next(iter(self._unbegun))]
