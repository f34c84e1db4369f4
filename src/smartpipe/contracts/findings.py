"""The findings of ``smartpipe schema check``: their codes, and what each says to its reader. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from datetime import date

    from smartpipe.contracts.compare import Break

Direction: TypeAlias = Literal["forward", "backward"]
"""``forward``: consumers with an older class receive events of this one. ``backward``: consumers with this class
receive events of an older one, from queues, dead-letter queues, the outbox and other teams."""
Severity: TypeAlias = Literal["error", "warning"]


class Rule(NamedTuple):
    """The rule behind a code.

    Args:
        remedy: The remedy that every finding of the code shows.
    """

    severity: Severity
    title: str
    remedy: str


_MAJOR = "or declare the next major version"
RULES = {
    "SC101": Rule("error", "a required field was added", f"give the field a default, {_MAJOR}"),
    "SC102": Rule("error", "a required field was removed", f"keep the field until no consumer requires it, {_MAJOR}"),
    "SC103": Rule(
        "error",
        "a field was renamed",
        "keep the name on the wire: Field(alias=...), or publish both fields, the new one with a default and "
        f"Field(validation_alias=AliasChoices(...)), which reads either, {_MAJOR}",
    ),
    "SC104": Rule(
        "error",
        "a field has values that older consumers refuse",
        f"deploy consumers that accept them first and accept this finding, {_MAJOR}",
    ),
    "SC105": Rule(
        "error", "a field refuses values that older producers send", f"keep accepting the old values, {_MAJOR}"
    ),
    "SC106": Rule(
        "error", "a limit of a field has changed", f"keep the old limit, or check the new one in the handler, {_MAJOR}"
    ),
    "SC107": Rule("error", "the format of a field has changed", f"keep the old format, {_MAJOR}"),
    "SC108": Rule("error", "a field has another type", f"add a field with another name, {_MAJOR}"),
    "SC109": Rule("error", "consumers refuse an added field", 'leave extra="forbid" out of the models of events'),
    "SC201": Rule(
        "warning", "an optional field was removed", "older consumers use their default from now on; check that they may"
    ),
    "SC202": Rule(
        "warning",
        "a change cannot be decided",
        "compare the two rules by hand, and test with messages of both versions",
    ),
    "SC203": Rule(
        "warning",
        "a default has changed",
        "an event without the field means something else from now on; is that right?",
    ),
    "SC301": Rule(
        "error",
        "the topic, key or tenant has changed",
        "events of both declarations have no common order, and subscriptions are bound to a topic: declare a new type",
    ),
    "SC302": Rule(
        "error",
        "a version was changed in place",
        "restore its files if they have changed, raise the minor version, and export again",
    ),
    "SC303": Rule("error", "a version is out of sequence", "use the version after the last one"),
    "SC304": Rule(
        "error",
        "a version was removed",
        'restore its files; to stop comparing with it, set "retired": true in the file',
    ),
    "SC305": Rule(
        "error",
        "an older major version has no handler",
        'keep a handler of the older class or add an upcaster; if no message of it is left, set "retired": true',
    ),
}
"""By code. Codes never change their meaning."""


class Parties(NamedTuple):
    """The services that publish a type and those that handle it, by name."""

    producers: tuple[str, ...] = ()
    consumers: tuple[str, ...] = ()


class Example(NamedTuple):
    """A message that would break.

    Args:
        data: The data of the event.
        reason: The reason for which a consumer would refuse it.
        proof: ``class``: the Python class was asked. ``schema``: only the committed schema could be, because the class
            of the other version is not here, or reads more leniently than its schema says.
    """

    data: Any
    reason: str
    proof: Literal["class", "schema"]


@dataclass
class Finding:
    """A rule that a change breaks.

    Args:
        path: The field, as in ``Break``; empty for the event as a whole.
        against: The older versions for which it holds.
        breaks: The comparisons behind it, with the direction and the older version of each.
        accepted: The reason for which a person has accepted it, and the date.
    """

    code: str
    type: str
    version: str
    path: str
    message: str
    against: list[str] = field(default_factory=list)
    directions: set[Direction] = field(default_factory=set)
    breaks: list[tuple[Direction, str, Break]] = field(default_factory=list)
    parties: Parties = field(default_factory=Parties)
    example: Example | None = None
    accepted: tuple[str, date] | None = None

    @property
    def rule(self) -> Rule:
        """The rule of its code."""
        return RULES[self.code]

    @property
    def fails(self) -> bool:
        """Whether the check fails because of it."""
        return self.rule.severity == "error" and self.accepted is None

    @property
    def affected(self) -> list[str]:
        """Who is affected, in words."""
        consumers = ", ".join(self.parties.consumers) or "every consumer"
        found = []
        if "forward" in self.directions:
            found.append(f"consumers that still have an older version: {consumers}")
        if "backward" in self.directions:
            producers = ", ".join(self.parties.producers) or "any producer"
            found.append(f"older messages of {producers}, in queues and dead-letter queues: {consumers}")
        return found
