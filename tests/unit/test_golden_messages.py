"""``assert_handles``: a service handles the golden messages of the events that it subscribes to."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import ConfigError, Delivery, Event, Idempotency, Queue, RetryPolicy, Service, Topic
from smartpipe.cli.schema.fixtures import run_fixtures
from smartpipe.contracts.fixtures import read_fixtures
from smartpipe.testing import assert_handles
from smartpipe.testing.broker import entered
from tests.support import golden

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture(scope="module")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("schemas")
    run_fixtures(["tests.support.golden:Sold", "tests.support.golden:Returned"], directory, 2, as_json=False)
    return directory


async def test_a_service_that_handles_every_message_passes_and_each_handler_gets_each_message(schemas: Path) -> None:
    golden.handled.clear()

    count = await assert_handles(golden.fair, schemas)

    messages = [fixture for fixtures in read_fixtures(schemas).values() for fixture in fixtures]
    assert count == len(golden.handled) == len(messages)
    sold = [one.order_id for one in golden.handled if isinstance(one, golden.Sold)]
    assert len(set(sold)) < len(sold), "some have the same idempotency key, and were handled all the same"


async def test_a_transaction_of_the_test_is_used_and_no_claim_hides_a_message(schemas: Path) -> None:
    service, opened = Service("golden-ledger"), []

    @asynccontextmanager
    async def begin() -> AsyncIterator[None]:
        opened.append(1)
        yield

    @service.subscribe(golden.Sold, idempotent=Idempotency(key="iban"))
    async def book(event: golden.Sold, delivery: Delivery) -> None:
        async with delivery.transaction():
            pass

    count = await assert_handles(service, schemas, transaction=begin)

    assert len(opened) == count > 3


async def test_each_message_that_is_not_handled_is_listed_with_its_file_and_reason(schemas: Path) -> None:
    with pytest.raises(AssertionError) as caught:
        await assert_handles(golden.picky, schemas)

    first, *lines = str(caught.value).splitlines()
    path = (schemas / "golden.sold" / "1.2.fixtures.json").as_posix()
    assert first.startswith("service 'golden-picky' does not handle ")
    assert lines[:2] == [
        f"  golden.sold 1.2 full-2 ({path})",
        "    queue golden-picky: retries-exhausted: LookupError: no price list in EUR",
    ]
    assert not any("visa" in line for line in lines)
    assert not entered, "no timeline is printed below"


async def test_data_that_the_class_refuses_is_listed_with_the_field(schemas: Path, tmp_path: Path) -> None:
    source = schemas / "golden.returned" / "1.0.fixtures.json"
    target = tmp_path / "golden.returned" / "1.0.fixtures.json"
    target.parent.mkdir()
    target.write_text(source.read_text().replace('"late"', '"lost"'))

    with pytest.raises(AssertionError, match=r"golden\.returned 1\.0 full-2 .*\n .*invalid-data: .*reason") as caught:
        await assert_handles(golden.fair, schemas / "golden.sold" / "..", tmp_path)

    assert "golden.sold" not in str(caught.value).replace("golden.sold/..", "")


async def test_a_subscribed_event_without_a_message_is_named_with_its_major_version(schemas: Path) -> None:
    with pytest.raises(AssertionError, match=r"without golden messages in .*: golden\.unwritten 3\.x\. Run") as caught:
        await assert_handles(golden.forgetful, schemas)
    assert "No class declares" not in str(caught.value)


async def test_messages_of_a_fifo_queue_and_those_after_an_endless_retry_are_judged(tmp_path: Path) -> None:
    ledger = Topic("golden-ledger", fifo=True)

    class Booked(Event, topic=ledger, type="golden.booked", version="1.0", key="account"):
        account: str
        cents: int

    retry = RetryPolicy(attempts=2, base_seconds=3_600, max_seconds=3_600, on_exhausted="halt")
    service = Service("golden-books", queue=Queue("golden-books", fifo=True), retry=retry)
    seen: list[int] = []

    @service.subscribe(Booked)
    async def book(event: Booked, delivery: Delivery) -> None:
        seen.append(event.cents)
        if event.cents == 13:
            raise ConnectionError("the books are closed")

    envelope = {"specversion": "1.0", "type": "golden.booked", "source": "s", "partitionkey": "a"}
    fixtures = [
        {"name": f"of-{cents}", "message": {**envelope, "id": str(cents), "data": {"account": "a", "cents": cents}}}
        for cents in (1, 13, 2)
    ]
    (tmp_path / "golden.booked").mkdir()
    (tmp_path / "golden.booked" / "1.0.fixtures.json").write_text(json.dumps(fixtures))

    with pytest.raises(AssertionError, match=r"1 of 3 .*\n.* of-13 .*\n.*not settled .*the books are closed"):
        await assert_handles(service, tmp_path)

    assert seen[0] == 1
    assert seen[-1] == 2


async def test_a_directory_that_does_not_exist_and_a_service_without_handlers_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="schema directory .*nowhere' does not exist; run"):
        await assert_handles(golden.fair, tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="service 'idle' has no handlers of events"):
        await assert_handles(Service("idle"), tmp_path)


async def test_messages_of_a_retired_version_are_left_out(schemas: Path, tmp_path: Path) -> None:
    source = schemas / "golden.returned" / "1.0.fixtures.json"
    directory = tmp_path / "golden.returned"
    directory.mkdir()
    (directory / "1.0.fixtures.json").write_text(source.read_text())
    (directory / "1.1.fixtures.json").write_text(source.read_text().replace('"late"', '"lost"'))
    (directory / "1.1.contract.json").write_text('{"retired": true}')
    (tmp_path / "golden.sold").symlink_to(schemas / "golden.sold")

    assert await assert_handles(golden.fair, tmp_path) == await assert_handles(golden.fair, schemas)

    (directory / "1.1.contract.json").write_text('{"retired": false}')
    with pytest.raises(AssertionError, match=r"1\.1\.fixtures\.json"):
        await assert_handles(golden.fair, tmp_path)


async def test_messages_of_an_older_major_version_are_handled_by_upcasters_or_listed(tmp_path: Path) -> None:
    class Weighed(Event, topic=golden.shop, type="golden.weighed", version="2.0"):
        grams: int

    @Weighed.upcast(from_version="1")
    def to_grams(data: dict[str, Any]) -> dict[str, Any]:
        return {"grams": data["kilograms"] * 1_000}

    service, seen = Service("golden-scales"), []

    @service.subscribe(Weighed)
    async def weigh(event: Weighed) -> None:
        seen.append(event.grams)

    def write(version: str, **data: object) -> None:
        envelope = {
            "specversion": "1.0",
            "type": "golden.weighed",
            "source": "s",
            "dataversion": version,
            "id": version,
        }
        file = tmp_path / "golden.weighed" / f"{version}.fixtures.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps([{"name": "minimal", "message": {**envelope, "data": data}}]))

    write("2.0", grams=5)
    with pytest.raises(AssertionError, match=r"without golden messages in .*: golden\.weighed 1\.x\.") as caught:
        await assert_handles(service, tmp_path)
    assert str(caught.value).splitlines()[1] == (
        "No class declares golden.weighed 1.x any more: write messages of this version, which an upcaster takes, to "
        "golden.weighed/1.0.fixtures.json, in the form of the other files"
    )
    contract = tmp_path / "golden.weighed" / "1.0.contract.json"
    contract.write_text('{"type": "golden.weighed", "version": "1.0", "retired": true}')
    assert await assert_handles(service, tmp_path) == 1  # an upcaster may be kept for archives
    contract.unlink()

    write("1.0", kilograms=3)
    assert await assert_handles(service, tmp_path) == 2
    assert seen[-2:] == [3_000, 5]

    write("1.1", pounds=3)
    with pytest.raises(AssertionError, match=r"golden\.weighed 1\.1 minimal .*\n.*upcast-failed: .*kilograms"):
        await assert_handles(service, tmp_path)


async def test_handlers_of_external_messages_need_no_golden_messages(schemas: Path) -> None:
    service = Service("golden-mixed")

    @service.subscribe(golden.Returned)
    async def take(event: golden.Returned) -> None:
        """Do nothing."""

    @service.subscribe_raw(dict)
    async def take_raw(message: dict[str, Any]) -> None:
        """Do nothing."""

    assert await assert_handles(service, schemas) == 4
