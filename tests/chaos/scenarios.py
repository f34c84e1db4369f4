"""What is done to the system, each a sentence."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.stage import Stage

SHARE = 0.2
STALL_SECONDS = 8.0
EXPIRED_SECONDS = 5.0


def nothing(_: Stage) -> None:
    """Hinder nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One way to hinder the system.

    Args:
        key: How it is called on the command line.
        name: What happens, as a sentence.
        before: Done before anything is published.
        during: Done when everything has been published.
        store: Where the claims are. Only in PostgreSQL have they transactions.
        copies: So many messages of each event are sent straight to the queue.
        seconds: So long each handler takes.
        may_double: Why an effect outside of the claims' database may happen twice here; empty: it may not.
    """

    key: str
    name: str
    before: Callable[[Stage], None] = nothing
    during: Callable[[Stage], None] = nothing
    store: Literal["postgres", "redis"] = "postgres"
    copies: int = 0
    seconds: float = 0.0
    may_double: str = ""


def _kill_before_the_claim(stage: Stage) -> None:
    workers = [actor for actor in stage.actors if actor.kind == "worker"]
    faults = [stage.kill_at_reply(worker, "ReceiveMessage", b'"Body"') for worker in workers]
    # The polls that are open already would bring messages to a worker that lives.
    stage.wait(lambda: all(fault.hits for fault in faults))


def _kill_at(point: str) -> Callable[[Stage], None]:
    def kill(stage: Stage) -> None:
        for _ in range(stage.extent.rounds):
            stage.kill(stage.wait_held(point))
        stage.release(point)

    return kill


def _kill_at_both(stage: Stage) -> None:
    stage.kill(stage.wait_held("before"))
    stage.hold("after")
    stage.release("before")
    stage.kill(stage.wait_held("after"))
    stage.release("after")


def _kill_in_a_drain(stage: Stage) -> None:
    for _ in range(stage.extent.rounds):
        actor = stage.wait_held("before")
        actor.process.signal(signal.SIGTERM)
        actor.process.wait_until(lambda actor=actor: actor.process.logged("draining"))  # type: ignore[misc]
        stage.kill(actor)
    stage.release("before")


def _kill_the_relay(stage: Stage) -> None:
    """Kill the one that is running at its first batch, and the one that takes its place at its own."""
    stage.relay.process.wait()
    stage.replace()
    stage.kill_at_reply(stage.relay, "PublishBatch", b"")
    stage.relay.process.wait()


def _restart_postgres(stage: Stage) -> None:
    stage.wait_effects(10)
    stage.stand.postgres.stop()
    time.sleep(1)
    stage.stand.postgres.start()


def _kill_postgres(stage: Stage) -> None:
    stage.wait_effects(10)
    stage.stand.kill_postgres()
    time.sleep(1)
    stage.stand.postgres.start()


def _stop_past_the_lease(stage: Stage) -> None:
    actor = stage.wait_held("before")
    actor.process.signal(signal.SIGSTOP)
    stage.release("before")
    stage.settle(60)  # as long as another needs to get its messages, and to have their effects
    actor.process.signal(signal.SIGCONT)


def _restart_redis(stage: Stage) -> None:
    stage.wait_effects(10)
    stage.stand.redis.stop()
    time.sleep(1)
    stage.stand.redis.start()


def _expire(stage: Stage) -> None:
    stage.wait_effects(10)
    expired = stage.hinder(answer=(403, "ExpiredToken", "The security token included in the request is expired"))
    time.sleep(EXPIRED_SECONDS)
    expired.times = 0


SCENARIOS = [
    Scenario(
        key="killed-before-claim",
        name="Both workers are killed when SQS has handed out messages and nothing is claimed",
        before=_kill_before_the_claim,
    ),
    Scenario(
        key="killed-before-commit",
        name="Workers are killed in handlers, before the commit",
        before=lambda stage: stage.hold("before"),
        during=_kill_at("before"),
    ),
    Scenario(
        key="killed-after-commit",
        name="Workers are killed after the commit, before the delete",
        before=lambda stage: stage.hold("after"),
        during=_kill_at("after"),
        may_double="killed between effect and completion",
    ),
    Scenario(
        key="killed-at-both",
        name="One worker is killed before the commit, and then another after it",
        before=lambda stage: stage.hold("before"),
        during=_kill_at_both,
        may_double="killed between effect and completion",
    ),
    Scenario(
        key="killed-in-drain",
        name="Workers are told to drain, and killed in the middle of it",
        before=lambda stage: stage.hold("before"),
        during=_kill_in_a_drain,
    ),
    Scenario(
        key="receive-replies-lost",
        name="A fifth of ReceiveMessage's replies is lost on the way back",
        before=lambda stage: void(stage.hinder("ReceiveMessage", share=SHARE, drop="reply")),
    ),
    Scenario(
        key="delete-replies-lost",
        name="A fifth of DeleteMessageBatch's replies is lost on the way back",
        before=lambda stage: void(stage.hinder("DeleteMessageBatch", share=SHARE, drop="reply")),
    ),
    Scenario(
        key="publish-replies-lost",
        name="A fifth of PublishBatch's replies is lost on the way back",
        before=lambda stage: void(stage.hinder("PublishBatch", share=SHARE, drop="reply")),
    ),
    Scenario(
        key="errors-500",
        name="A fifth of all calls is answered with 500",
        before=lambda stage: void(stage.hinder(share=SHARE, answer=(500, "InternalError", "we are sorry"))),
    ),
    Scenario(
        key="throttled",
        name="A fifth of all calls is throttled",
        before=lambda stage: void(stage.hinder(share=SHARE, answer=(400, "ThrottlingException", "Rate exceeded"))),
    ),
    Scenario(
        key="connections-reset",
        name="A fifth of all connections is reset, before or after the broker acted",
        before=lambda stage: void(
            stage.hinder(share=SHARE / 2, drop="request"), stage.hinder(share=SHARE / 2, drop="reply")
        ),
    ),
    Scenario(
        key="deletes-stall",
        name="Deletes stall for eight seconds, past the visibility timeout of five",
        before=lambda stage: void(stage.hinder("DeleteMessageBatch", times=3, delay_seconds=STALL_SECONDS)),
    ),
    Scenario(
        key="copies",
        name="Each message comes twice",
        copies=2,
    ),
    Scenario(
        key="postgres-restarts",
        name="PostgreSQL, which has effects, claims and outbox, restarts in the middle",
        during=_restart_postgres,
        seconds=0.2,
        may_double="the answer to the insert, or its completion, is lost in the restart",
    ),
    Scenario(
        key="postgres-killed",
        name="PostgreSQL's processes are killed in the middle, and it recovers",
        during=_kill_postgres,
        seconds=0.2,
        may_double="the answer to the insert, or its completion, is lost with the server",
    ),
    Scenario(
        key="stopped",
        name="A worker stands still in its handlers until another has done its work, and goes on",
        before=lambda stage: stage.hold("before"),
        during=_stop_past_the_lease,
        may_double="here for certain: the worker goes on with effects that another has had meanwhile",
    ),
    Scenario(
        key="redis-killed-before",
        name="Workers are killed in handlers, before the effect; claims in Redis",
        store="redis",
        before=lambda stage: stage.hold("before"),
        during=_kill_at("before"),
    ),
    Scenario(
        key="redis-killed-after",
        name="Workers are killed after the effect, before its completion; claims in Redis",
        store="redis",
        before=lambda stage: stage.hold("after"),
        during=_kill_at("after"),
        may_double="killed between effect and completion",
    ),
    Scenario(
        key="redis-restarts",
        name="Redis, which has the claims in memory, restarts in the middle and forgets",
        store="redis",
        during=_restart_redis,
        seconds=0.2,
        may_double="a Redis in memory forgets its claims",
    ),
    Scenario(
        key="relay-killed",
        name="The relay is killed twice when SNS has taken a batch and it has not heard of that",
        before=lambda stage: void(stage.kill_at_reply(stage.relay, "PublishBatch", b"")),
        during=_kill_the_relay,
    ),
    Scenario(
        key="credentials-expire",
        name="All calls are answered with 403 ExpiredToken for five seconds",
        during=_expire,
        seconds=0.2,
    ),
]


def void(*_: object) -> None:
    """Make a statement of expressions."""
