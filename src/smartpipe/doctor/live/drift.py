"""Rules over the plan of the topology: the deployed resources differ from the declared ones. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smartpipe.doctor.findings import Finding
from smartpipe.topology.resources import TAGS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smartpipe.doctor.findings import Severity
    from smartpipe.doctor.live.account import Account
    from smartpipe.topology.changes import Change

APPLY = "read smartpipe topology plan, then run smartpipe topology apply"
LIVE_NOTES = {
    "SP103": "ask its owner for a higher maxReceiveCount, or allow fewer attempts",
    "SP306": "declare it as the note says, or let apply add the tags",
    "SP309": "ask its owner to raise MaximumMessageSize",
}
"""The warnings of a plan that need the deployed resources, with their remedies. SP303 has its own rules."""


def find_drift(account: Account) -> Iterator[Finding]:
    """SP306: resources that are missing, that differ, or that no service declares."""
    for error in account.errors:
        yield Finding(
            code="SP306", resource="topology", message=error, remedy="fix this first: apply changes nothing before"
        )
    for change in account.changes:
        yield from examine_change(change)
    for note in account.notes:
        if note.code in LIVE_NOTES:
            yield Finding(
                code=note.code,
                resource=note.resource,
                message=note.text,
                remedy=LIVE_NOTES[note.code],
                milder="note" if note.code == "SP306" else None,
            )


def examine_change(change: Change) -> Iterator[Finding]:
    """Yield the finding of one line of the plan."""
    resource = f"{change.kind} {change.name}"
    if change.action == "create":
        yield _make_finding(resource, "it is declared and does not exist", APPLY, None)
    elif change.action == "update":
        only_tags = list(change.attributes) == [TAGS]
        details = ", ".join(map(str, change.differences))
        yield _make_finding(resource, f"it differs: {details}", APPLY, "note" if only_tags else "warning")
    elif change.action == "delete":
        yield _make_finding(resource, f"it exists, and {change.reason}", APPLY, "warning")
    elif change.action == "orphaned":
        remedy = "name all services as TARGETs; if none uses it, smartpipe topology destroy --orphaned deletes it"
        yield _make_finding(resource, change.reason, remedy, "note")
    elif change.action == "external" and change.reason.startswith("missing"):
        remedy = "ask the owner of the queue to subscribe it; smartpipe does not change queues of others"
        yield _make_finding(resource, f"{change.reason}, so its events do not arrive", remedy, "warning")


def _make_finding(resource: str, message: str, remedy: str, milder: Severity | None) -> Finding:
    return Finding(code="SP306", resource=resource, message=message, remedy=remedy, milder=milder)
