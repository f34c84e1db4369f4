"""The first example of the documents: wherever its worker or its relay is killed, everything has happened once."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.transaction_shop import WAITING, kill
from tests.support.processes import smartpipe
from tests.support.proxy import Fault

if TYPE_CHECKING:
    from tests.acceptance.transaction_shop import Shop


# Each example: on a connection of asyncpg, and on a session of SQLAlchemy.
pytestmark = pytest.mark.parametrize("example", ["one_transaction", "session_transaction"], indirect=True)


@pytest.mark.parametrize("table", ["charges", "smartpipe_outbox"])
def test_a_worker_that_is_killed_at_the_effect_or_at_the_event_leaves_neither(shop: Shop, table: str) -> None:
    worker = shop.start_worker()
    shop.locks.execute(f"BEGIN; LOCK TABLE {table}")
    shop.place_order()
    shop.wait_until_stuck(worker, f"INSERT INTO {table}")

    kill(worker)
    shop.locks.execute("ROLLBACK")

    shop.finish()


def test_a_worker_that_is_killed_at_the_completion_leaves_neither_effect_nor_event(shop: Shop) -> None:
    worker = shop.start_worker()
    shop.locks.execute("BEGIN; LOCK TABLE smartpipe_outbox")
    shop.place_order()
    shop.wait_until_stuck(worker, "INSERT INTO smartpipe_outbox")
    shop.database.execute("BEGIN; SELECT FROM smartpipe_claims FOR UPDATE")
    shop.locks.execute("ROLLBACK")
    worker.wait_until(lambda: shop.locks.value(WAITING, "%UPDATE smartpipe_claims%"))

    kill(worker)
    shop.database.execute("ROLLBACK")

    shop.finish()


def test_a_worker_that_is_killed_between_its_commit_and_the_delete_leaves_one_of_each(shop: Shop) -> None:
    lost = shop.proxy.add(Fault("DeleteMessageBatch", drop="request"))
    worker = shop.start_worker()
    shop.place_order()
    worker.wait_until(lambda: lost.hits)
    assert shop.database.column("SELECT order_id FROM charges") == ["1"]

    kill(worker)
    shop.proxy.faults.remove(lost)

    shop.finish()


def test_a_relay_that_is_killed_when_sns_has_taken_the_event_publishes_it_again_under_one_id(shop: Shop) -> None:
    worker = shop.start_worker()
    shop.place_order()
    worker.wait_until(lambda: shop.database.value("SELECT count(*) FROM smartpipe_outbox"))
    worker.signal(signal.SIGTERM)
    worker.wait()
    stalled = shop.proxy.add(Fault("PublishBatch", drop="reply"))
    relay = shop.start("relay")
    relay.wait_until(lambda: stalled.hits)

    kill(relay)
    shop.proxy.faults.remove(stalled)

    relayed = smartpipe("relay", "--once")
    assert relayed.returncode == 0, relayed.stderr
    shop.check()
