"""Rules over deliveries from topics to queues. Pure.

Source: Amazon SNS, "Monitoring Amazon SNS topics using CloudWatch" and "Amazon SNS message filtering": a change of a
filter policy takes up to 15 minutes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smartpipe.doctor.findings import Finding
from smartpipe.doctor.live.account import FAILED, FILTER_DELAY, NOT_REDRIVEN, sum_of_days
from smartpipe.limits import DEFAULT_TOPIC_LIMIT_BYTES, MAX_MESSAGE_BYTES
from smartpipe.names import name_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smartpipe.doctor.live.account import Account


def find_failed_deliveries(account: Account) -> Iterator[Finding]:
    """SP304: messages that SNS could not deliver. Those that no dead-letter queue took are lost."""
    for arn in account.own_topics:
        failed, lost = (account.read(sum_of_days(name, arn), sum) or 0 for name in (FAILED, NOT_REDRIVEN))
        if failed or lost:
            yield Finding(
                code="SP304",
                resource=f"topic {name_in(arn)}",
                message=f"in the last 14 days, SNS could not deliver {failed:,.0f} messages"
                + (f", and {lost:,.0f} reached no dead-letter queue either: they are lost" if lost else ""),
                remedy="compare the policies of queues and keys with smartpipe topology plan; SP303 and SP307 of this "
                "report name mistakes in them",
                figures={"failed": failed, "lost": lost},
                milder=None if lost else "warning",
            )


def find_subscription_mistakes(account: Account) -> Iterator[Finding]:
    """SP309: subscriptions that do not deliver yet, or not all messages."""
    for topic, endpoint in sorted(account.pending & account.desired.subscriptions.keys()):
        yield Finding(
            code="SP309",
            resource=f"subscription {name_in(topic)} → {name_in(endpoint)}",
            message="it waits for a confirmation, so it delivers nothing",
            remedy="let the owner of the queue confirm it, or let the queue's account create the subscription",
            milder="error",
        )
    for (topic, endpoint), attributes in account.actual.subscriptions.items():
        changed = account.filter_changes.get(attributes.get("SubscriptionArn", ""))
        if changed is not None and account.now - changed < FILTER_DELAY:
            yield Finding(
                code="SP309",
                resource=f"subscription {name_in(topic)} → {name_in(endpoint)}",
                message=f"its filter policy was changed {(account.now - changed).total_seconds() / 60:.0f} minutes "
                "ago: SNS may use the old one for up to 15 minutes",
                remedy="wait before you publish events that only the new filter policy matches",
                milder="note",
            )
    for topic, endpoint in account.desired.subscriptions:
        yield from _find_small_queue(account, topic, endpoint)


def _find_small_queue(account: Account, topic: str, endpoint: str) -> Iterator[Finding]:
    """Yield a finding if an external queue accepts less than its topic; ``apply`` sets the size of our own queues."""
    queue, found = account.actual.queues.get(endpoint), account.actual.topics.get(topic)
    if queue is None or found is None or endpoint not in account.desired.external:
        return
    size = int(queue.get("MaximumMessageSize", MAX_MESSAGE_BYTES))
    limit = int(found.get("MaximumMessageSize", DEFAULT_TOPIC_LIMIT_BYTES))
    if DEFAULT_TOPIC_LIMIT_BYTES <= size < limit:  # below that, it is a warning of the plan
        yield Finding(
            code="SP309",
            resource=f"queue {name_in(endpoint)}",
            message=f"it accepts messages of up to {size:,} bytes, and topic {name_in(topic)} up to {limit:,}: SNS "
            "drops longer ones without an error",
            remedy=f"ask the owner of the queue to set MaximumMessageSize to {limit}",
            figures={"queue_bytes": size, "topic_bytes": limit},
        )
