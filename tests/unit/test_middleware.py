from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import ConfigError, Publisher, PublishError, RetryPolicy, Service
from smartpipe.middleware import Logging, Middleware, Next, Timeout, compose
from smartpipe.testing import MemoryBroker
from tests.support.events import ADA, Paid, UserLeft, UserSignedUp
from tests.support.fakes import FakeTransport
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from smartpipe.publisher.prepare import Publication


def test_the_first_middleware_is_the_outermost() -> None:
    order: list[str] = []

    def named(name: str) -> Middleware[int, int]:
        async def middleware(x: int, call_next: Next[int, int]) -> int:
            order.append(f"{name} in")
            result = await call_next(x + 1)
            order.append(f"{name} out")
            return result * 10

        return middleware

    async def innermost(x: int) -> int:
        order.append("innermost")
        return x

    async def main() -> int:
        return await compose([named("a"), named("b")], innermost)(1)

    result = asyncio.run(main())

    assert order == ["a in", "b in", "innermost", "b out", "a out"]
    assert result == 300


async def stamp(publication: Publication, call_next: Next[Publication, str]) -> str:
    return await call_next(publication._replace(attributes={"tenant": "acme"}))


def test_a_publishers_middleware_sees_each_event_and_may_add_to_it() -> None:
    transport = FakeTransport()

    async def main() -> tuple[str, list[str]]:
        async with Publisher("test", transport=transport, middleware=[stamp]) as publisher:
            one = await publisher.publish(ADA)
            return one, (await publisher.publish_many([UserLeft(name=str(n)) for n in range(25)])).event_ids

    one, many = run_virtually(main())

    assert {entry.attributes["tenant"].value for entry in transport.entries("publish")} == {"acme"}
    assert transport.batches("publish") == [1, 10, 10, 5]
    bodies = [entry.body for entry in transport.entries("publish")]
    assert all(event_id in body for event_id, body in zip([one, *many], bodies, strict=True))


def test_a_publishers_middleware_may_refuse_an_event() -> None:
    async def refuse(publication: Publication, call_next: Next[Publication, str]) -> str:
        if publication.event == ADA:
            raise PermissionError
        return await call_next(publication)

    async def main() -> None:
        async with Publisher("test", transport=FakeTransport(), middleware=[refuse]) as publisher:
            with pytest.raises(PermissionError):
                await publisher.publish(ADA)
            with pytest.raises(PublishError) as caught:
                await publisher.publish_many([ADA, UserLeft(name="Bob")])
            assert [(failure.code, failure.event) for failure in caught.value.failures] == [("PermissionError", ADA)]

    run_virtually(main())


def test_middleware_on_publish_keeps_the_order_of_a_group() -> None:
    transport = FakeTransport()

    async def dawdle(publication: Publication, call_next: Next[Publication, str]) -> str:
        await asyncio.sleep(10 - publication.event.number)  # type: ignore[attr-defined]
        return await call_next(publication)

    async def main() -> None:
        async with Publisher("test", transport=transport, middleware=[dawdle]) as publisher:
            await publisher.publish_many([Paid(account="a", number=n) for n in range(3)])

    run_virtually(main())

    numbers = [entry.body.rpartition('"number":')[2] for entry in transport.entries("publish")]
    assert numbers == ["0}}", "1}}", "2}}"]


