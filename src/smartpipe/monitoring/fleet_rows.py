"""Define the panels of the fleet dashboard. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smartpipe.monitoring.grafana import WINDOW, Panel, Query, Row
from smartpipe.monitoring.promql import (
    add_up,
    backlog,
    equals,
    highest,
    increase,
    matches,
    matches_process,
    quantile,
    rate,
    select,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.topology.derive import Declares

_PER_QUEUE = "service, queue"
_QUEUE_LEGEND = "{{service}} / {{queue}}"


def build_fleet_rows(services: Sequence[Declares], others: tuple[str, ...]) -> list[Row]:
    """Return the rows.

    Args:
        others: Matchers for all samples.
    """
    matchers = (matches("service", "$service"), *others)
    return [
        _row_of_state(services, matchers),
        _row_of_traffic(matchers, (matches_process("$service"), *others)),
        _row_of_delays(matchers),
        _row_of_failures(matchers),
        _row_of_processes((matches_process("$service"), *others), others, matchers),
    ]


def _row_of_state(services: Sequence[Declares], matchers: tuple[str, ...]) -> Row:
    alerts = select("ALERTS", 'alertname=~"Smartpipe.+"', 'alertstate="firing"')
    handled = select("smartpipe_messages_total", *matchers, equals("outcome", "handled"))
    dead = highest(_PER_QUEUE, select("smartpipe_dead_letter_messages", *matchers))
    receiving = f"count(count by (service, queue) ({select('smartpipe_poll_age_seconds', *matchers)}))"
    return Row(
        "Now",
        (
            _stat("Firing alerts", "Alerts of smartpipe that fire now.", f"count({alerts}) or vector(0)", red_from=1),
            _stat("Queues with a worker", "Queues from which at least one worker receives.", receiving),
            _stat("Handled per second", "Messages whose handlers returned.", f"sum(rate({handled}[5m]))", "reqps"),
            _stat(
                "Longest backlog",
                "Of all queues: the waiting messages divided by the rate at which they are handled.",
                f"max({backlog(_PER_QUEUE, matchers, '5m')})",
                "s",
                red_from=300,
            ),
            _stat("Dead-letter messages", "In all dead-letter queues together.", f"sum({dead})", red_from=1),
            _stat(
                "Critical time p99",
                "The delay that 1 % of the events exceed, of all services together.",
                quantile(0.99, "", select("smartpipe_critical_time_seconds", *matchers), "5m"),
                "s",
                red_from=300,
            ),
            Panel("Alerts", "Alerts of smartpipe that fire now.", (Query(alerts),), "table", width=12, height=7),
            Panel("Services", _describe(services), kind="text", width=12, height=7),
        ),
    )


def _stat(
    title: str, description: str, expression: str, unit: str = "short", *, red_from: float | None = None
) -> Panel:
    return Panel(title, description, (Query(expression),), "stat", unit, width=4, height=4, red_from=red_from)


def _describe(services: Sequence[Declares]) -> str:
    """Return a table of the declared services in Markdown."""
    lines = ["| service | queue | handles | publishes |", "|---|---|---|---|"]
    for service in services:
        published = ", ".join(dict.fromkeys(contract.type for contract in service.published))
        for binding in sorted(service.bindings, key=lambda one: one.queue.name):
            types = [contract.type for contract in binding.contracts]
            handled = ", ".join(dict.fromkeys([*types, *binding.external]))
            lines.append(f"| {service.name} | {binding.queue.name} | {handled} | {published} |")
        if not service.bindings:
            lines.append(f"| {service.name} | | | {published} |")
    return "\n".join(lines)


def _row_of_traffic(matchers: tuple[str, ...], processes: tuple[str, ...]) -> Row:
    deliveries = select("smartpipe_messages_total", *matchers)
    failed = select("smartpipe_messages_total", *matchers, 'outcome=~"retried|dead_lettered|halted"')
    handled = select("smartpipe_messages_total", *matchers, equals("outcome", "handled"))
    published = select("smartpipe_published_total", *processes, equals("result", "published"))
    return Row(
        "Traffic",
        (
            Panel(
                "Handled",
                "Messages per second whose handlers returned.",
                (Query(rate("service", handled, WINDOW), "{{service}}"),),
                unit="reqps",
            ),
            Panel(
                "Failed deliveries",
                "The share of deliveries that were retried, halted or dead-lettered.",
                (Query(f"{rate('service', failed, WINDOW)} / {rate('service', deliveries, WINDOW)}", "{{service}}"),),
                unit="percentunit",
            ),
            Panel(
                "Published",
                "Events per second.",
                (Query(rate("service", published, WINDOW), "{{service}}"),),
                unit="reqps",
            ),
        ),
    )


def _row_of_delays(matchers: tuple[str, ...]) -> Row:
    critical_time = select("smartpipe_critical_time_seconds", *matchers)
    oldest = select("smartpipe_oldest_message_age_seconds", *matchers)
    return Row(
        "Delays",
        (
            Panel(
                "Backlog",
                "The waiting messages divided by the rate at which they are handled now.",
                (Query(backlog(_PER_QUEUE, matchers, WINDOW), _QUEUE_LEGEND),),
                unit="s",
            ),
            Panel(
                "Critical time",
                "From the event's own time until its message was handled or dead-lettered.",
                (
                    Query(quantile(0.5, "service", critical_time, WINDOW), "{{service}} p50"),
                    Query(quantile(0.99, "service", critical_time, WINDOW), "{{service}} p99"),
                ),
                unit="s",
            ),
            Panel(
                "Oldest message",
                "From CloudWatch. On a standard queue, SQS leaves out messages that were received three times or more.",
                (Query(highest(_PER_QUEUE, oldest), _QUEUE_LEGEND),),
                unit="s",
            ),
        ),
    )


def _row_of_failures(matchers: tuple[str, ...]) -> Row:
    dead = select("smartpipe_dead_letter_messages", *matchers)
    reasons = select("smartpipe_dead_letters_total", *matchers)
    lost = select("smartpipe_leases_lost_total", *matchers)
    return Row(
        "Failures",
        (
            Panel(
                "Dead-letter messages",
                "In each dead-letter queue now.",
                (Query(highest(_PER_QUEUE, dead), _QUEUE_LEGEND),),
            ),
            Panel(
                "Dead-lettered",
                "Messages that workers moved to a dead-letter queue, by reason.",
                (Query(increase("service, reason", reasons, WINDOW), "{{service}}: {{reason}}"),),
                stacked=True,
            ),
            Panel(
                "Leases lost",
                "Messages that SQS delivered again while a handler was still running.",
                (Query(increase(_PER_QUEUE, lost, WINDOW), _QUEUE_LEGEND),),
            ),
        ),
    )


def _row_of_processes(processes: tuple[str, ...], others: tuple[str, ...], matchers: tuple[str, ...]) -> Row:
    poll_age = highest(_PER_QUEUE, select("smartpipe_poll_age_seconds", *matchers))
    restarts = increase("job, process", select("smartpipe_process_restarts_total", *others), WINDOW)
    overdue = add_up("service", select("smartpipe_handlers_overdue", *processes))
    lag, waiting = (highest("job", select(f"smartpipe_outbox_{name}", *others)) for name in ("lag_seconds", "waiting"))
    dropped = increase("job", select("smartpipe_log_lines_dropped_total", *others), WINDOW)
    return Row(
        "Processes and outbox",
        (
            Panel(
                "Time since the last poll",
                "The longest of all workers; 0 when all slots are taken.",
                (Query(poll_age, _QUEUE_LEGEND),),
                unit="s",
            ),
            Panel(
                "Restarts and overdue handlers",
                "Processes that ended unexpectedly, and handler calls that have exceeded their timeout and still run.",
                (
                    Query(restarts, "restarts: {{job}} {{process}}"),
                    Query(overdue, "overdue: {{service}}"),
                    Query(dropped, "dropped log lines: {{job}}"),
                ),
            ),
            Panel(
                "Outbox",
                "The age of the oldest waiting event, and the number of waiting events.",
                (
                    Query(lag, "lag in seconds: {{job}}"),
                    Query(waiting, "waiting: {{job}}"),
                ),
            ),
        ),
    )
