"""Define the panels of the service dashboard. Pure."""

from __future__ import annotations

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


def build_service_rows(others: tuple[str, ...]) -> list[Row]:
    """Return the rows.

    Args:
        others: Matchers for all samples.
    """
    queue = (equals("service", "$service"), matches("queue", "$queue"), *others)
    process = (matches_process("$service"), *others)
    return [
        _row_of_traffic(queue),
        _row_of_delays(queue),
        _row_of_handlers(queue, process),
        _row_of_receiving(queue),
        _row_of_dead_letters(queue),
        _row_of_publishing(process),
        _row_of_calls(process),
        _row_of_process(process),
    ]


def _row_of_traffic(queue: tuple[str, ...]) -> Row:
    outcomes = rate("outcome", select("smartpipe_messages_total", *queue), WINDOW)
    depth = highest("queue, state", select("smartpipe_queue_messages", *queue))
    skipped = {
        "skipped as duplicates": "smartpipe_deduplicated_total",
        "fenced": "smartpipe_fenced_total",
        "not deleted": "smartpipe_messages_not_deleted_total",
        "from the future": "smartpipe_events_from_the_future_total",
    }
    return Row(
        "Traffic",
        (
            Panel(
                "Deliveries by outcome",
                "Per second. Each delivery has exactly one outcome.",
                (Query(outcomes, "{{outcome}}"),),
                unit="reqps",
                stacked=True,
            ),
            Panel(
                "Messages in the queue",
                "Visible messages wait, those in flight are with a worker.",
                (Query(depth, "{{queue}} {{state}}"),),
            ),
            Panel(
                "Duplicates and oddities",
                "Messages per second that were skipped, fenced or not deleted, or whose "
                "event has a time in the future.",
                tuple(Query(rate("", select(name, *queue), WINDOW), legend) for legend, name in skipped.items()),
                unit="reqps",
            ),
        ),
    )


def _row_of_delays(queue: tuple[str, ...]) -> Row:
    critical_time = select("smartpipe_critical_time_seconds", *queue)
    oldest = highest("queue", select("smartpipe_oldest_message_age_seconds", *queue))
    return Row(
        "Delays",
        (
            Panel(
                "Critical time",
                "From the event's own time until its message was handled or dead-lettered: the "
                "delay that your users see.",
                (_buckets("smartpipe_critical_time_seconds", queue),),
                "heatmap",
                "s",
            ),
            Panel(
                "Critical time by event type",
                "The delay that 50 % and 1 % of the events exceed.",
                _quantiles("type", critical_time),
                unit="s",
            ),
            Panel(
                "Queue time",
                "How long messages waited in the queue before their first delivery was processed.",
                (_buckets("smartpipe_queue_time_seconds", queue),),
                "heatmap",
                "s",
            ),
            Panel(
                "Backlog",
                "The waiting messages divided by the rate at which they are handled now.",
                (Query(backlog("queue", queue, WINDOW), "{{queue}}"),),
                unit="s",
                width=12,
            ),
            Panel(
                "Oldest message",
                "From CloudWatch. On a standard queue, SQS leaves out messages that were received three times or more.",
                (Query(oldest, "{{queue}}"),),
                unit="s",
                width=12,
            ),
        ),
    )


def _quantiles(label: str, histogram: str) -> tuple[Query, Query]:
    """Return the values that 50 % and 1 % of the recorded ones exceed, for each value of the label."""
    legend = f"{{{{{label}}}}} " if label else ""
    return (
        Query(quantile(0.5, label, histogram, WINDOW), f"{legend}p50"),
        Query(quantile(0.99, label, histogram, WINDOW), f"{legend}p99"),
    )


def _buckets(name: str, matchers: tuple[str, ...]) -> Query:
    """Return the increase of each bucket, for a heatmap."""
    return Query(increase("le", select(f"{name}_bucket", *matchers), WINDOW), "{{le}}")


def _row_of_handlers(queue: tuple[str, ...], process: tuple[str, ...]) -> Row:
    seconds = select("smartpipe_handler_seconds", *queue)
    calls = select("smartpipe_handler_seconds_count", *queue)
    return Row(
        "Handlers",
        (
            Panel(
                "Duration",
                "The time that 50 % and 1 % of a handler's calls exceed.",
                _quantiles("handler", seconds),
                unit="s",
            ),
            Panel(
                "Calls by outcome",
                "Per second. timed_out: the call reached its timeout. deferred: it did not run.",
                (Query(rate("handler, outcome", calls, WINDOW), "{{handler}} {{outcome}}"),),
                unit="reqps",
                stacked=True,
            ),
            Panel(
                "Duration of all calls",
                "Of all handlers of the service.",
                (_buckets("smartpipe_handler_seconds", queue),),
                "heatmap",
                "s",
            ),
            *_panels_of_attempts(queue, process),
        ),
    )


def _panels_of_attempts(queue: tuple[str, ...], process: tuple[str, ...]) -> tuple[Panel, Panel]:
    attempts = select("smartpipe_receive_count", *queue)
    received, handled = (
        rate("queue", select(f"smartpipe_receive_count_{part}", *queue), WINDOW) for part in ("sum", "count")
    )
    overdue = add_up("service", select("smartpipe_handlers_overdue", *process))
    abandoned, not_ended = (
        increase("", select(f"smartpipe_{name}_total", *queue), WINDOW)
        for name in ("threads_abandoned", "handlers_not_ended")
    )
    return (
        Panel(
            "Attempts",
            "How many times the messages had been received when they were handled: the mean, and the number that "
            "99 % of them did not exceed.",
            (
                Query(f"{received} / {handled}", "{{queue}} mean"),
                Query(f"ceil({quantile(0.99, 'queue', attempts, WINDOW)})", "{{queue}} p99"),
            ),
            width=12,
        ),
        Panel(
            "Calls after their timeout",
            "Handler calls that still run now, and calls that were abandoned.",
            (
                Query(overdue, "overdue now"),
                Query(abandoned, "abandoned threads"),
                Query(not_ended, "ignored their cancellation"),
            ),
            width=12,
        ),
    )


