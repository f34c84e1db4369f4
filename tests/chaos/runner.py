"""Run a scenario, and count its effects."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.chaos.scenarios import SCENARIOS
from tests.chaos.service import FORMS
from tests.chaos.setup import Setup

if TYPE_CHECKING:
    from tests.chaos.scenarios import Scenario
    from tests.chaos.servers import RunSize, Servers
    from tests.chaos.service import ChaosEvent

SETTLE_SECONDS = 120.0
ACCOUNTS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a scenario. Effects are counted by service and event.

    Args:
        key: The key of the scenario.
        error: The reason why the scenario could not be run to its end; empty if it was.
        published: The number of events that SNS, SQS or the outbox's transaction has accepted.
        expected: The number of effects that these events should have: one in each service.
        effects: The number of these effects that happened.
        plain: The number of events whose effect happens outside the claim's transaction.
        doubled: Events with more than one effect, where effect and claim are in one transaction.
        doubled_plain: Events with more than one effect, where the effect happens outside the transaction.
        out_of_order: Events of a FIFO queue whose effect happened after that of a later event of their group.
        dead_lettered: Messages in dead-letter queues.
        remaining: Messages in the queues and events in the outbox two minutes after the fault.
        kills: Processes that were killed.
        faults: Calls and deliveries with an injected fault.
        unexpected_exits: Processes that ended unexpectedly, with their exit codes.
    """

    key: str
    error: str = ""
    published: int = 0
    expected: int = 0
    effects: int = 0
    plain: int = 0
    doubled: int = 0
    doubled_plain: int = 0
    out_of_order: int = 0
    dead_lettered: int = 0
    remaining: int = 0
    kills: int = 0
    faults: int = 0
    seconds: float = 0.0
    unexpected_exits: tuple[str, ...] = ()

    @property
    def scenario(self) -> Scenario:
        return SCENARIOS[self.key]

    @property
    def missing(self) -> int:
        return self.expected - self.effects

    @property
    def violations(self) -> list[str]:
        """The figures that must be 0 and are not, or the reason why there are no figures."""
        if self.error:
            return [f"not run: {self.error}"]
        must_be_zero = {
            "effects missing": self.missing,
            "doubled with the transaction": self.doubled,
            "out of order": self.out_of_order,
            "dead-lettered": self.dead_lettered,
            "remaining": self.remaining,
        }
        if not self.scenario.may_double:
            must_be_zero["doubled with a plain insert"] = self.doubled_plain
        return [f"{figure} {name}" for name, figure in must_be_zero.items() if figure]


def run_scenario(servers: Servers, key: str, *, seed: int, size: RunSize) -> Outcome:
    """Run the scenario to its end."""
    started, scenario = time.monotonic(), SCENARIOS[key]
    form = FORMS[scenario.form]
    with Setup(servers, f"{seed} {key}", form, size, store=scenario.store, concurrency=scenario.concurrency) as setup:
        scenario.before(setup)
        published = _publish(setup, scenario, size.events * scenario.times)
        scenario.during(setup)
        remaining = setup.settle(SETTLE_SECONDS)
        setup.drain()
        counts = setup.database.count_by_event()
        return Outcome(
            key=key,
            published=len(published),
            expected=len(published) * len(setup.form.services),
            effects=len({(count.service, count.event_id) for count in counts if count.event_id in published}),
            plain=sum(count.handler == "plain" for count in counts),
            doubled=sum(count.times > 1 for count in counts if count.handler == "transaction"),
            doubled_plain=sum(count.times > 1 for count in counts if count.handler == "plain"),
            out_of_order=setup.database.count_out_of_order() if scenario.form == "fifo" else 0,
            dead_lettered=setup.count_dead_lettered(),
            remaining=remaining,
            kills=setup.kills,
            faults=sum(fault.hits for fault in setup.faults),
            seconds=time.monotonic() - started,
            unexpected_exits=tuple(setup.unexpected_exits),
        )


def _publish(setup: Setup, scenario: Scenario, count: int) -> set[str]:
    """Publish half of the events, and write the others, for whole accounts, into the outbox. Handlers alternate."""
    form = setup.form
    kinds = [form.booked, form.mailed] if scenario.store == "postgres" else [form.mailed]
    events: list[ChaosEvent] = [
        kinds[number // 2 % len(kinds)](number=number, account=str(number % ACCOUNTS), seconds=seconds)
        for number in range(count)
        for seconds in [(scenario.later_seconds or scenario.seconds) if number >= count // 2 else scenario.seconds]
    ]
    if scenario.copies:
        return set(setup.send_copies(events, scenario.copies))
    return {*setup.database.write_to_outbox(events[::2]), *setup.publish(events[1::2])}
