"""Development: after a change of the sources, the workers run the new code."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from smartpipe import Event, Topic
from smartpipe.blocking import Publisher
from tests.support.processes import Process, smartpipe
from tests.support.waiting import until_blocking

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from smartpipe import EmbeddedBroker

SHOP = """
import time
from pathlib import Path
from smartpipe import Event, Service, Topic

class Ordered(Event, topic=Topic("orders"), type="reload.ordered", version="1.0"):
    name: str

service = Service("shop")

@service.subscribe(Ordered)
async def ship(event: Ordered) -> None:
    if event.name == "stuck":
        Path("happened").write_text("stuck\\n")
        time.sleep(300)
    with Path("happened").open("a") as file:
        file.write(f"{event.name} GREETING\\n")
"""


class Ordered(Event, topic=Topic("orders"), type="reload.ordered", version="1.0"):
    name: str


@pytest.fixture
def shop(fast_broker: EmbeddedBroker, tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    assert smartpipe("topology", "apply", "--yes", "shop:service", directory=str(tmp_path)).returncode == 0
    return tmp_path


@pytest.fixture
def worker(shop: Path) -> Iterator[Process]:
    arguments = ("worker", "shop:service", "--reload", "--drain-seconds", "2", "--host", "127.0.0.1", "--port", "0")
    process = Process(*arguments, directory=str(shop))
    process.wait_until(lambda: process.logged("ready"))
    yield process
    process.end()


def times_logged(process: Process, start: str) -> int:
    return sum(record["message"].startswith(start) for record in process.records)


def order(name: str) -> None:
    with Publisher("test") as publisher:
        publisher.publish(Ordered(name=name))


def test_after_a_change_the_new_code_runs(shop: Path, worker: Process) -> None:
    happened = shop / "happened"
    order("ada")
    until_blocking(lambda: happened.exists() and happened.read_text() == "ada GREETING\n")

    (shop / "shop.py").write_text(SHOP.replace("GREETING", "says hello"))
    worker.wait_until(lambda: times_logged(worker, "ready") >= 2)
    order("bob")

    until_blocking(lambda: happened.read_text() == "ada GREETING\nbob says hello\n")
    assert worker.logged("changed: shop.py; restarting") is not None
    worker.signal(signal.SIGINT)
    assert worker.wait() == 0
    assert times_logged(worker, "stopped: received 1, handled 1") == 2


def test_a_handler_that_blocks_the_drain_only_delays_the_reload(shop: Path, worker: Process) -> None:
    order("stuck")
    until_blocking((shop / "happened").exists)

    (shop / "shop.py").write_text(SHOP.replace("GREETING", "says hello"))

    worker.wait_until(lambda: times_logged(worker, "ready") >= 2)
    assert worker.logged("killing 1: not drained within 7 s") is not None
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


def test_after_an_error_in_a_change_the_supervisor_waits_for_the_next_change(shop: Path, worker: Process) -> None:
    (shop / "shop.py").write_text(SHOP + "\ndef broken(:\n")
    worker.wait_until(lambda: worker.logged("process 1 ended unexpectedly: exit code 2; waiting for a change"))

    assert any(
        ": SyntaxError" in line and "cannot import TARGET" in line and "shop.py:19" in line for line in worker.lines
    )

    (shop / "shop.py").write_text(SHOP)
    worker.wait_until(lambda: times_logged(worker, "ready") >= 2)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


def test_a_wrong_target_at_the_start_is_reported_in_one_line(shop: Path) -> None:
    result = smartpipe("worker", "shop:nothing", "--reload", directory=str(shop))

    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert line == "smartpipe: TARGET 'shop:nothing': shop has no attribute 'nothing'; its services: service"