def _row_of_receiving(queue: tuple[str, ...]) -> Row:
    slots, in_flight = (
        add_up("queue", select(f"smartpipe_{name}", *queue)) for name in ("slots", "messages_in_flight")
    )
    open_calls = add_up("queue", select("smartpipe_receive_calls_open", *queue))
    poll_age = highest("queue", select("smartpipe_poll_age_seconds", *queue))
    lost = increase("queue", select("smartpipe_leases_lost_total", *queue), WINDOW)
    circuit = highest("queue, circuit", select("smartpipe_circuit_open", *queue))
    return Row(
        "Receiving",
        (
            Panel(
                "Slots",
                "Slots and messages in flight, of all processes. With prefetch, more messages may be in "
                "flight than there are slots.",
                (
                    Query(slots, "{{queue}} slots"),
                    Query(in_flight, "{{queue}} in flight"),
                    Query(open_calls, "{{queue}} open receive calls"),
                ),
            ),
            Panel(
                "Time since the last poll",
                "The longest of all processes; 0 when all slots are taken.",
                (Query(poll_age, "{{queue}}"),),
                unit="s",
            ),
            Panel(
                "Leases lost, circuit breakers",
                "Messages that SQS delivered again while a handler was running. A "
                "circuit breaker is 1 when it is open, and 0.5 when it is half-open.",
                (
                    Query(lost, "{{queue}} leases lost"),
                    Query(circuit, "{{circuit}} open"),
                ),
            ),
        ),
    )


def _row_of_dead_letters(queue: tuple[str, ...]) -> Row:
    depth = highest("queue", select("smartpipe_dead_letter_messages", *queue))
    reasons = increase("reason", select("smartpipe_dead_letters_total", *queue), WINDOW)
    oldest = highest("queue", select("smartpipe_oldest_dead_letter_age_seconds", *queue))
    return Row(
        "Dead letters",
        (
            Panel("Dead-letter messages", "In the dead-letter queue now.", (Query(depth, "{{queue}}"),)),
            Panel(
                "Dead-lettered by reason",
                "Messages that workers moved there. SQS's own moves do not count.",
                (Query(reasons, "{{reason}}"),),
                stacked=True,
            ),
            Panel(
                "Oldest dead-letter message",
                "SQS deletes dead-letter messages after 14 days.",
                (Query(oldest, "{{queue}}"),),
                unit="s",
            ),
        ),
    )


def _row_of_publishing(process: tuple[str, ...]) -> Row:
    results = rate("destination, result", select("smartpipe_published_total", *process), WINDOW)
    seconds = select("smartpipe_publish_seconds", *process)
    entries, requests = (
        rate("destination", select(f"smartpipe_publish_batch_entries_{part}", *process), WINDOW)
        for part in ("sum", "count")
    )
    return Row(
        "Publishing",
        (
            Panel(
                "Published by result",
                "Events per second: published, or the code of the failure.",
                (Query(results, "{{destination}} {{result}}"),),
                unit="reqps",
                stacked=True,
            ),
            Panel(
                "Time to publish",
                "The time that 50 % and 1 % of the events exceed.",
                _quantiles("destination", seconds),
                unit="s",
            ),
            Panel(
                "Events per request",
                "The mean number of events in a request; at most 10.",
                (Query(f"{entries} / {requests}", "{{destination}}"),),
            ),
        ),
    )


def _row_of_calls(process: tuple[str, ...]) -> Row:
    seconds = select("smartpipe_call_seconds", *process, 'operation!="receive"')
    errors = rate("operation, error", select("smartpipe_call_seconds_count", *process, 'error!=""'), WINDOW)
    throttled = rate("operation", select("smartpipe_throttled_total", *process), WINDOW)
    resent, damaged = (
        rate("", select(f"smartpipe_{name}_total", *process), WINDOW)
        for name in ("requests_resent", "messages_damaged")
    )
    return Row(
        "Calls to AWS",
        (
            Panel(
                "Duration of calls",
                "The time that 1 % of the calls exceed. Receive calls are left out, because they wait for messages.",
                (Query(quantile(0.99, "operation", seconds, WINDOW), "{{operation}} p99"),),
                unit="s",
            ),
            Panel(
                "Errors",
                "Failed calls per second, by the code of AWS.",
                (Query(errors, "{{operation}} {{error}}"),),
                unit="reqps",
            ),
            Panel(
                "Throttled and sent again",
                "Per second.",
                (
                    Query(throttled, "{{operation}} throttled"),
                    Query(resent, "requests sent again"),
                    Query(damaged, "messages with a wrong MD5 sum"),
                ),
                unit="reqps",
            ),
        ),
    )


def _row_of_process(process: tuple[str, ...]) -> Row:
    lag = select("smartpipe_event_loop_lag_seconds", *process)
    dropped = increase("service", select("smartpipe_log_lines_dropped_total", *process), WINDOW)
    return Row(
        "Processes",
        (
            Panel(
                "Event-loop lag",
                "How late the event loop runs callbacks. A handler that blocks it delays all.",
                _quantiles("", lag),
                unit="s",
                width=12,
            ),
            Panel(
                "Dropped log lines",
                "Lines that standard output did not accept in time.",
                (Query(dropped, "{{service}}"),),
                width=12,
            ),
        ),
    )
