"""Which messages wait for which: of a FIFO queue those of one group, of a standard queue none."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from smartpipe.consuming.visibility import Lease

MAX_UNBEGUN = 10_000

Chain: TypeAlias = "list[Lease]"
"""Messages to be taken one after the other, the first being processed; a deque takes half a kilobyte for one."""


class Groups:
    """Puts received messages into chains.

    Whether a queue is FIFO is told by the queue: messages of a standard queue have groups too, which
    are tenants, and order nothing.

    It also remembers how often messages were given back without having begun. SQS counts these
    deliveries as well, and a group behind a message that is tried again has many. Only this process's
    own are known, of the latest 10,000 messages; what else is counted is taken for attempts.
    """

    def __init__(self, *, fifo: bool, unbegun: dict[str, int] | None = None) -> None:
        self._fifo = fifo
        self._chains: dict[str, Chain] = {}
        self._unbegun: dict[str, int] = {} if unbegun is None else unbegun

    def anew(self) -> Groups:
        """Return groups without chains, but with the same memory."""
        return Groups(fifo=self._fifo, unbegun=self._unbegun)

    def chain_for(self, lease: Lease) -> Chain | None:
        """Return the new chain that *lease* begins, or None when it has joined one that is under way."""
        group = lease.message.group_id
        if not self._fifo or group is None:
            return [lease]
        lease.unbegun = self._unbegun.get(lease.message.message_id, 0)
        under_way = self._chains.get(group)
        if under_way is not None:  # SQS hands out no more of it, but where leases of ours were lost
            under_way.append(lease)
            return None
        chain = self._chains[group] = [lease]
        return chain

    def take_over(self, chain: Chain) -> Chain:
        """Return a new chain with the messages of *chain*, which is empty then: its ``run`` does nothing more."""
        taken = chain[:]
        chain.clear()
        group = taken[0].message.group_id
        if self._fifo and group is not None:
            self._chains[group] = taken
        return taken

    def ended(self, chain: Chain) -> Lease:
        """Take the first of *chain* from it, which has been dealt with."""
        lease = chain.pop(0)
        if self._fifo and not chain and lease.message.group_id is not None:
            self._chains.pop(lease.message.group_id, None)
        return lease

    async def run(
        self,
        chain: Chain,
        process: Callable[[Lease], Awaitable[float | None]],
        give_back: Callable[[Lease, float], None],
        ended: Callable[[Chain], object],
    ) -> None:
        """Process a chain's messages one after the other, until one has to come again.

        Those behind it must not overtake it: they are given back to come again together with it. Nor does
        one begin whose lease is lost: somebody else may have it, and its group, by now.

        Args:
            process: Returns in how many seconds the message comes again, or None when it is done with.
            ended: Called when the first message has been dealt with; it calls ``ended`` here.
        """
        again_seconds: float | None = None
        while chain and again_seconds is None and not (self._fifo and chain[0].lost):
            lease = chain[0]
            again_seconds = await process(lease)
            if not chain:  # taken over
                return
            if again_seconds is None and self._unbegun:
                self._unbegun.pop(lease.message.message_id, None)
            ended(chain)
        while chain:
            self._not_begun(chain[0])
            give_back(chain[0], again_seconds or 0)
            ended(chain)

    def _not_begun(self, lease: Lease) -> None:
        self._unbegun[lease.message.message_id] = lease.unbegun + 1
        if len(self._unbegun) > MAX_UNBEGUN:
            del self._unbegun[next(iter(self._unbegun))]
