"""Two services, and their diagram for a README, as `smartpipe topology export` prints it."""

import subprocess
import sys
from pathlib import Path

from smartpipe import Event, Service, Topic

orders = Topic("orders")


class OrderPlaced(Event, topic=orders, type="order.placed", version="1.0"):
    order_id: str


class OrderPaid(Event, topic=orders, type="order.paid", version="1.0"):
    order_id: str


shop = Service("shop", publishes=[OrderPlaced])
billing = Service("billing", publishes=[OrderPaid])


@billing.subscribe(OrderPlaced)
async def charge(event: OrderPlaced) -> None: ...


if __name__ == "__main__":
    command = "topology export export:shop export:billing --format mermaid"
    subprocess.run([sys.executable, "-m", "smartpipe", *command.split()], cwd=Path(__file__).parent, check=True)
