"""Workers whose deletes, extensions and dead letters fail on the wire: before a broker stands a proxy."""

from __future__ import annotations

import json
from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING

import pytest

from smartpipe.testing import working
from tests.support.answers import Refused, failing, silent_about
from tests.support.proxy import Fault
from tests.support.shop import Shop
from tests.support.waiting import until

if TYPE_CHECKING:
    from smartpipe.worker.worker import Worker
    from tests.support.calls import Call
    from tests.support.proxy import FaultProxy, Rewrite

EXTEND = "ChangeMessageVisibilityBatch"
INTERNAL = Refused("InternalError", sender_fault=False)


def deadlines(worker: Worker) -> dict[str, float]:
    """Until when each message is thought to be ours, by its receipt handle."""
    return {receipt: lease.deadline for receipt, lease in worker.consumers[0].leases._leases.items()}


def receipts(call: Call) -> list[str]:
    return [entry["ReceiptHandle"] for entry in call.entries]


@pytest.mark.parametrize("rewrite", [failing({0: INTERNAL}), silent_about(0)], ids=["14-failed", "26-not-mentioned"])
async def test_fault_14_and_26_only_the_failed_entry_of_a_delete_is_sent_again(
    each_proxy: FaultProxy, rewrite: Rewrite
) -> None:
    shop = await Shop.provisioned(each_proxy)
    each_proxy.add(Fault("DeleteMessageBatch", times=1, rewrite=rewrite))
    await shop.put("1", "2", "3")
    async with working(shop.service) as worker:
        await shop.emptied()

    deletes = [receipts(call) for call in each_proxy.calls if call.operation == "DeleteMessageBatch"]
    assert [receipt for receipt, times in Counter(chain(*deletes)).items() if times > 1] == [deletes[0][0]]
    assert set(shop.seen) == {"1", "2", "3"}
    assert worker.consumers[0].counters.not_deleted == 0


async def test_fault_14_a_delete_whose_response_is_lost_is_repeated_and_is_not_a_failure(
    each_proxy: FaultProxy,
) -> None:
    shop = await Shop.provisioned(each_proxy)
    each_proxy.add(Fault("DeleteMessageBatch", times=1, drop="reply"))
    await shop.put("1")
    async with working(shop.service) as worker:
        await until(lambda: each_proxy.operations().count("DeleteMessageBatch") >= 2)
        await shop.emptied()

    first, again = [receipts(call) for call in each_proxy.calls if call.operation == "DeleteMessageBatch"][:2]
    assert again == first
    assert worker.consumers[0].counters.not_deleted == 0


async def test_fault_14_a_delete_without_a_response_leaves_time_for_another(
    fast_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smartpipe.consumer.settle.CALL_SECONDS", 1)
    shop = await Shop.provisioned(fast_proxy)
    fast_proxy.add(Fault("DeleteMessageBatch", times=1, delay_seconds=600))
    await shop.put("1")
    async with working(shop.service) as worker:
        await shop.emptied()

    first, *others = [receipts(call) for call in fast_proxy.calls if call.operation == "DeleteMessageBatch"]
    assert first in others
    assert worker.consumers[0].counters.not_deleted == 0


@pytest.mark.usefixtures("restless")
async def test_fault_30_of_ten_leases_only_the_one_that_cannot_be_extended_is_lost(fast_proxy: FaultProxy) -> None:
    shop = await Shop.provisioned(fast_proxy)
    shop.release.clear()
    gone = Refused("AWS.SimpleQueueService.MessageNotInflight", sender_fault=True)
    fault = fast_proxy.add(
        Fault(EXTEND, times=1, rewrite=failing({4: gone, 6: INTERNAL}), when=lambda call: len(call.entries) == 10)
    )
    await shop.put(*map(str, range(10)))
    async with working(shop.service) as worker:
        await until(lambda: fault.hits and worker.consumers[0].counters.lease_lost)
        calls = [receipts(call) for call in fast_proxy.calls if call.operation == EXTEND]
        ten = [entries for entries in calls if len(entries) == 10][-1]
        before = deadlines(worker)
        fast_proxy.calls.clear()
        await until(lambda: fast_proxy.operations().count(EXTEND) >= 2)
        lost = [delivery.lease_lost for delivery in shop.deliveries]
        later = [receipts(call) for call in fast_proxy.calls if call.operation == EXTEND]
        extended = [receipt for receipt, deadline in deadlines(worker).items() if deadline > before[receipt]]
        shop.release.set()
        await shop.emptied()

    assert sorted(lost) == [False] * 9 + [True]
    assert later[1] == extended == [receipt for receipt in ten if receipt != ten[4]]


async def test_fault_46_a_dead_letter_whose_delete_fails_is_copied_twice_and_not_lost(
    fast_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smartpipe.consumer.settle.DEADLINE_SECONDS", 0)
    shop = await Shop.provisioned(fast_proxy, lease_seconds=1)
    fast_proxy.add(Fault("DeleteMessageBatch", times=1, answer=(500, "InternalError", "try later")))
    await shop.put("reject")
    async with working(shop.service) as worker:
        await until(lambda: worker.consumers[0].counters.dead_lettered >= 2)
        await shop.emptied()

    ids = [json.loads(letter["Body"])["id"] for letter in shop.queues.take("shop-dlq")]
    assert len(ids) >= 2
    assert set(ids) == {shop.deliveries[0].event_id}
    assert worker.consumers[0].counters.not_deleted >= 1