def test_logging_logs_published_and_failed_events(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with Publisher("test", transport=FakeTransport(), middleware=[Logging()]) as publisher:
            await publisher.publish(ADA)
            with pytest.raises(PublishError):
                await publisher.publish(ADA, delay_seconds=5)

    with caplog.at_level(logging.INFO, "smartpipe.middleware"):
        run_virtually(main())

    assert [record.message for record in caplog.records] == ["Published to users", "Failed: PublishError"]
    assert caplog.records[0].fields["event_type"] == "member.signed_up"  # type: ignore[attr-defined]


def test_a_timeout_limits_the_middleware_inside_it() -> None:
    transport = FakeTransport()
    transport.script["publish"].append(1_000.0)

    async def main() -> None:
        async with Publisher("test", transport=transport, middleware=[Timeout(3)]) as publisher:
            with pytest.raises(TimeoutError, match="longer than the 3 s"):
                await publisher.publish(ADA)
            assert asyncio.get_running_loop().time() == pytest.approx(3)

    run_virtually(main())


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_timeout_of_zero_is_rejected(seconds: float) -> None:
    with pytest.raises(ConfigError, match="must be above 0"):
        Timeout(seconds)


async def forgetful(x: Any, call_next: Next[Any, Any]) -> None:
    call_next(x)


async def lazy(x: Any, call_next: Next[Any, Any]) -> Any:
    return call_next(x)


async def swallowing(x: Any, call_next: Next[Any, Any]) -> None: ...


@pytest.mark.parametrize("middleware", [forgetful, lazy])
async def test_a_call_next_that_is_not_awaited_fails_the_delivery(middleware: Any) -> None:
    service = Service("mailer", middleware=[middleware], retry=RetryPolicy(attempts=1))

    @service.subscribe(UserLeft)
    async def leave(event: UserLeft) -> None: ...

    async with MemoryBroker(service) as broker:
        await broker.publish(UserLeft(name="Ada"))
        await broker.drain()

        assert "did not await it: write await call_next(x)" in broker.assert_dead_lettered(UserLeft).reason


@pytest.mark.parametrize(
    ("middleware", "error"), [(forgetful, "did not await it"), (lazy, "did not await it"), (swallowing, "or raise")]
)
async def test_a_publishers_middleware_that_returns_no_id_is_an_error(middleware: Any, error: str) -> None:
    async with MemoryBroker() as broker, Publisher("test", middleware=[middleware]) as publisher:
        with pytest.raises((TypeError, ConfigError), match=error):
            await publisher.publish(ADA)
        with pytest.raises(PublishError, match=error):
            await publisher.publish_many([ADA])

        assert broker.published(UserSignedUp) == []


def test_a_middleware_may_call_the_next_one_any_number_of_times() -> None:
    async def repeat(x: int, call_next: Next[int, int]) -> int:
        return await call_next(x) + await call_next(x + 1)

    async def forget_the_second(x: int, call_next: Next[int, int]) -> int:
        result = await call_next(x)
        call_next(x)
        return result

    async def innermost(x: int) -> int:
        return x

    async def main() -> None:
        assert await compose([], innermost)(1) == 1
        assert await compose([repeat], innermost)(1) == 3
        with pytest.raises(TypeError, match="forget_the_second called call_next but did not await it"):
            await compose([forget_the_second], innermost)(1)

    asyncio.run(main())


async def test_the_calls_of_a_middleware_may_run_as_tasks() -> None:
    async def at_once(x: int, call_next: Next[int, int]) -> int:
        return sum(await asyncio.gather(call_next(x), call_next(x)))

    async def innermost(x: int) -> int:
        await asyncio.sleep(0)
        return x

    assert await compose([at_once], innermost)(4) == 8


@pytest.mark.parametrize(("level", "logged"), [(logging.DEBUG, 0), (logging.INFO, 1), (logging.WARNING, 1)])
async def test_logging_takes_a_level_and_a_logger(level: int, logged: int, caplog: pytest.LogCaptureFixture) -> None:
    async def slow(x: Any, call_next: Next[Any, Any]) -> Any:
        await asyncio.sleep(2)
        return await call_next(x)

    logger = logging.getLogger("shop.publishing")
    async with MemoryBroker(), Publisher("test", middleware=[Logging(level, logger=logger), slow]) as publisher:
        with caplog.at_level(logging.INFO, "shop.publishing"):
            await publisher.publish(ADA)

    assert [record.levelno for record in caplog.records if record.name == "shop.publishing"] == [level] * logged


async def test_logging_gives_the_duration_of_a_success_and_of_a_failure(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([10.0, 12.12345678, 20.0, 20.5])
    monkeypatch.setattr("smartpipe.middleware.time.perf_counter", lambda: next(times))
    publication: Any = SimpleNamespace(event=ADA, log_fields={"event_id": "1"}, log_message="Done")

    async def end(error: Exception | None) -> None:
        if error is not None:
            raise error

    with caplog.at_level(logging.INFO, "smartpipe.middleware"):
        await Logging()(publication, lambda _: end(None))
        with pytest.raises(KeyError):
            await Logging()(publication, lambda _: end(KeyError("x")))

    fields = {"event_type": "member.signed_up", "event_id": "1"}
    assert [record.fields for record in caplog.records] == [  # type: ignore[attr-defined]
        {**fields, "seconds": 2.123457}, {**fields, "seconds": 0.5},
    ]  # fmt: skip
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]


def test_a_timeout_of_the_call_itself_is_not_one_of_the_middleware() -> None:
    async def raise_timeout(_: int) -> int:
        raise TimeoutError("of the handler")

    async def main() -> None:
        with pytest.raises(TimeoutError, match="of the handler"):
            await compose([Timeout(3)], raise_timeout)(1)

    run_virtually(main())


def test_a_timeout_leaves_a_call_alone_that_ends_before_it() -> None:
    async def sleep(x: float) -> float:
        await asyncio.sleep(x)
        return x

    async def main() -> None:
        assert await compose([Timeout(0.5)], sleep)(0.4) == 0.4
        with pytest.raises(TimeoutError, match=r"longer than the 0\.5 s"):
            await compose([Timeout(0.5)], sleep)(0.6)

    run_virtually(main())
