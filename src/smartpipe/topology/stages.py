"""Which changes of a plan may run at once. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from smartpipe.topology.changes import Change


def stages(changes: Iterable[Change]) -> list[list[Change]]:
    """Group *changes*, which are in an order that opens no hole, into stages whose members do not need one another.

    A dead-letter queue is there before its queue, both before a subscription, all new subscriptions before an old
    one goes; only then does a policy shut a topic out. Of what is destroyed queues go before their dead-letter queues.
    """
    numbered: dict[int, list[Change]] = {}
    highest = 0
    for change in changes:
        number = _number(change)
        if change.kind == "queue" and change.action != "delete" and highest >= _DELETES:
            number = _DELETES + 1
        highest = max(highest, number)
        numbered.setdefault(number, []).append(change)
    return [numbered[number] for number in sorted(numbered)]


_DELETES = 3


def _number(change: Change) -> int:
    if change.action == "delete":
        queue = 3 if "RedrivePolicy" in change.before else 4
        return _DELETES + {"subscription": 0, "queue": queue}.get(change.kind, 2)
    if change.kind == "queue":
        return 1 if "RedrivePolicy" in change.attributes else 0
    return 2 if change.kind == "subscription" else 1
