"""An API that publishes events. Run it with `uvicorn fastapi_app:app`, and the worker with `smartpipe worker`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from anyio import from_thread
from fastapi import Depends, FastAPI, Request, status
from fastapi.responses import JSONResponse
from httpx import ASGITransport, AsyncClient

from smartpipe import Event, Publisher, PublishError, Service, Topic
from smartpipe.testing import MemoryBroker


class OrderPlaced(Event, topic=Topic("orders"), type="order.placed", version="1.0"):
    order_id: str
    cents: int


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with Publisher("shop", deadline_seconds=5) as publisher:
        app.state.publisher = publisher
        yield


def get_publisher(request: Request) -> Publisher:
    return request.app.state.publisher


PublisherDependency = Annotated[Publisher, Depends(get_publisher)]
app = FastAPI(lifespan=lifespan)


@app.exception_handler(PublishError)
async def report_unpublished(request: Request, error: PublishError) -> JSONResponse:
    retryable = all(failure.retryable for failure in error.failures)
    code = status.HTTP_503_SERVICE_UNAVAILABLE if retryable else status.HTTP_500_INTERNAL_SERVER_ERROR
    return JSONResponse({"detail": "the order was not accepted"}, code)


@app.post("/orders/{order_id}", status_code=status.HTTP_202_ACCEPTED)
async def place_order(order_id: str, cents: int, publisher: PublisherDependency) -> dict[str, str]:
    return {"event_id": await publisher.publish(OrderPlaced(order_id=order_id, cents=cents))}


@app.post("/imports/{order_id}", status_code=status.HTTP_202_ACCEPTED)
def import_order(order_id: str, cents: int, publisher: PublisherDependency) -> dict[str, str]:
    # FastAPI runs a `def` endpoint in a thread. The publisher belongs to the event loop, so call it there.
    return {"event_id": from_thread.run(publisher.publish, OrderPlaced(order_id=order_id, cents=cents))}


service = Service("billing")


@service.subscribe(OrderPlaced)
async def bill(event: OrderPlaced) -> None:
    print(f"billing {event.order_id}: {event.cents} cents")


async def main() -> None:
    async with (
        MemoryBroker(service) as broker,  # instead of AWS
        app.router.lifespan_context(app),
        AsyncClient(transport=ASGITransport(app), base_url="http://shop") as client,
    ):
        for path in ("/orders/1?cents=4200", "/imports/2?cents=1700"):
            response = await client.post(path)
            await broker.drain()
            print(path, response.status_code)


if __name__ == "__main__":
    asyncio.run(main())
