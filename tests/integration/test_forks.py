"""Publishers after a fork: one that was used before it is refused, because both processes would share connections."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.shop import Shop

if TYPE_CHECKING:
    from tests.support.proxy import FaultProxy

BLOCKING = """
import os, sys
from smartpipe import ConfigError
from smartpipe.blocking import Publisher
from tests.support.events import OrderPlaced

publisher = Publisher("test")

def publish(order_id):
    publisher.publish(OrderPlaced(order_id=order_id), queue="shop")

def publish_many(order_id):
    publisher.publish_many([OrderPlaced(order_id=order_id)], queue="shop")
"""
ASYNCIO = """
import asyncio, os, sys
from smartpipe import ConfigError, Publisher
from tests.support.events import OrderPlaced

publisher = None
runner = asyncio.Runner()

async def send(order_id):
    global publisher
    publisher = publisher or Publisher("test")
    await publisher.publish(OrderPlaced(order_id=order_id), queue="shop")

def publish(order_id):
    (runner if order_id == "1" else asyncio).run(send(order_id))

publish_many = publish
"""
FORK = """
{before}
child = os.fork()
if child == 0:
    try:
        {call}("2")
    except ConfigError as error:
        print(error, flush=True)
        os._exit(3)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env=dict(os.environ), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("kind", [BLOCKING, ASYNCIO], ids=["blocking", "asyncio"])
@pytest.mark.parametrize("call", ["publish", "publish_many"])
async def test_a_publisher_that_was_used_before_a_fork_is_refused_in_the_child(
    fast_proxy: FaultProxy, kind: str, call: str
) -> None:
    shop = await Shop.provisioned(fast_proxy)

    ended = run(kind + FORK.format(before='publish("1")', call=call))

    assert ended.returncode == 3
    assert "Traceback" not in ended.stderr
    assert "process" in ended.stdout
    assert "create one in each process" in ended.stdout or "open one in each" in ended.stdout
    assert shop.queues.depth("shop") == (1, 0)


STORE = """
import asyncio, os, sys
from smartpipe import ConfigError
from smartpipe.idempotency.open_store import open_store
from smartpipe.idempotency.store import Claim

store = open_store(os.environ["STORE"])

async def claim(number):
    if number == "1":
        await store.open()
    await store.claim([Claim(number, "t", 30, 60)])

def publish(number):
    asyncio.run(claim(number))
"""


@pytest.mark.parametrize("kind", ["postgres_url", "redis_url", "dynamodb_url"])
def test_a_store_that_was_used_before_a_fork_is_refused_in_the_child(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORE", request.getfixturevalue(kind))

    ended = run(STORE + FORK.format(before='publish("1")', call="publish"))

    assert ended.returncode == 3, ended.stderr
    assert ended.stdout.startswith("the store ")
    assert "create one in each process" in ended.stdout


async def test_a_blocking_publisher_that_was_only_created_before_a_fork_works_in_the_child(
    fast_proxy: FaultProxy,
) -> None:
    shop = await Shop.provisioned(fast_proxy)

    ended = run(BLOCKING + FORK.format(before="", call="publish"))

    assert (ended.returncode, ended.stderr) == (0, "")
    assert shop.queues.depth("shop") == (1, 0)


async def test_the_parent_still_publishes_after_its_child_was_refused(fast_proxy: FaultProxy) -> None:
    shop = await Shop.provisioned(fast_proxy)
    program = FORK.format(before='publish("1")', call="publish").replace("sys.exit(", 'publish("3"); sys.exit(')

    ended = run(BLOCKING + program)

    assert (ended.returncode, ended.stderr) == (3, "")
    assert shop.queues.depth("shop") == (2, 0)
