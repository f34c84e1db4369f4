"""The resources of a process: the order in which they open and close, and those of another owner."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import PublishError, Service, StoreError
from smartpipe.consumer.isolation import Isolation
from smartpipe.consumer.threads import Threads
from smartpipe.errors import ConfigError
from smartpipe.idempotency.claims import Claims
from smartpipe.idempotency.stores.memory import MemoryStore
from smartpipe.settings import ConcurrencySettings
from smartpipe.worker.runtime import Bounds, Shared, open_runtime
from tests.support.events import ADA, UserSignedUp
from tests.support.fakes import FakeTransport
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SETTINGS = ConcurrencySettings(concurrency=4)


class RecordingStore(MemoryStore):
    """A store that records when it is opened and closed, and cannot be opened the first *failures* times."""

    def __init__(self, order: list[str], failures: int = 0) -> None:
        super().__init__()
        self.order, self.failures = order, failures

    async def open(self) -> None:
        if self.failures:
            self.failures -= 1
            raise StoreError("nobody listens")
        self.order.append("store opens")
        await super().open()

    async def aclose(self) -> None:
        self.order.append("store closes")
        await super().aclose()


def make_service(order: list[str], *, idempotent: bool = True) -> Service:
    async def lifespan() -> AsyncIterator[str]:
        order.append("lifespan opens")
        yield "the state"
        order.append("lifespan closes")

    service = Service("mailer", lifespan=lifespan)

    @service.subscribe(UserSignedUp, idempotent=idempotent)
    async def handle(event: UserSignedUp) -> None: ...

    return service


def make_bounds(order: list[str], *, stopping: bool = False, close_seconds: float = 3) -> Bounds:
    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        order.append("bound begins")
        yield
        order.append("bound ends")

    event = asyncio.Event()
    if stopping:
        event.set()
    return Bounds(event, lifespan, lambda: close_seconds)


ORDER = ["store opens", "lifespan opens", "inside", "lifespan closes", "store closes"]
BOUND = ["store opens", "bound begins", *ORDER[1:4], "bound ends", "store closes"]


@pytest.mark.parametrize("bounded", [False, True])
def test_the_lifespan_opens_last_and_closes_first(bounded: bool) -> None:
    order: list[str] = []

    async def main() -> None:
        transport, isolation = FakeTransport(), Isolation()
        bounds = make_bounds(order) if bounded else None
        service = make_service(order)
        async with open_runtime(service, transport, SETTINGS, store=RecordingStore(order), bounds=bounds) as runtime:
            order.append("inside")
            resources = runtime.resources(isolation)
            assert (resources.state, resources.isolation) == ("the state", isolation)
            assert resources.publisher is runtime.publisher
            assert resources.payloads is runtime.publisher.payloads
            assert (resources.claims, resources.threads) == (runtime.claims, runtime.threads)
            assert runtime.resources().isolation is None
            assert runtime.publisher.source == "mailer"
            assert runtime.threads.capacity._limit == 4
        assert (transport.closed, runtime.unpublished) == (0, 0)
        with pytest.raises(PublishError, match="closed"):
            await runtime.publisher.publish(ADA)

    run_virtually(main())
    assert order == (BOUND if bounded else ORDER)


def test_a_lifespan_may_publish_while_it_closes() -> None:
    transport = FakeTransport()
    publishers: list[Any] = []

    async def lifespan() -> AsyncIterator[None]:
        yield
        await publishers[0].publish(ADA)

    service = Service("mailer", lifespan=lifespan)

    async def main() -> None:
        async with open_runtime(service, transport, SETTINGS) as runtime:
            publishers.append(runtime.publisher)
            assert runtime.claims is None

    run_virtually(main())
    assert transport.batches("publish") == [1]


@pytest.mark.parametrize("bounded", [False, True])
def test_shared_threads_and_claims_are_used_and_stay_open(bounded: bool) -> None:
    order: list[str] = []

    async def main() -> None:
        store = RecordingStore([])
        shared = Shared(Threads(3), Claims(store))
        bounds = make_bounds([]) if bounded else None
        async with open_runtime(
            make_service(order), FakeTransport(), SETTINGS, shared=shared, store=RecordingStore(order), bounds=bounds
        ) as runtime:
            assert (runtime.threads, runtime.claims) == shared
        assert order == ["lifespan opens", "lifespan closes"]
        assert store.order == []

    run_virtually(main())


def test_a_store_that_cannot_be_opened_is_tried_again_in_a_worker_and_is_an_error_elsewhere() -> None:
    async def main() -> None:
        order: list[str] = []
        with pytest.raises(StoreError, match="nobody listens"):
            async with open_runtime(
                make_service(order), FakeTransport(), SETTINGS, store=RecordingStore(order, failures=1)
            ):
                raise AssertionError
        assert order == []
        async with open_runtime(
            make_service(order), FakeTransport(), SETTINGS, store=RecordingStore(order, 3), bounds=make_bounds(order)
        ):
            order.append("inside")
        assert order == BOUND

    run_virtually(main())


def test_after_a_stop_neither_the_store_nor_the_lifespan_is_opened() -> None:
    async def main() -> None:
        order: list[str] = []
        bounds = make_bounds(order, stopping=True)
        async with open_runtime(
            make_service(order), FakeTransport(), SETTINGS, store=RecordingStore(order), bounds=bounds
        ) as runtime:
            assert (runtime.state, runtime.claims) == (None, None)
        assert order == ["bound begins", "bound ends"]

    run_virtually(main())


def test_an_idempotent_service_without_a_store_is_refused_and_another_one_needs_none() -> None:
    async def main() -> None:
        with pytest.raises(ConfigError, match="no idempotency store: set SMARTPIPE_IDEMPOTENCY_URL"):
            async with open_runtime(make_service([]), FakeTransport(), SETTINGS):
                raise AssertionError
        order: list[str] = []
        async with open_runtime(
            make_service([], idempotent=False), FakeTransport(), SETTINGS, store=RecordingStore(order)
        ) as runtime:
            assert runtime.claims is None
        assert order == []

    run_virtually(main())


async def publish_at_the_end(bounds: Bounds | None) -> int:
    """Publish two events that SNS does not answer for, and close; return the number that the runtime has counted."""
    transport = FakeTransport()
    transport.script["publish"].append(1_000.0)
    publishes: list[asyncio.Task[str]] = []
    try:
        async with open_runtime(make_service([], idempotent=False), transport, SETTINGS, bounds=bounds) as runtime:
            publishes += [asyncio.create_task(runtime.publisher.publish(ADA)) for _ in range(2)]
            await asyncio.sleep(0)
    finally:
        await asyncio.gather(*publishes, return_exceptions=True)
    return runtime.unpublished


@pytest.mark.parametrize(("close_seconds", "took"), [(3.0, 3.0), (-1.0, 0.0)])
def test_events_that_cannot_be_published_at_the_end_are_logged_and_counted_in_a_worker(
    close_seconds: float, took: float, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> float:
        assert await publish_at_the_end(make_bounds([], close_seconds=close_seconds)) == 2
        return asyncio.get_running_loop().time()

    assert run_virtually(main()) == pytest.approx(took, abs=0.01)
    assert sum("2 events were not published" in message for message in caplog.messages) == 1


def test_events_that_cannot_be_published_at_the_end_are_an_error_elsewhere() -> None:
    with pytest.raises(PublishError, match="2 events were not published"):
        run_virtually(publish_at_the_end(None))
