"""Rules over dead-letter queues and the alarms on queues. Pure.

Source: Amazon SQS, "Available CloudWatch metrics": NumberOfMessagesSent of a dead-letter queue does not count the
messages that SQS itself has moved there.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from smartpipe.ci_formats import count
from smartpipe.doctor.findings import Finding
from smartpipe.doctor.live.account import AGE, DEPTH, SENT, choose_last, recent, sum_of_days
from smartpipe.names import name_in
from smartpipe.topology.derive import DEAD_LETTER_RETENTION_SECONDS
from smartpipe.topology.resources import count_messages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smartpipe.doctor.findings import Figure, Severity
    from smartpipe.doctor.live.account import Account, Alarm

LATE_SHARE = 10 / 14
"""The part of the retention after which messages are about to expire."""
EXPIRING_SHARE = 0.8
"""The part of the retention after which messages in a queue are about to expire."""
DEFAULT_RETENTION_SECONDS = 345_600
METRIC_DELAY = timedelta(minutes=20)
"""Sums of CloudWatch have all messages that were sent before."""
DAY_SECONDS = 86_400
USEFUL = (DEPTH, AGE)
"""The metrics whose alarms notice that a queue is not handled, or that a dead-letter queue is not empty."""


def find_dead_letters(account: Account) -> Iterator[Finding]:
    """SP301: messages that no handler will see again, unless you redrive them before SQS deletes them."""
    found = dict.fromkeys(dead for _, dead in account.list_queues() if dead in account.actual.queues)
    for arn in filter(None, found):
        attributes = account.actual.queues[arn]
        messages = count_messages(attributes)
        if not messages:
            continue
        retention = int(attributes.get("MessageRetentionPeriod", DEAD_LETTER_RETENTION_SECONDS))
        age = account.read(recent(AGE, arn, "Maximum"), choose_last)
        late = age is not None and age >= retention * LATE_SHARE
        without_reason = count_without_reason(account, arn, messages)
        figures: dict[str, Figure] = {"messages": messages, "retention_seconds": retention}
        days = f"{retention / DAY_SECONDS:g} days"
        text = f"it contains about {count(messages, 'message')}, and SQS deletes each {days} after it was first sent"
        if age is not None:
            figures["oldest_seconds"] = age
            text += f"; the oldest has been in it for {age / DAY_SECONDS:.1f} days"
        if without_reason:
            figures["without_reason"] = without_reason
            text += (
                f"; at least {without_reason:,} have no reason, because SQS moved them after too many deliveries: "
                "their handlers crashed, were killed, or took longer than the visibility timeout"
            )
        yield Finding(
            code="SP301",
            resource=f"queue {name_in(arn)}",
            message=text,
            remedy="look at them with smartpipe dlq peek, then smartpipe dlq redrive or purge them",
            figures=figures,
            milder=_choose_severity(late=late, is_external=arn in account.desired.external),
        )


def _choose_severity(*, late: bool, is_external: bool) -> Severity | None:
    if is_external:
        return "note"  # its owner may leave messages there on purpose
    return None if late else "warning"


def count_without_reason(account: Account, arn: str, messages: int) -> int:
    """Return the number of messages that SQS must have moved: more were in the queue than anyone has sent to it.

    It is a lower bound, and 0 if CloudWatch has no values. Receiving them would be exact, and hide them for a while.
    """
    sent = account.read(sum_of_days(SENT, arn), sum)
    depths = account.metrics.get(recent(DEPTH, arn, "Minimum"), ())
    settled = [point.value for point in depths if point.moment <= account.now - METRIC_DELAY]
    if sent is None or not settled:
        return 0
    return max(0, int(min(messages, max(settled)) - sent))


def find_expiring_messages(account: Account) -> Iterator[Finding]:
    """SP311: messages that SQS deletes before a handler has seen them."""
    for arn, _ in account.list_queues():
        retention = int(account.actual.queues[arn].get("MessageRetentionPeriod", DEFAULT_RETENTION_SECONDS))
        age = account.read(recent(AGE, arn, "Maximum"), choose_last)
        if age is not None and age >= retention * EXPIRING_SHARE:
            yield Finding(
                code="SP311",
                resource=f"queue {name_in(arn)}",
                message=f"its oldest message is {age / DAY_SECONDS:.1f} days old, and SQS deletes messages after "
                f"{retention / DAY_SECONDS:.3g} days: those that are not handled by then reach no dead-letter queue",
                remedy="add workers, or raise Queue(retention_seconds=...) and run smartpipe topology apply",
                figures={"oldest_seconds": age, "retention_seconds": retention},
            )


def find_missing_alarms(account: Account) -> Iterator[Finding]:
    """SP302: queues whose trouble no alarm reports. Queues of other teams are not judged."""
    if account.alarms is None:
        return
    alarms = [alarm for alarm in account.alarms if not alarm.scales]
    for alarm in alarms:
        if queues := sorted(_list_watched(account, alarm)):
            yield from find_silent_alarm(alarm, queues)
    if any(alarm.searches for alarm in alarms):
        return
    watched = {(name, metric) for alarm in alarms for _, metric, name in alarm.metrics}
    for arn, dead_letter in account.list_queues():
        if arn in account.desired.external:
            continue
        missing = [
            f"of {kind} {name_in(one)}"
            for kind, one in (("dead-letter queue", dead_letter), ("queue", arn))
            if one is not None and not any((name_in(one), metric) in watched for metric in USEFUL)
        ]
        blind = dead_letter is not None and (name_in(dead_letter), SENT) in watched
        if missing:
            extra = f"; an alarm on {SENT} does not see the messages that SQS itself moves" if blind else ""
            yield Finding(
                code="SP302",
                resource=f"queue {name_in(arn)}",
                message=f"no CloudWatch alarm watches the number or the age of messages {' and '.join(missing)}{extra}",
                remedy="smartpipe telemetry alerts --format cloudwatch prints alarms; ignore the finding if Prometheus "
                "alerts you",
            )


def find_silent_alarm(alarm: Alarm, queues: list[str]) -> Iterator[Finding]:
    """SP302: an alarm on our queues or topics that cannot ring."""
    if alarm.state == "INSUFFICIENT_DATA":
        yield Finding(
            code="SP302",
            resource=f"alarm {alarm.name}",
            message=f"it has no data about {', '.join(queues)}, so it does not say whether all is well",
            remedy="set TreatMissingData to notBreaching, and check the names of its metric and dimensions",
        )
    if not alarm.notifies:
        yield Finding(
            code="SP302",
            resource=f"alarm {alarm.name}",
            message=f"it watches {', '.join(queues)} and has no enabled action, so you are not notified",
            remedy="add an action, as the ARN of an SNS topic that pages you, and enable actions",
            milder="note",
        )


def list_unseen(account: Account) -> Iterator[str]:
    """Yield a sentence for each fact that CloudWatch did not have."""
    for _, dead_letter in account.list_queues():
        present = account.actual.queues.get(dead_letter or "")
        if (
            present
            and count_messages(present)
            and account.read(recent(AGE, dead_letter or "", "Maximum"), choose_last) is None
        ):
            yield f"the age of the messages in queue {name_in(dead_letter or '')}: CloudWatch has no value"
    if any(alarm.searches and not alarm.scales for alarm in account.alarms or ()):
        yield "queues without an alarm: an alarm finds its metrics with a query or a search"


def _list_watched(account: Account, alarm: Alarm) -> set[str]:
    ours = {name_in(arn) for arn in (*account.own_queues, *account.own_topics)}
    return {name for _, _, name in alarm.metrics} & ours
