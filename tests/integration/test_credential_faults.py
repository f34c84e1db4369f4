"""Credentials that AWS refuses before they expire, and a credentials endpoint that fails for a while."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import Publisher
from smartpipe.blocking import Publisher as BlockingPublisher
from smartpipe.testing import working
from smartpipe.transports.open import open_aws_transport
from tests.support.credentials import CredentialEndpoint
from tests.support.events import OrderPlaced
from tests.support.proxy import Fault
from tests.support.shop import Shop
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from tests.support.proxy import FaultProxy

    Publish = Callable[..., Awaitable[str]]

ORDER = OrderPlaced(order_id="7")


@pytest.fixture
async def shop(fast_proxy: FaultProxy) -> Shop:
    return await Shop.provisioned(fast_proxy)


@pytest.fixture
def endpoint(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Iterator[CredentialEndpoint]:
    """The source of this process's credentials, after everything was provisioned with others."""
    with CredentialEndpoint() as found:
        found.take_over(monkeypatch)
        yield found


@pytest.fixture(params=["direct", "botocore", "blocking"])
def publish(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Send the order to the shop's queue with either publisher."""

    async def with_asyncio(**options: Any) -> str:
        async with Publisher("test", **options) as publisher:
            return await publisher.publish(ORDER, queue="shop")

    def with_blocking(**options: Any) -> str:
        with BlockingPublisher("test", **options) as publisher:
            return publisher.publish(ORDER, queue="shop")

    async def in_a_thread(**options: Any) -> str:
        return await asyncio.to_thread(with_blocking, **options)

    if request.param != "blocking":
        monkeypatch.setenv("SMARTPIPE_TRANSPORT", request.param)
    return in_a_thread if request.param == "blocking" else with_asyncio


def refusing(proxy: FaultProxy, *keys: str, operation: str = "", code: str = "ExpiredToken") -> Fault:
    """Refuse the calls that are signed with these access keys."""
    answer = (403, code, "The security token included in the request is expired")
    return proxy.add(Fault(operation, answer=answer, when=lambda call: call.access_key in keys))


@pytest.mark.usefixtures("patient_calls")
@pytest.mark.parametrize("code", ["ExpiredToken", "ExpiredTokenException", "UnrecognizedClientException"])
async def test_fault_19_refused_credentials_are_refreshed_and_the_call_continues(
    fast_proxy: FaultProxy, endpoint: CredentialEndpoint, publish: Publish, code: str
) -> None:
    refusing(fast_proxy, "ROLE00000001", operation="SendMessageBatch", code=code)

    await publish(deadline_seconds=0)  # no time for a retry

    keys = [call.access_key for call in fast_proxy.calls if call.operation == "SendMessageBatch"]
    assert keys == endpoint.issued == ["ROLE00000001", "ROLE00000002"]


async def test_fault_19_credentials_are_fetched_once_for_all_refused_calls(
    fast_proxy: FaultProxy, endpoint: CredentialEndpoint
) -> None:
    refused = refusing(fast_proxy, "ROLE00000001", operation="ReceiveMessage")
    transport = open_aws_transport()

    polls = [transport.receive("shop", max_messages=1, wait_seconds=0, visibility_timeout_seconds=5) for _ in range(8)]
    try:
        found = await asyncio.gather(*polls)
    finally:
        await transport.aclose()

    assert found == [[]] * 8
    assert refused.hits == 8
    assert len(endpoint.issued) == 2


async def test_fault_19_new_credentials_that_are_refused_too_are_not_fetched_at_every_attempt(
    fast_proxy: FaultProxy, endpoint: CredentialEndpoint, publish: Publish
) -> None:
    refused = refusing(fast_proxy, "ROLE00000001", "ROLE00000002", operation="SendMessageBatch")
    refused.times = 6

    await publish()

    assert refused.hits == 6
    assert len(endpoint.issued) == 2


async def test_fault_19_a_publisher_survives_an_outage_of_the_credentials_endpoint(
    fast_proxy: FaultProxy, endpoint: CredentialEndpoint, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smartpipe.transports.aws.credentials.REFRESH_EVERY_SECONDS", 0.05)
    refused = refusing(fast_proxy, "ROLE00000001", operation="SendMessageBatch")

    async def fail_for_a_while() -> None:
        await until(lambda: endpoint.issued)
        endpoint.failing = True
        await until(lambda: refused.hits >= 2)
        endpoint.failing = False

    await asyncio.gather(publish(), fail_for_a_while())

    assert endpoint.issued == ["ROLE00000001", "ROLE00000002"]


@pytest.mark.usefixtures("patient_calls")
async def test_fault_19_an_assumed_role_is_assumed_again_and_not_taken_from_the_cache(
    fast_proxy: FaultProxy,
    shop: Shop,
    publish: Publish,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    config = tmp_path / "config"
    config.write_text(
        "[profile base]\naws_access_key_id = test\naws_secret_access_key = test\n"
        "[profile role]\nrole_arn = arn:aws:iam::000000000000:role/shop\nsource_profile = base\nregion = us-east-1\n"
    )
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_PROFILE", "role")
    fast_proxy.add(Fault("SendMessageBatch", times=1, answer=(403, "ExpiredToken", "expired")))
    fast_proxy.calls.clear()

    await publish(deadline_seconds=0)

    assert [call for call in fast_proxy.operations() if call != "GetQueueUrl"] == [
        "AssumeRole",
        "SendMessageBatch",
        "AssumeRole",
        "SendMessageBatch",
    ]
    assert shop.queues.depth("shop") == (1, 0)


@pytest.mark.usefixtures("no_time_lost", "restless")
@pytest.mark.parametrize("why", ["refused", "run-out"])
async def test_fault_19_without_credentials_polling_backs_off_and_running_handlers_continue(
    fast_proxy: FaultProxy,
    shop: Shop,
    endpoint: CredentialEndpoint,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    why: str,
) -> None:
    caplog.set_level(logging.CRITICAL, "botocore")
    monkeypatch.setattr("smartpipe.transports.aws.credentials.REFRESH_EVERY_SECONDS", 0.05)
    endpoint.lifetime_seconds = 300 if why == "run-out" else 3_600  # with 300 left, each call wants others
    shop.release.clear()
    await shop.put("7")
    async with working(shop.service) as worker:
        await until(lambda: shop.seen)
        endpoint.failing = True
        if why == "refused":
            refusing(fast_proxy, *endpoint.issued)
        asked = endpoint.asked
        await until(lambda: endpoint.asked >= asked + 6 and not worker.ready)
        assert not shop.deliveries[0].lease_lost
        endpoint.failing = False
        await until(lambda: worker.ready)
        shop.release.set()
        await shop.emptied()

    assert shop.seen == ["7"]
    assert worker.consumers[0].counters.as_dict() == {"received": 1, "handled": 1}
