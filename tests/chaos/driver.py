"""Plays a scenario, and counts what came of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.chaos.service import Booked, Mailed
from tests.chaos.stage import Stage

if TYPE_CHECKING:
    from tests.chaos.scenarios import Scenario
    from tests.chaos.stand import Extent, Stand

BOUND_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a scenario. Effects are counted by event.

    Args:
        published: Events that SNS, SQS or a commit is known to have taken.
        effects: How many of these have an effect.
        plain: Events with an effect that is made outside of the claim's transaction.
        twice: Events with more than one effect, where effect and claim are one transaction.
        twice_plain: Events with more than one effect, where the effect is made outside of it.
        dead: Messages in the dead-letter queue.
        stranded: Messages still in the queue, and events in the outbox, when the bound was reached.
        hindered: Calls that the proxy hindered.
        ended: Processes that ended by themselves, and how.
    """

    scenario: Scenario
    published: int
    effects: int
    plain: int
    twice: int
    twice_plain: int
    dead: int
    stranded: int
    kills: int
    hindered: int
    seconds: float
    ended: tuple[str, ...] = ()

    @property
    def missing(self) -> int:
        return self.published - self.effects

    @property
    def broken(self) -> list[str]:
        """What had to be 0, and is not."""
        must = {
            "effects missing": self.missing,
            "doubled with the transaction": self.twice,
            "dead-lettered": self.dead,
            "stranded": self.stranded,
        }
        if not self.scenario.may_double:
            must["doubled with a plain insert"] = self.twice_plain
        return [f"{figure} {what}" for what, figure in must.items() if figure]


def play(stand: Stand, scenario: Scenario, *, seed: int, extent: Extent) -> Outcome:
    """Play it to its end."""
    started = time.monotonic()
    with Stage(stand, f"{seed} {scenario.key}", store=scenario.store, extent=extent) as stage:
        scenario.before(stage)
        published = _publish(stage, scenario, extent.events)
        scenario.during(stage)
        stranded = stage.settle(BOUND_SECONDS)
        stage.drain()
        counted = stage.counted()
        hindered = sum(fault.hits for fault in stage.proxy.faults if fault.rewrite is None)
        return Outcome(
            scenario=scenario,
            published=len(published),
            effects=len(published & {event_id for _, event_id, _ in counted}),
            plain=sum(handler == "plain" for handler, _, _ in counted),
            twice=sum(times > 1 for handler, _, times in counted if handler == "transaction"),
            twice_plain=sum(times > 1 for handler, _, times in counted if handler == "plain"),
            dead=sum(stage.queues.depth("chaos-dlq")),
            stranded=stranded,
            kills=stage.kills,
            hindered=hindered,
            seconds=time.monotonic() - started,
            ended=tuple(stage.ended_by_themselves),
        )


def _publish(stage: Stage, scenario: Scenario, count: int) -> set[str]:
    """Publish half of them, and write half into the outbox; the handlers alternate."""
    kinds = [Mailed] if scenario.store == "redis" else [Booked, Mailed]
    made = [kinds[number // 2 % len(kinds)](number=number, seconds=scenario.seconds) for number in range(count)]
    if scenario.copies:
        return set(stage.send_copies(made, scenario.copies))
    return {*stage.write(made[::2]), *stage.publish(made[1::2])}
