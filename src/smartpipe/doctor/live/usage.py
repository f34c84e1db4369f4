"""Rules over the use of queues: empty receives that cost money, noisy tenants, and hot groups. Pure.

Source: Amazon SQS, "Available CloudWatch metrics" and "Fair queues".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smartpipe.doctor.costs.prices import MONTH_SECONDS
from smartpipe.doctor.findings import Finding
from smartpipe.doctor.live.account import DEPTH, EMPTY_RECEIVES, GROUPS_IN_FLIGHT, NOISY_GROUPS, recent, sum_of_days
from smartpipe.limits import MAX_WAIT_SECONDS
from smartpipe.names import name_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smartpipe.doctor.costs.prices import Prices
    from smartpipe.doctor.live.account import Account

NOTE_DOLLARS = 1.0
WARNING_DOLLARS = 10.0
"""The cost of a queue's empty receives a month from which they are a note, or a warning."""
MIN_WAITING = 10
"""A hot group is reported only if at least this number of messages waited all the time."""


def find_empty_receives(account: Account, poll_seconds: int, prices: Prices) -> Iterator[Finding]:
    """SP305: receive calls that return nothing cost as much as others.

    Args:
        poll_seconds: How long a receive call of a worker with the settings of this environment waits.
    """
    for arn, _ in account.list_queues():
        points = account.metrics.get(sum_of_days(EMPTY_RECEIVES, arn), ())
        if not points:
            continue
        seconds = max(1.0, (account.now - points[0].moment).total_seconds())
        monthly = sum(point.value for point in points) / seconds * MONTH_SECONDS
        is_fifo = account.actual.queues[arn].get("FifoQueue") == "true"
        dollars = monthly / 1_000_000 * (prices.sqs_fifo if is_fifo else prices.sqs_standard)
        if dollars < NOTE_DOLLARS:
            continue
        pollers = monthly / (MONTH_SECONDS / MAX_WAIT_SECONDS)
        cause = _name_cause(account, arn, poll_seconds)
        yield Finding(
            code="SP305",
            resource=f"queue {name_in(arn)}",
            message=f"receive calls that returned no message cost about ${dollars:,.2f} a month ({monthly:,.0f} "
            f"calls), as many as {pollers:,.0f} idle pollers make that wait for {MAX_WAIT_SECONDS} s. {cause}",
            remedy=f"let every receive call wait for {MAX_WAIT_SECONDS} s, and run fewer idle tasks",
            figures={"dollars_per_month": round(dollars, 2), "calls_per_month": round(monthly)},
            milder=None if dollars >= WARNING_DOLLARS else "note",
        )


def _name_cause(account: Account, arn: str, poll_seconds: int) -> str:
    default = int(account.actual.queues[arn].get("ReceiveMessageWaitTimeSeconds", 0))
    ours = f"a worker with the settings of this environment waits for {poll_seconds} s"
    if poll_seconds < MAX_WAIT_SECONDS:
        return f"A likely cause: {ours}"
    return f"It is not this one: {ours}. Others wait for {default} s, the queue's default, unless they say otherwise"


def find_unfair_use(account: Account) -> Iterator[Finding]:
    """SP310: a tenant or an ordering key that keeps the messages of others waiting."""
    for arn, _ in account.list_queues():
        noisy = account.read(recent(NOISY_GROUPS, arn, "Maximum"), max)
        if noisy:
            yield Finding(
                code="SP310",
                resource=f"queue {name_in(arn)}",
                message=f"in the last hours, up to {noisy:,.0f} tenants had so many messages in flight that SQS "
                "preferred the messages of the others",
                remedy="find the tenant in your logs, and limit its events; or add workers",
                figures={"noisy_groups": noisy},
                milder="note",
            )
        waiting = account.read(recent(DEPTH, arn, "Minimum"), min)
        groups = account.read(recent(GROUPS_IN_FLIGHT, arn, "Maximum"), max)
        if waiting is not None and waiting >= MIN_WAITING and groups == 1:
            yield Finding(
                code="SP310",
                resource=f"queue {name_in(arn)}",
                message=f"for hours, at least {waiting:,.0f} messages waited, and only one group had messages in "
                "flight: the messages have one ordering key, and one worker handles them one at a time",
                remedy="choose an ordering key with more values",
                figures={"waiting": waiting, "groups_in_flight": groups},
            )
