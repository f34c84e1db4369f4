"""Tests of the API in fastapi_app.py: no server, no AWS account, and no replaced dependency."""

from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
from fastapi_app import OrderPlaced, app, service
from httpx import ASGITransport, AsyncClient

from smartpipe import TransportError
from smartpipe.testing import MemoryBroker


class Shop(NamedTuple):
    client: AsyncClient
    broker: MemoryBroker


@pytest.fixture
async def shop() -> AsyncIterator[Shop]:
    async with (
        MemoryBroker(service) as broker,  # first, so that the app's publisher publishes here
        app.router.lifespan_context(app),
        AsyncClient(transport=ASGITransport(app), base_url="http://shop") as client,
    ):
        yield Shop(client, broker)


async def test_an_order_is_published_and_billed(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    response = await shop.client.post("/orders/1?cents=4200")
    await shop.broker.drain()

    assert response.status_code == 202
    shop.broker.assert_published(OrderPlaced, order_id="1", times=1)
    assert capsys.readouterr().out == "billing 1: 4200 cents\n"


async def test_an_order_that_cannot_be_published_is_an_error_503(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*arguments: object, **options: object) -> None:
        raise TransportError("ServiceUnavailable", "SNS is unavailable", retryable=True)

    monkeypatch.setattr(shop.broker.transport, "publish", refuse)

    response = await shop.client.post("/orders/1?cents=4200")

    assert response.status_code == 503
    assert shop.broker.published(OrderPlaced) == []
