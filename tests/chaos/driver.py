"""Plays a scenario, and counts what came of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.chaos.scenarios import SCENARIOS
from tests.chaos.stage import Stage

if TYPE_CHECKING:
    from tests.chaos.scenarios import Scenario
    from tests.chaos.service import Happening
    from tests.chaos.stand import Extent, Stand

BOUND_SECONDS = 120.0
ACCOUNTS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a scenario. Effects are counted by service and event.

    Args:
        key: The scenario's.
        not_played: Why it could not be played to its end; empty: it was.
        published: Events that SNS, SQS or a commit is known to have taken.
        wanted: How many effects they should have: one in each service.
        effects: How many of these are there.
        plain: Events with an effect that is made outside of the claim's transaction.
        twice: Events with more than one effect, where effect and claim are one transaction.
        twice_plain: Events with more than one effect, where the effect is made outside of it.
        overtaken: Events of a FIFO queue that had their effect after a later one of their group.
        dead: Messages in the dead-letter queue.
        stranded: Messages still in the queue, and events in the outbox, when the bound was reached.
        hindered: Calls and deliveries that the proxy hindered.
        ended: Processes that ended by themselves, and how.
    """

    key: str
    not_played: str = ""
    published: int = 0
    wanted: int = 0
    effects: int = 0
    plain: int = 0
    twice: int = 0
    twice_plain: int = 0
    overtaken: int = 0
    dead: int = 0
    stranded: int = 0
    kills: int = 0
    hindered: int = 0
    seconds: float = 0.0
    ended: tuple[str, ...] = ()

    @property
    def scenario(self) -> Scenario:
        return SCENARIOS[self.key]

    @property
    def missing(self) -> int:
        return self.wanted - self.effects

    @property
    def broken(self) -> list[str]:
        """What had to be 0, and is not; or why there is nothing to say."""
        if self.not_played:
            return [f"not played: {self.not_played}"]
        must = {
            "effects missing": self.missing,
            "doubled with the transaction": self.twice,
            "out of order": self.overtaken,
            "dead-lettered": self.dead,
            "stranded": self.stranded,
        }
        if not self.scenario.may_double:
            must["doubled with a plain insert"] = self.twice_plain
        return [f"{figure} {what}" for what, figure in must.items() if figure]


def play(stand: Stand, key: str, *, seed: int, extent: Extent) -> Outcome:
    """Play it to its end."""
    started, scenario = time.monotonic(), SCENARIOS[key]
    with Stage(stand, f"{seed} {key}", scenario, extent) as stage:
        scenario.before(stage)
        published = _publish(stage, extent.events)
        scenario.during(stage)
        stranded = stage.settle(BOUND_SECONDS)
        stage.drain()
        counted = stage.ledger.counted()
        return Outcome(
            key=key,
            published=len(published),
            wanted=len(published) * len(stage.form.services),
            effects=len({(one.service, one.event_id) for one in counted if one.event_id in published}),
            plain=sum(one.handler == "plain" for one in counted),
            twice=sum(one.times > 1 for one in counted if one.handler == "transaction"),
            twice_plain=sum(one.times > 1 for one in counted if one.handler == "plain"),
            overtaken=stage.ledger.overtaken() if scenario.form == "fifo" else 0,
            dead=stage.dead(),
            stranded=stranded,
            kills=stage.kills,
            hindered=sum(hindrance.hits for hindrance in stage.hindrances),
            seconds=time.monotonic() - started,
            ended=tuple(stage.ended_by_themselves),
        )


def _publish(stage: Stage, count: int) -> set[str]:
    """Publish half of them, and write half into the outbox, whole accounts; the handlers alternate."""
    scenario, form = stage.scenario, stage.form
    kinds = [form.booked, form.mailed] if scenario.store == "postgres" else [form.mailed]
    made: list[Happening] = [
        kinds[number // 2 % len(kinds)](number=number, account=str(number % ACCOUNTS), seconds=scenario.seconds)
        for number in range(count)
    ]
    if scenario.copies:
        return set(stage.send_copies(made, scenario.copies))
    return {*stage.ledger.write(made[::2]), *stage.publish(made[1::2])}
