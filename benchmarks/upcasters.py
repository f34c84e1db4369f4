"""Measure the CPU time that decoding takes for the current version of an event, and for an older one that is upcast.

``python -m benchmarks.upcasters`` prints the best of --rounds rounds. Run it with the source of an earlier commit, too:
messages of the current version must take the same time.
"""

from __future__ import annotations

import argparse
import json
from timeit import repeat
from typing import Any

from smartpipe import Event, Topic
from smartpipe.envelope.decode import Decoder

CALLS = 10_000
orders = Topic("orders")


class OrderPlaced(Event, topic=orders, type="order.placed", version="2.0"):
    order_id: str
    total: str
    customer: str


class OrderCancelled(Event, topic=orders, type="order.cancelled", version="1.0"):
    order_id: str


if hasattr(OrderPlaced, "upcast"):  # earlier commits have none

    @OrderPlaced.upcast(from_version="1")
    def _(data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "total": f"{data['cents'] / 100:.2f} {data['currency']}"}


def body(version: str, **data: object) -> str:
    context = {
        "specversion": "1.0",
        "type": "order.placed",
        "dataversion": version,
        "datacontenttype": "application/json",
        "source": "shop",
        "id": "0190f5e8-1c2a-7000-8000-000000000000",
        "time": "2026-11-27T10:00:00Z",
        "partitionkey": "1",
        "traceparent": f"00-{'1' * 32}-{'2' * 16}-01",
        "correlationid": "0190f5e8-1c2a-7000-8000-000000000001",
    }
    return json.dumps({**context, "data": {"order_id": "1", "customer": "Ada Lovelace", **data}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=50)
    rounds = parser.parse_args().rounds
    decoder = Decoder([OrderPlaced, OrderCancelled])
    bodies = {"current": body("2.0", total="42.00 EUR")}
    if hasattr(OrderPlaced, "upcast"):
        bodies["upcast"] = body("1.0", cents=4200, currency="EUR")
    for name, text in bodies.items():
        best = min(repeat(lambda text=text: decoder.decode(text), number=CALLS, repeat=rounds))  # type: ignore[misc]
        print(f"{name:<8} {best / CALLS * 1e6:6.2f} µs for {len(text)} bytes")


if __name__ == "__main__":
    main()
