"""Which messages wait for which, of a FIFO queue those of one group, of a standard queue none; and how they ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from smartpipe.consumer.leases import Lease

MAX_REMEMBERED = 10_000

Chain: TypeAlias = "list[Lease]"
"""Messages to be taken one after the other, the first being processed; a deque takes half a kilobyte for one."""


class _Memory(NamedTuple):
    """How often messages were given back by this process, by message id: unbegun ones, and for any reason."""

    unbegun: dict[str, int]
    explained: dict[str, int]


class Groups:
    """Puts received messages into chains.

    Whether a queue is FIFO is told by the queue: messages of a standard queue have groups too, which
    are tenants, and order nothing.

    It also remembers how often messages were given back: without having begun, which a group behind a message that is
    tried again does often, or for any reason that is not a crash. SQS counts these deliveries as well. Only this
    process's own are known, of the latest 10,000 messages. What else is counted is taken for attempts.
    """

    def __init__(self, *, fifo: bool, memory: _Memory | None = None) -> None:
        self._fifo = fifo
        self._chains: dict[str, Chain] = {}
        self._memory = memory or _Memory({}, {})

    def anew(self) -> Groups:
        """Return groups without chains, but with the same memory."""
        return Groups(fifo=self._fifo, memory=self._memory)

    def chain_for(self, lease: Lease) -> Chain | None:
        """Return the new chain that *lease* begins, or None when it has joined one that is under way."""
        group = lease.message.group_id
        if self._memory.explained:
            lease.explained = self._memory.explained.get(lease.message.message_id, 0)
        if not self._fifo or group is None:
            return [lease]
        lease.unbegun = self._memory.unbegun.get(lease.message.message_id, 0)
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
            if again_seconds is not None:
                remember(self._memory.explained, lease.message.message_id, lease.explained + 1)
            elif self._memory.explained:
                self._memory.explained.pop(lease.message.message_id, None)
                self._memory.unbegun.pop(lease.message.message_id, None)
            ended(chain)
        while chain:
            message_id = chain[0].message.message_id
            remember(self._memory.unbegun, message_id, chain[0].unbegun + 1)
            remember(self._memory.explained, message_id, chain[0].explained + 1)
            give_back(chain[0], again_seconds or 0)
            ended(chain)


def remember(counts: dict[str, int], message_id: str, count: int) -> None:
    """Note the *count* of a message, and forget the message that was noted first if there are more than 10,000."""
    counts[message_id] = count
    if len(counts) > MAX_REMEMBERED:
        del counts[next(iter(counts))]
