"""The estimate of the monthly bill as text and JSON. Pure."""

from __future__ import annotations

import json
from itertools import groupby
from typing import TYPE_CHECKING, Any

from smartpipe.doctor.costs.prices import PRICE_DATE, PRICE_REGION, PRICES
from smartpipe.escaping import escape_json, escape_text
from smartpipe.names import name_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from smartpipe.doctor.costs.estimate import Estimate, Item
    from smartpipe.doctor.costs.options import Rate

LEFT_OUT = (
    "compute, data that leaves the region, CloudWatch metrics and logs, the free tier and volume discounts",
    "retries, redrives, dead-letter messages, and extensions of visibility timeouts",
    "stores in PostgreSQL or Redis, Lambda, and other subscribers of the topics",
    "filter policies on attributes: every queue is assumed to get all messages of its event types",
)
SMALL = 100
"""Quantities below have decimals."""


def render_costs_text(estimate: Estimate) -> str:
    """Return the estimate for a terminal."""
    lines = [
        f"Estimated cost on AWS in a month of 30 days, at list prices of {_describe_prices(estimate)}",
        "",
        f"{'':44}{'quantity':>18}{'dollars':>12}",
    ]
    required = [item for item in estimate.items if not item.optional]
    for resource, items in groupby(required, key=lambda item: item.resource):
        lines += [resource, *map(_describe_item, items)]
    lines += [
        "",
        f"{'total':62}{estimate.dollars:12.2f}",
        f"{'  of which without any message':62}{estimate.idle_dollars:12.2f}",
        f"{'  total if all requests are full batches':62}{estimate.least_dollars:12.2f}",
        "",
        *(f"optional: {_describe_item(item).strip()}" for item in estimate.items if item.optional),
        *(f"assumed: {one}" for one in list_assumptions(estimate)),
        *(f"left out: {one}" for one in list_left_out(estimate)),
    ]
    return "".join(f"{escape_text(line).rstrip()}\n" for line in lines)


def render_costs_json(estimate: Estimate) -> str:
    """Return the estimate as one JSON object. All amounts are US dollars in a month of 30 days."""
    document = {
        "prices": {"date": PRICE_DATE, "region": PRICE_REGION, "changed": _list_changed(estimate)},
        "dollars_per_month": round(estimate.dollars, 4),
        "idle_dollars_per_month": round(estimate.idle_dollars, 4),
        "full_batches_dollars_per_month": round(estimate.least_dollars, 4),
        "items": [_to_dict(item) for item in estimate.items],
        "assumed": list(list_assumptions(estimate)),
        "left_out": list(list_left_out(estimate)),
    }
    return escape_json(json.dumps(document, ensure_ascii=False, indent=2)) + "\n"


def list_assumptions(estimate: Estimate) -> Iterator[str]:
    """Yield the facts that the estimate depends on, with the settings that change them."""
    options, worker = estimate.options, estimate.known.worker
    yield _describe_rate(options.rate, "each event")
    for type_, rate in sorted(options.events.items()):
        yield _describe_rate(rate, type_)
    yield (
        f"{_count(options.tasks, 'task')} of each service with {_count(worker.processes, 'process')}; receive calls "
        f"wait for {worker.poll_seconds} s; SMARTPIPE_QUEUE_METRICS_SECONDS={worker.queue_metrics_seconds:g}"
    )
    yield f"{_count(options.messages_per_publish, 'message')} in a publish request; a steady rate"


def list_left_out(estimate: Estimate) -> Iterator[str]:
    """Yield the parts of a bill that the estimate does not have."""
    yield from LEFT_OUT
    if estimate.raw_queues:
        text = "messages that raw handlers take, because they have no event type with a rate"
        yield f"{text}: {_name_queues(estimate.raw_queues)}"
    if estimate.fair_queues:
        text = "the surcharge of SQS for fair queues, which messages with a tenant use"
        yield f"{text}: {_name_queues(estimate.fair_queues)}"


def _name_queues(names: Sequence[str]) -> str:
    return f"{'queue' if len(names) == 1 else 'queues'} {', '.join(map(name_in, names))}"


def _describe_rate(rate: Rate, events: str) -> str:
    return f"{rate.messages_per_day:,.15g} messages a day of {events}, {rate.message_bytes:,} bytes each"


def _count(number: float, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:g} {noun if number == 1 else plural}"


def _describe_prices(estimate: Estimate) -> str:
    changed = _list_changed(estimate)
    return f"{PRICE_DATE} for {PRICE_REGION}" + (f", changed by you: {', '.join(changed)}" if changed else "")


def _list_changed(estimate: Estimate) -> list[str]:
    prices = estimate.options.prices
    return [name for name, value in vars(PRICES).items() if getattr(prices, name) != value]


def _describe_item(item: Item) -> str:
    quantity = f"{round(item.quantity, 3):,.3g}" if item.quantity < SMALL else f"{item.quantity:,.0f}"
    return f"  {item.name:42}{quantity:>18}{item.dollars:12.2f}"


def _to_dict(item: Item) -> dict[str, Any]:
    return {
        "resource": item.resource,
        "name": item.name,
        "quantity": round(item.quantity, 4),
        "dollars_per_month": round(item.dollars, 4),
        "full_batches_dollars_per_month": round(item.least_dollars, 4),
        "optional": item.optional,
    }
