"""Account movements in order: a failure for one account does not delay other accounts."""

import asyncio

from smartpipe import Event, Queue, RetryPolicy, Service, Topic
from smartpipe.testing import MemoryBroker

ledger = Topic("ledger", fifo=True)


class Moved(Event, topic=ledger, type="account.moved", version="1.0", key="account"):
    account: str
    cents: int


service = Service("ledger", queue=Queue("ledger", fifo=True), retry=RetryPolicy(attempts=5, base_seconds=30))
balances: dict[str, list[int]] = {}
bank_is_closed = iter([True, True, False])


@service.subscribe(Moved)
async def book(event: Moved) -> None:
    if event.account == "ada" and event.cents == 200 and next(bank_is_closed):
        raise ConnectionError("the bank is closed")
    balances.setdefault(event.account, []).append(event.cents)


async def main() -> None:
    async with MemoryBroker(service) as broker:
        for cents in (100, 200, 300):
            for account in ("ada", "bob"):
                await broker.publish(Moved(account=account, cents=cents))
        await broker.drain()

        print("ada", balances["ada"], "after", len(broker.retried(Moved)), "retries of 200")
        print("bob", balances["bob"])


if __name__ == "__main__":
    asyncio.run(main())
