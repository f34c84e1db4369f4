"""The findings of ``smartpipe doctor``: their codes and severities. Pure."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - the default of a dataclass field
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from smartpipe.ci_formats import Place

Severity: TypeAlias = Literal["error", "warning", "note"]
"""``error``: messages or work are lost, or the deployment fails. ``warning``: this happens under some conditions.
``note``: a fact to know; it never fails the command."""
Figure: TypeAlias = "int | float | str"
PAGE = "docs/doctor.md"


class Rule(NamedTuple):
    """The rule behind a code. A finding may be milder than its rule."""

    severity: Severity
    title: str


RULES = {
    "SP001": Rule("warning", "an ignored finding has an expired date"),
    "SP002": Rule("note", "an ignored finding does not exist any more"),
    "SP100": Rule("error", "the topology cannot be derived"),
    "SP101": Rule("warning", "a handler may run longer than a drain"),
    "SP102": Rule("error", "messages expire before their retries or their redrive"),
    "SP103": Rule("warning", "SQS dead-letters messages before the retry policy does"),
    "SP104": Rule("warning", "the key of a FIFO event has few values, or may be None"),
    "SP105": Rule("warning", "an idempotent handler handles duplicates again"),
    "SP106": Rule("warning", "subscribers cannot read a field, or too many can"),
    "SP107": Rule("note", "an event has no subscriber or no publisher"),
    "SP108": Rule("error", "a filter policy does not match, or SNS refuses it"),
    "SP109": Rule("error", "the number of concurrent messages does not fit SQS"),
    "SP110": Rule("note", "an optional package for more speed is not installed"),
    "SP111": Rule("note", "the policy of a KMS key needs a statement for SNS"),
    "SP112": Rule("warning", "the policy of a queue allows more topics than are declared"),
    "SP113": Rule("error", "a setting in the environment is wrong"),
    "SP114": Rule("warning", "a setting in the environment is unknown"),
    "SP200": Rule("error", "a manifest cannot be read"),
    "SP201": Rule("error", "the platform kills the worker before its drain ends"),
    "SP202": Rule("warning", "SIGTERM may not reach the worker, or it runs as root"),
    "SP203": Rule("error", "the liveness probe restarts healthy workers"),
    "SP204": Rule("error", "KEDA stops workers at work, or starts too few"),
    "SP205": Rule("warning", "a worker is scaled by its CPU usage"),
    "SP206": Rule("error", "a Lambda event source repeats or loses messages"),
    "SP207": Rule("warning", "all workers may stop at once"),
    "SP208": Rule("warning", "CPU or memory does not fit the worker's settings"),
    "SP300": Rule("error", "the account cannot be read, or not completely"),
    "SP301": Rule("error", "messages wait in a dead-letter queue"),
    "SP302": Rule("warning", "no alarm watches a queue, or an alarm cannot ring"),
    "SP303": Rule("error", "a policy lets others send or publish"),
    "SP304": Rule("error", "SNS could not deliver messages"),
    "SP305": Rule("warning", "receive calls without messages cost money"),
    "SP306": Rule("error", "the deployed resources differ from the declared ones"),
    "SP307": Rule("error", "SNS may not use the KMS key of a queue"),
    "SP308": Rule("error", "clock, credentials or region do not fit the account"),
    "SP309": Rule("warning", "a subscription does not deliver all messages"),
    "SP310": Rule("warning", "one tenant or key keeps the messages of others waiting"),
    "SP311": Rule("error", "messages are about to expire in their queue"),
}
"""By code. Codes never change their meaning. SP0xx: this report; SP1xx: declarations; SP2xx: manifests; SP3xx: the
account."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A mistake that a rule has found.

    Args:
        resource: The handler, queue, event or container, as in ``queue billing``.
        remedy: The change or the command that fixes it.
        figures: The numbers behind the message, by name.
        place: The file and line, if it is about a manifest.
        milder: The severity, if it is milder than that of the rule.
        ignored: The reason for which pyproject.toml ignores it.
    """

    code: str
    resource: str
    message: str
    remedy: str
    figures: Mapping[str, Figure] = field(default_factory=dict)
    place: Place | None = None
    milder: Severity | None = None
    ignored: str | None = None

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return self.milder or RULES[self.code].severity

    @property
    def page(self) -> str:
        """The section of the documentation about its code."""
        return f"{PAGE}#{self.code.lower()}"


class Examined(NamedTuple):
    """The result of a layer: its findings, and a sentence for each fact that it could not see."""

    findings: list[Finding]
    not_seen: list[str]
