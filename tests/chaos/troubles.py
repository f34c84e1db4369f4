"""The ways to hinder a system, each a function of a stage or one that makes such."""

from __future__ import annotations

import signal
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any, TypeAlias

from tests.chaos.deliveries import handles_expired
from tests.support.proxy import Fault

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from tests.chaos.deliveries import Deliveries
    from tests.chaos.stage import Stage
    from tests.chaos.stand import Actor

Trouble: TypeAlias = "Callable[[Stage], None]"

SHARE = 0.2
STALL_SECONDS = 30.0
NEVER_SECONDS = 600.0
REFUSED_SECONDS = 5.0
SKEW = timedelta(minutes=10)


def nothing(_: Stage) -> None:
    """Hinder nothing."""


def hold(point: str) -> Trouble:
    """Let no handler go past *point*."""
    return lambda stage: stage.hold(point)


def hinder(*operations: str, share: float = 1.0, **how: Any) -> Trouble:
    """Hinder a share of each operation's calls; the empty one is any."""

    def begin(stage: Stage) -> None:
        for operation in operations:
            stage.hinder(operation, share=share, **how)

    return begin


def all_of(*troubles: Trouble) -> Trouble:
    """Begin all of them."""

    def begin(stage: Stage) -> None:
        for trouble in troubles:
            trouble(stage)

    return begin


def stall(operation: str, times: int) -> Trouble:
    """Let the broker act, and answer, half a minute late."""
    return hinder(operation, times=times, delay_seconds=STALL_SECONDS)


def outlast_stalls(stage: Stage) -> None:
    """Wait until the broker has acted on all that stalled: what it does so late is part of the trouble."""
    stalls = [hindrance for hindrance in stage.hindrances if isinstance(hindrance, Fault)]
    stage.wait(lambda: all(stalled.hits == stalled.times for stalled in stalls))
    until = max(stalled.hit_at[-1] for stalled in stalls) + STALL_SECONDS + 1
    time.sleep(max(0.0, until - time.monotonic()))


def deliver(make: Callable[[Random], Deliveries]) -> Trouble:
    """Let workers get messages so."""
    return lambda stage: stage.deliver(make(stage.random))


def expire_handles(stage: Stage) -> None:
    stage.hinder("DeleteMessageBatch", share=2 * SHARE, respond=handles_expired(stage.random))


def refuse_for_a_while(code: str, message: str, headers: Callable[[], dict[str, str]] = dict) -> Trouble:
    """Answer all calls with 403 and *code*, in the middle of the work."""

    def refuse(stage: Stage) -> None:
        stage.wait_effects(10)
        fault = stage.hinder(answer=(403, code, message), headers=headers())
        time.sleep(REFUSED_SECONDS)
        fault.times = 0

    return refuse


def date_ten_minutes_off() -> dict[str, str]:
    """Return the header by which AWS tells what time it is there."""
    return {"Date": format_datetime(datetime.now(UTC) + SKEW, usegmt=True)}


def kill_before_the_claim(stage: Stage) -> None:
    faults = [stage.kill_at_reply(worker, "ReceiveMessage", b'"Body"') for worker in _workers(stage)]
    # The polls that are open already would bring messages to a worker that lives.
    stage.wait(lambda: all(fault.hits for fault in faults))


def lose_deletes(stage: Stage) -> None:
    """Let no delete of the workers that run now reach SQS."""
    for actor in _workers(stage):
        stage.hinder("DeleteMessageBatch", key=actor.key, drop="request")


def kill_before_the_delete(stage: Stage) -> None:
    """Kill both workers when they have asked for deletes, and no handler is between its effect and its completion."""
    stage.wait(lambda: all(hindrance.hits for hindrance in stage.hindrances))
    workers = _workers(stage)
    stage.hold("before")
    time.sleep(1)  # until who is past that point has its effect
    stage.wait(lambda: stage.ledger.effects() == stage.ledger.completed())
    for actor in workers:
        stage.kill(actor)
    stage.release("before")


def kill_at(point: str) -> Trouble:
    def kill(stage: Stage) -> None:
        for _ in range(stage.extent.rounds):
            stage.kill(stage.wait_held(point))
        stage.release(point)

    return kill


def kill_at_both(stage: Stage) -> None:
    stage.kill(stage.wait_held("before"))
    stage.hold("after")
    stage.release("before")
    stage.kill(stage.wait_held("after"))
    stage.release("after")


def kill_in_a_drain(stage: Stage) -> None:
    for _ in range(stage.extent.rounds):
        actor = stage.wait_held("before")
        actor.process.signal(signal.SIGTERM)
        actor.process.wait_until(lambda actor=actor: actor.process.logged("draining"))  # type: ignore[misc]
        stage.kill(actor)
    stage.release("before")


def kill_the_relay_at_its_publish(stage: Stage) -> None:
    stage.kill_at_reply(stage.relay, "PublishBatch", b"")


def kill_the_relay_again(stage: Stage) -> None:
    """Wait for the end of the one that is running, and kill the one that takes its place at its own first batch."""
    stage.relay.process.wait()
    stage.replace()
    kill_the_relay_at_its_publish(stage)
    stage.relay.process.wait()


def restart_postgres(stage: Stage) -> None:
    stage.wait_effects(10)
    stage.stand.postgres.stop()
    time.sleep(1)
    stage.stand.postgres.start()


def kill_postgres(stage: Stage) -> None:
    stage.wait_effects(10)
    stage.stand.kill_postgres()
    time.sleep(1)
    stage.stand.postgres.start()


def restart_redis(stage: Stage) -> None:
    stage.wait_effects(10)
    stage.stand.redis.stop()
    time.sleep(1)
    stage.stand.redis.start()


def stop_past_the_lease(stage: Stage) -> None:
    actor = stage.wait_held("before")
    actor.process.signal(signal.SIGSTOP)
    stage.release("before")
    stage.settle(60)  # as long as another needs to get its messages, and to have their effects
    actor.process.signal(signal.SIGCONT)


def _workers(stage: Stage) -> list[Actor]:
    return [actor for actor in stage.actors if actor.kind == "worker"]
