"""The lifespan of a service, and how handlers and middleware get its values."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Optional, Protocol

import pytest

from smartpipe import ConfigError, Delivery, RetryPolicy, Service, Worker
from smartpipe.middleware import Logging, Next, Timeout
from smartpipe.settings import WorkerSettings
from smartpipe.testing import MemoryBroker, virtual_time
from smartpipe.topology.derive import derive
from smartpipe.transports.memory.transport import NAMING, MemoryTransport
from tests.support.events import ADA, UserSignedUp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Pool: ...


class Mailer: ...


@dataclass
class Clients:
    reader: Pool
    writer: Pool
    mailer: Mailer


CLIENTS = Clients(Pool(), Pool(), Mailer())


async def clients() -> AsyncIterator[Clients]:
    yield CLIENTS


async def run(service: Service) -> MemoryBroker:
    async with MemoryBroker(service) as broker:
        await broker.publish(ADA)
        await broker.drain()
    return broker


async def test_a_handler_gets_values_of_the_lifespan_by_annotation() -> None:
    service = Service("mailer", lifespan=clients)
    got: list[object] = []

    @service.subscribe(UserSignedUp)
    async def send(event: UserSignedUp, mailer: Mailer, delivery: Delivery, all_of_it: Clients) -> None:
        got.extend((event, mailer, delivery.state, all_of_it))

    await run(service)

    assert got == [ADA, CLIENTS.mailer, CLIENTS, CLIENTS]


async def test_of_two_values_of_a_type_the_one_with_the_parameters_name_is_taken() -> None:
    service = Service("mailer", lifespan=clients)
    got: list[Pool] = []

    @service.subscribe(UserSignedUp)
    async def send(event: UserSignedUp, writer: Pool, reader: Pool) -> None:
        got.extend((reader, writer))

    await run(service)

    assert got == [CLIENTS.reader, CLIENTS.writer]


class Pair(NamedTuple):
    pool: Pool
    mailer: Mailer


@pytest.mark.parametrize(
    "state", [Pair(Pool(), Mailer()), {"pool": Pool(), "m": Mailer()}, (Pool(), Mailer()), Mailer()]
)
async def test_a_lifespan_may_yield_any_value(state: object) -> None:
    @asynccontextmanager
    async def lifespan() -> AsyncIterator[object]:
        yield state

    service = Service("mailer", lifespan=lifespan)
    got: list[Mailer] = []

    @service.subscribe(UserSignedUp)
    async def send(event: UserSignedUp, mailer: Mailer) -> None:
        got.append(mailer)

    await run(service)

    assert isinstance(got[0], Mailer)


@pytest.mark.parametrize(
    ("name", "wanted", "error"),
    [
        (
            "pool",
            Pool,
            r"needs a Pool. The lifespan yields reader: Pool, .*: 2 of them have that type, and none has that name",
        ),
        ("number", int, r"parameter 'number' needs a int\. .* none of them has that type"),
    ],
)
async def test_a_value_that_the_lifespan_does_not_provide_is_an_error_at_the_start(
    name: str, wanted: type, error: str
) -> None:
    service = Service("mailer", lifespan=clients)

    async def send(event, pool) -> None: ...  # type: ignore[no-untyped-def] # noqa: ANN001

    async def count(event, number) -> None: ...  # type: ignore[no-untyped-def] # noqa: ANN001

    handler = {"pool": send, "number": count}[name]
    handler.__annotations__ = {"event": UserSignedUp, name: wanted}
    service.subscribe(UserSignedUp)(handler)

    with pytest.raises(ConfigError, match=error):
        await run(service)


class Slotted:
    __slots__ = ("mailer", "unset")


class SlottedPool(Slotted):
    __slots__ = ("pool",)

    def __init__(self) -> None:
        self.mailer, self.pool = Mailer(), Pool()


@pytest.mark.parametrize(
    ("state", "wanted", "value"),
    [
        ((5, {"a": 1}, "x"), dict[str, int], {"a": 1}),
        ({1: 5, "2": "x"}, int, 5),
        ({"a": "x", "b": 7}, int | float, 7),
        ((1.5, "x"), str, "x"),
    ],
)
def test_a_value_of_the_lifespan_is_found_by_the_class_of_its_type(state: object, wanted: Any, value: object) -> None:
    service = Service("mailer", lifespan=clients)

    async def send(event, wanted) -> None: ...  # type: ignore[no-untyped-def] # noqa: ANN001

    send.__annotations__ = {"event": UserSignedUp, "wanted": wanted}
    service.subscribe(UserSignedUp)(send)
    [handler] = service.handlers

    assert handler.bind(state) == []
    assert handler.state == {"wanted": value}


def test_values_in_slots_are_found_those_of_base_classes_included() -> None:
    service, state = Service("mailer", lifespan=clients), SlottedPool()

    @service.subscribe(UserSignedUp)
    async def send(event: UserSignedUp, mailer: Mailer, pool: Pool) -> None: ...

    [handler] = service.handlers

    assert handler.bind(state) == []
    assert handler.state == {"mailer": state.mailer, "pool": state.pool}


@pytest.mark.parametrize(
    ("state", "yields"),
    [
        (Pair(Pool(), Mailer()), "pool: Pool, mailer: Mailer: none of them has that type"),
        ((1, "x"), "0: int, 1: str: none of them has that type"),
        (None, "NoneType: none of them has that type"),
        ({1: Clients, 2: CLIENTS}, "1: type, 2: Clients: none of them has that type"),
        (SlottedPool(), "pool: Pool, mailer: Mailer: none of them has that type"),
    ],
)
def test_the_error_of_a_missing_value_names_every_value_of_the_lifespan(state: object, yields: str) -> None:
    service = Service("mailer", lifespan=clients)

    async def count(event, numbers) -> None: ...  # type: ignore[no-untyped-def] # noqa: ANN001

    count.__annotations__ = {"event": UserSignedUp, "numbers": set[int]}
    service.subscribe(UserSignedUp)(count)

    [error] = service.handlers[0].bind(state)
    assert error.endswith(f"parameter 'numbers' needs a set. The lifespan yields {yields}")


async def test_the_lifespan_closes_after_the_last_handler() -> None:
    order: list[str] = []

    async def lifespan() -> AsyncIterator[None]:
        order.append("open")
        yield
        order.append("close")

    service = Service("mailer", lifespan=lifespan)

    @service.subscribe(UserSignedUp)
    async def send(event: UserSignedUp) -> None:
        await asyncio.sleep(10)
        order.append("handled")

    async with MemoryBroker(service) as broker:
        await broker.publish(ADA)
        await asyncio.sleep(1)

    assert order == ["open", "handled", "close"]


async def test_a_services_middleware_is_around_every_handler_the_first_outermost() -> None:
    order: list[str] = []

    async def outer(delivery: Delivery, call_next: Next[Delivery, None]) -> None:
        order.append(f"outer {delivery.handler.rpartition('.')[2]} {delivery.event_id is not None}")
        await call_next(delivery)

    async def inner(delivery: Delivery, call_next: Next[Delivery, None]) -> None:
        order.append("inner")
        await call_next(delivery)

    service = Service("mailer", middleware=[outer, inner])

    @service.subscribe(UserSignedUp)
    async def send(event: UserSignedUp) -> None:
        order.append("handler")

    await run(service)

    assert order == ["outer send True", "inner", "handler"]


async def test_middleware_may_fail_a_delivery_or_handle_its_error() -> None:
    async def forgiving(delivery: Delivery, call_next: Next[Delivery, None]) -> None:
        try:
            await call_next(delivery)
        except KeyError:
            return

    service = Service("mailer", middleware=[forgiving], retry=RetryPolicy(attempts=1))

    @service.subscribe(UserSignedUp)
    async def send(event: UserSignedUp) -> None:
        raise KeyError(event.name)

    broker = await run(service)

    broker.assert_handled(UserSignedUp, times=1)


async def test_the_timeout_middleware_fails_the_delivery() -> None:
    service = Service("mailer", middleware=[Timeout(3)], retry=RetryPolicy(attempts=1))

    @service.subscribe(UserSignedUp)
    async def send(event: UserSignedUp) -> None:
        await asyncio.sleep(10)

    broker = await run(service)

    assert broker.assert_dead_lettered(UserSignedUp).reason == "it ran longer than the 3 s of its Timeout"


async def test_the_logging_middleware_logs_every_delivery(caplog: pytest.LogCaptureFixture) -> None:
    service = Service("mailer", middleware=[Logging()])

    @service.subscribe(UserSignedUp)
    async def send(event: UserSignedUp) -> None: ...

    with caplog.at_level("INFO", "smartpipe.middleware"):
        await run(service)

    [record] = [record for record in caplog.records if record.name == "smartpipe.middleware"]
    assert record.message.startswith("Handled by tests.unit.test_lifespan")
    assert record.fields["receive_count"] == 1  # type: ignore[attr-defined]


async def get_optional(event: UserSignedUp, mailer: Mailer | None) -> None: ...
async def get_old_optional(event: UserSignedUp, mailer: Optional[Mailer]) -> None: ...  # noqa: UP045
async def get_delivery(event: UserSignedUp, delivery: Delivery | None) -> None: ...
async def typed_elsewhere(event: UserSignedUp, pool: OnlyForTypeCheckers) -> None: ...  # type: ignore[name-defined] # noqa: F821
async def all_elsewhere(event: OnlyThere, delivery: smartpipe.Delivery) -> None: ...  # type: ignore[name-defined] # noqa: F821


@pytest.mark.parametrize(
    ("function", "kinds"),
    [
        (get_optional, ["event", "state"]),
        (get_old_optional, ["event", "state"]),
        (get_delivery, ["event", "delivery"]),
        (all_elsewhere, ["event", "delivery"]),
    ],
)
def test_an_annotation_is_understood_in_every_spelling(function: Any, kinds: list[str]) -> None:
    service = Service("mailer", lifespan=clients)
    service.subscribe(UserSignedUp)(function)

    assert [parameter.kind for parameter in service.handlers[0].parameters] == kinds
    assert service.handlers[0].bind(CLIENTS) == []


def test_a_type_that_only_type_checkers_know_is_rejected_and_the_error_says_how_to_fix_it() -> None:
    with pytest.raises(ConfigError, match="parameter 'pool': import OnlyForTypeCheckers at run time"):
        Service("mailer", lifespan=clients).subscribe(UserSignedUp)(typed_elsewhere)


class Sends(Protocol):
    def send(self) -> None: ...


def test_a_protocol_that_cannot_be_checked_is_an_error_at_the_start() -> None:
    async def send(event: UserSignedUp, sends: Sends) -> None: ...

    send.__annotations__ = {"event": UserSignedUp, "sends": Sends}
    service = Service("mailer", lifespan=clients)
    service.subscribe(UserSignedUp)(send)

    [error] = service.handlers[0].bind(CLIENTS)
    assert "parameter 'sends': Instance and class checks can only be used with @runtime_checkable protocols" in error


def worker(lifespan: Any, drain_seconds: float = 4) -> Worker:
    service, transport = Service("mailer", lifespan=lifespan), MemoryTransport()
    service.subscribe(UserSignedUp)(with_event)
    transport.apply(derive([service], NAMING))
    settings = WorkerSettings.load(port=0, host="127.0.0.1", drain_seconds=drain_seconds, wait_seconds=1)
    return Worker(service, transport, settings)


async def with_event(event: UserSignedUp) -> None: ...


async def hang_at_the_start() -> AsyncIterator[None]:
    await asyncio.sleep(10_000)
    yield


async def hang_at_the_end() -> AsyncIterator[None]:
    yield
    await asyncio.sleep(10_000)


async def fail_at_the_start() -> AsyncIterator[None]:
    raise ConnectionError("no database")
    yield


async def fail_at_the_end() -> AsyncIterator[None]:
    yield
    raise ConnectionError("no goodbye")


@pytest.mark.parametrize("lifespan", [hang_at_the_start, hang_at_the_end])
async def test_a_lifespan_that_hangs_does_not_outlive_the_drain(
    lifespan: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with virtual_time():
        running = worker(lifespan)
        loop = asyncio.get_running_loop()
        loop.call_later(3, running.stop)
        started = loop.time()
        code = await running.run()
        seconds = loop.time() - started

    assert code == 1
    assert seconds < 3 + 4 + 4
    assert "The lifespan of mailer did not end in time and was cancelled" in caplog.messages


@pytest.mark.parametrize("stop_first", [True, False])
@pytest.mark.parametrize("lifespan", [hang_at_the_start, hang_at_the_end])
async def test_a_hard_stop_leaves_a_lifespan_that_hangs_only_seconds(lifespan: Any, stop_first: bool) -> None:
    with virtual_time():
        running = worker(lifespan, drain_seconds=600)
        loop = asyncio.get_running_loop()
        if stop_first:
            loop.call_later(2, running.stop)
        loop.call_later(3, running.kill)
        started = loop.time()
        code = await running.run()
        seconds = loop.time() - started

    assert code == 1
    assert 3 < seconds < 3 + 10


@pytest.mark.parametrize("lifespan", [fail_at_the_start, fail_at_the_end])
async def test_a_lifespan_that_fails_is_logged_and_the_worker_exits_with_1(
    lifespan: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with virtual_time():
        running = worker(lifespan)
        asyncio.get_running_loop().call_later(3, running.stop)

        assert await running.run() == 1

    [logged] = [message for message in caplog.messages if message.startswith("The lifespan of mailer failed")]
    assert "ConnectionError: no " in logged


async def test_after_a_stop_while_the_lifespan_opens_no_receive_call_begins() -> None:
    async def slow() -> AsyncIterator[None]:
        await asyncio.sleep(2)
        yield

    with virtual_time():
        running = worker(slow)
        asyncio.get_running_loop().call_later(1, running.stop)

        assert await running.run() == 0
    assert running.consumers == []
