"""A worker far from its broker, which is stopped or killed while messages that it received ahead wait for a slot."""

from __future__ import annotations

import signal
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.guarantee_services import Ordered
from tests.acceptance.transaction_shop import kill
from tests.support.waiting import until_blocking

if TYPE_CHECKING:
    from tests.acceptance.guarantees import Guaranteed

EVENTS = 1_200


def publish_far_away(guaranteed: Guaranteed) -> None:
    for operation in ("ReceiveMessage", "DeleteMessageBatch", "ChangeMessageVisibilityBatch"):
        guaranteed.inject(operation, delay_seconds=0.05)
    guaranteed.publish(*(Ordered(name=f"event{number}") for number in range(EVENTS)))


@pytest.mark.parametrize("stop", ["drained", "killed"])
def test_a_worker_that_is_stopped_with_messages_received_ahead_loses_none(
    guaranteed: Guaranteed, stop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCEPTANCE_LEASE", "5")
    publish_far_away(guaranteed)
    worker = guaranteed.start_worker()
    until_blocking(lambda: sum(one.operation == "ReceiveMessage" for one in guaranteed.proxy.open_calls) >= 3)

    if stop == "drained":
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        begun = Counter(step.split()[2] for step in guaranteed.find("begun"))
        assert set(begun.values()) == {1}
        assert len(begun) < EVENTS
    else:
        kill(worker)

    guaranteed.start_worker()
    until_blocking(lambda: len({step.split()[1] for step in guaranteed.find("done")}) == EVENTS)
    guaranteed.wait_until_empty()
    if stop == "drained":
        assert len(guaranteed.find("begun")) == EVENTS
