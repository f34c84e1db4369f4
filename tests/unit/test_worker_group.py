"""Several services in one process."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import pytest

from smartpipe import ConfigError, Publisher, Queue, Service, TopologyError
from smartpipe.settings import WorkerSettings
from smartpipe.testing import virtual_time
from smartpipe.topology.derive import derive
from smartpipe.transports.memory.transport import NAMING, MemoryTransport
from smartpipe.worker.group import WorkerGroup, refuse_conflicts
from tests.support.events import ADA, UserSignedUp
from tests.support.processes import http_status
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


def subscribed(name: str, seen: list[str], **options: Any) -> Service:
    service = Service(name, **options)

    @service.subscribe(UserSignedUp)
    async def handle(event: UserSignedUp) -> None:
        seen.append(name)

    return service


def make_group(*services: Service, **options: Any) -> tuple[WorkerGroup, MemoryTransport]:
    transport = MemoryTransport()
    transport.apply(derive(services, NAMING))
    settings = WorkerSettings.load(host="127.0.0.1", port=0, wait_seconds=1, drain_seconds=5)
    return WorkerGroup(services, transport, settings, **options), transport


def get(url: str) -> str:
    with urlopen(url, timeout=5) as answer:
        return str(answer.read().decode())


async def test_all_services_handle_their_events_and_share_one_health_port() -> None:
    seen: list[str] = []
    group, transport = make_group(subscribed("mail", seen), subscribed("audit", seen))
    running = asyncio.create_task(group.run())
    await until(lambda: all(worker.ready for worker in group.workers))
    async with Publisher("test", transport=transport) as publisher:
        await publisher.publish(ADA)
    await until(lambda: len(seen) == 2)

    live = await asyncio.to_thread(http_status, group.health.url + "/livez")
    ready = await asyncio.to_thread(http_status, group.health.url + "/readyz")
    metrics = await asyncio.to_thread(get, group.health.url + "/metrics")
    group.stop()

    assert await running == 0
    assert sorted(seen) == ["audit", "mail"]
    assert (live[0], live[1]["alive"], ready[0], ready[1]["ready"]) == (200, True, 200, True)
    assert ready[1]["services"] == {"mail": {"ready": True}, "audit": {"ready": True}}
    assert list(ready[1]["queues"]) == ["mail", "audit"]
    for name in ("mail", "audit"):
        assert f'smartpipe_messages_total{{service="{name}",queue="{name}",outcome="handled"}} 1\n' in metrics
    assert metrics.count("# TYPE smartpipe_messages_total counter") == 1
    assert 'smartpipe_handlers_overdue{service="mail,audit"} 0\n' in metrics


async def test_a_drain_lets_the_handlers_of_all_services_finish() -> None:
    ended: list[str] = []
    services = [Service("mail"), Service("audit")]
    begun = set[str]()
    for service in services:

        @service.subscribe(UserSignedUp)
        async def handle(event: UserSignedUp, name: str = service.name) -> None:
            begun.add(name)
            await asyncio.sleep(0.3)
            ended.append(name)

    group, transport = make_group(*services)
    running = asyncio.create_task(group.run())
    async with Publisher("test", transport=transport) as publisher:
        await publisher.publish(ADA)
    await until(lambda: len(begun) == 2)

    group.stop()
    group.stop()

    assert await running == 0
    assert sorted(ended) == ["audit", "mail"]


async def test_a_cancelled_group_cancels_its_services() -> None:
    seen: list[str] = []
    group, _ = make_group(subscribed("mail", seen), subscribed("audit", seen))
    before = asyncio.all_tasks()
    running = asyncio.create_task(group.run())
    await until(lambda: all(worker.ready for worker in group.workers))

    running.cancel()
    async with asyncio.timeout(45):
        await asyncio.wait([running])

    assert running.cancelled()
    services = {one for one in asyncio.all_tasks() - before if "run_service" in repr(one.get_coro())}
    assert services == set()


async def test_the_missing_resources_of_all_services_are_reported_together() -> None:
    async def fail(service: Service) -> None:
        raise TopologyError([f"missing: queue {service.name}", "run `smartpipe topology apply`"])

    group, _ = make_group(subscribed("mail", []), subscribed("audit", []), verify=lambda service: lambda: fail(service))

    with pytest.raises(TopologyError) as caught:
        await group.run()

    assert sorted(caught.value.problems) == [
        "missing: queue audit",
        "missing: queue mail",
        "run `smartpipe topology apply`",
    ]


async def test_if_the_lifespan_of_one_service_fails_the_others_drain_and_the_process_exits_with_1(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def broken() -> AsyncIterator[None]:
        raise OSError("no database")
        yield

    group, _ = make_group(subscribed("mail", []), subscribed("audit", [], lifespan=broken))
    with caplog.at_level(logging.INFO, "smartpipe.worker"):
        code = await asyncio.wait_for(group.run(), 20)

    assert code == 1
    assert any(line.startswith("draining: audit has ended") for line in caplog.messages)


def test_two_services_may_not_receive_from_one_queue() -> None:
    queue = Queue("shared")

    with pytest.raises(ConfigError, match="queue 'shared' is claimed by two services: mail .* and audit"):
        refuse_conflicts([subscribed("mail", [], queue=queue), subscribed("audit", [], queue=queue)])


def test_a_queue_may_not_be_the_dead_letter_queue_of_another_service() -> None:
    with pytest.raises(ConfigError, match="queue 'mail-dlq' is claimed by two services"):
        refuse_conflicts([subscribed("mail", []), subscribed("audit", [], queue="mail-dlq")])


def test_two_services_may_not_have_one_name() -> None:
    with pytest.raises(ConfigError, match="two services are called 'mail'"):
        refuse_conflicts([subscribed("mail", []), subscribed("mail", [], queue="other")])


async def test_a_message_that_may_have_killed_its_process_waits_for_the_messages_of_all_services() -> None:
    group, _ = make_group(subscribed("mail", []), subscribed("audit", []))

    isolations = {id(worker._isolation) for worker in group.workers}
    capacities = {id(worker.capacity) for worker in group.workers}

    assert len(isolations) == len(capacities) == 1


async def test_a_hard_stop_cancels_the_handlers_of_all_services() -> None:
    services = [Service("mail", timeout_seconds=None), Service("audit", timeout_seconds=None)]
    begun = 0
    for service in services:

        @service.subscribe(UserSignedUp)
        async def handle(event: UserSignedUp) -> None:
            nonlocal begun
            begun += 1
            await asyncio.sleep(10_000)

    group, transport = make_group(*services)
    with virtual_time():
        running = asyncio.create_task(group.run())
        async with Publisher("test", transport=transport) as publisher:
            await publisher.publish(ADA)
        await until(lambda: begun == 2)
        group.kill("SIGINT")
        assert await running == 1

    assert [worker.consumers[0].counters.cancelled for worker in group.workers] == [1, 1]


@pytest.mark.parametrize("concurrency", [1, 7])
async def test_a_process_has_the_slots_of_all_its_services(concurrency: int) -> None:
    services = [subscribed("mail", []), subscribed("audit", [])]
    settings = WorkerSettings.load(host="127.0.0.1", port=0, concurrency=concurrency)

    group = WorkerGroup(services, MemoryTransport(), settings)

    assert group.workers[0].capacity._limit == 2 * concurrency


async def test_an_error_of_one_service_is_raised_after_the_others_have_drained() -> None:
    async def fail(service: Service) -> None:
        if service.name == "mail":
            raise ConfigError("no credentials")

    group, _ = make_group(subscribed("mail", []), subscribed("audit", []), verify=lambda service: lambda: fail(service))

    with virtual_time(), pytest.raises(ConfigError, match="no credentials"):
        await group.run()
    assert not any(worker.ready for worker in group.workers)


async def test_a_cancelled_group_ends_after_the_lifespans_of_its_services() -> None:
    order: list[str] = []

    def lifespan_of(name: str) -> Callable[[], AsyncIterator[None]]:
        async def lifespan() -> AsyncIterator[None]:
            try:
                yield
            finally:
                await asyncio.sleep(1)
                order.append(name)

        return lifespan

    group, _ = make_group(*(subscribed(name, [], lifespan=lifespan_of(name)) for name in ("mail", "audit")))
    with virtual_time():
        running = asyncio.create_task(group.run())
        await until(lambda: all(worker.ready for worker in group.workers))
        running.cancel()
        await asyncio.wait([running])

    assert sorted(order) == ["audit", "mail"]
