"""The scenarios: each fault with single-event handlers and claims in PostgreSQL, and some of them with variants."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from tests.chaos.delivery_faults import DuplicateDelivery, ReorderedDelivery
from tests.chaos.faults import (
    NEVER_SECONDS,
    SHARE,
    FaultFunction,
    alter_deliveries,
    begin_with_a_reserve,
    combine,
    date_ten_minutes_off,
    expire_handles,
    hold,
    inject,
    kill_at,
    kill_at_both,
    kill_before_the_claim,
    kill_before_the_delete,
    kill_in_a_drain,
    kill_postgres,
    kill_the_relay_again,
    kill_the_relay_at_its_publish,
    lose_deletes,
    nothing,
    outlast_stalls,
    refuse_for_a_while,
    restart_postgres,
    restart_redis,
    stall,
    stop_past_the_lease,
    stop_with_a_reserve,
)

KILLED_BETWEEN = "the worker is killed between the effect and the completion of its claim"
LOST_WITH_POSTGRES = "the reply to the insert, or the completion of the claim, is lost with the server"
CONTINUED_LATE = "certain here, because the worker resumes and repeats effects that another one has caused meanwhile"
SIGNATURE = "Signature expired: 20261123T020000Z is now earlier than 20261123T021000Z"
TOKEN = "The security token included in the request is expired"
DISTANCE_SECONDS, FEW = 0.2, 4
"""The round trip of a receive call and the number of slots, for which messages are received ahead."""
RECEIVE, DELETE, PUBLISH, EXTEND = (
    "ReceiveMessage",
    "DeleteMessageBatch",
    "PublishBatch",
    "ChangeMessageVisibilityBatch",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A fault, and the services and the store that it affects.

    Args:
        key: The name on the command line.
        name: The fault, as a sentence.
        before: Called before events are published.
        during: Called after all events have been published.
        form: A key of ``tests.chaos.service.FORMS``.
        store: The store of the claims. Only PostgreSQL has transactions with effects.
        copies: If set, this number of copies of each event is sent directly to the queue.
        seconds: The duration of each handler call.
        later_seconds: The duration of the calls for the second half of the events.
        concurrency: The number of events that each worker handles at a time.
        times: This many times as many events are published as in the other scenarios.
        may_double: The reason why an effect outside the claims' database may happen twice; empty if it must not.
    """

    key: str
    name: str
    before: FaultFunction = nothing
    during: FaultFunction = nothing
    form: Literal["single", "batch", "fifo", "twins"] = "single"
    store: Literal["postgres", "redis", "dynamodb"] = "postgres"
    copies: int = 0
    seconds: float = 0.0
    later_seconds: float = 0.0
    concurrency: int = 10
    times: int = 1
    may_double: str = ""


def _new(
    key: str, name: str, before: FaultFunction = nothing, during: FaultFunction = nothing, **more: Any
) -> Scenario:
    return Scenario(key=key, name=name, before=before, during=during, **more)


FAULTS = [
    _new("killed-before-claim", "Both workers are killed after SQS has delivered messages, before any claim",
        kill_before_the_claim),
    _new("killed-before-commit", "Workers are killed in their handlers, before the commit", hold("before"),
        kill_at("before")),
    _new("killed-after-commit", "Workers are killed in their handlers, after the commit", hold("after"),
        kill_at("after"), may_double=KILLED_BETWEEN),
    _new("killed-at-both", "One worker is killed before the commit, then another one after it", hold("before"),
        kill_at_both, may_double=KILLED_BETWEEN),
    _new("killed-before-delete", "Both workers are killed after their handlers, before the delete", lose_deletes,
        kill_before_the_delete),
    _new("killed-in-drain", "Workers are killed in the middle of a drain", hold("before"),
        kill_in_a_drain),
    _new("stopped-with-reserve", "With messages received ahead, one worker is killed, and another one drains",
        combine(hold("before"), inject(RECEIVE, delay_seconds=DISTANCE_SECONDS)), stop_with_a_reserve,
        concurrency=FEW, times=3),
    _new("slow-after-fast", "Handlers become slow when messages have been received ahead",
        combine(hold("before"), inject(RECEIVE, delay_seconds=DISTANCE_SECONDS)), begin_with_a_reserve,
        concurrency=FEW, times=2, later_seconds=1.5),
    _new("receive-replies-lost", f"A fifth of the replies to {RECEIVE} is lost",
        inject(RECEIVE, share=SHARE, drop="reply")),
    _new("delete-replies-lost", f"A fifth of the replies to {DELETE} is lost",
        inject(DELETE, share=SHARE, drop="reply")),
    _new("publish-replies-lost", f"A fifth of the replies to {PUBLISH} is lost",
        inject(PUBLISH, share=SHARE, drop="reply")),
    _new("errors-500", "A fifth of all calls is answered with status 500",
        inject("", share=SHARE, answer=(500, "InternalError", "we are sorry"))),
    _new("throttled", "A fifth of all calls is throttled",
        inject("", share=SHARE, answer=(400, "ThrottlingException", "Rate exceeded"))),
    _new("connections-reset", "A fifth of all connections is reset, before or after the broker has acted",
        combine(inject("", share=SHARE / 2, drop="request"), inject("", share=SHARE / 2, drop="reply"))),
    _new("half-open", "Connections are half open: two calls of each kind are accepted, but never executed or answered",
        inject(RECEIVE, DELETE, PUBLISH, EXTEND, times=2, delay_seconds=NEVER_SECONDS), seconds=2.5),
    _new("receives-stall", "Receives stall for 30 seconds, and SQS delivers messages when the caller no longer waits",
        stall(RECEIVE, 2), outlast_stalls),
    _new("deletes-stall", "Deletes stall for 30 seconds, longer than the visibility timeout of five",
        stall(DELETE, 3), outlast_stalls),
    _new("publishes-stall", "Publishes stall for 30 seconds, and SNS accepts them after the caller has given up",
        stall(PUBLISH, 2), outlast_stalls),
    _new("extensions-stall", "Extensions of the visibility timeout stall for 30 seconds",
        stall(EXTEND, 4), outlast_stalls, seconds=2.5),
    _new("copies", "Each message is sent twice, in random order", copies=2),
    _new("delivered-twice", "SQS delivers messages a second time", alter_deliveries(DuplicateDelivery)),
    _new("reordered", "SQS delivers messages out of order, and some of them late", alter_deliveries(ReorderedDelivery)),
    _new("handles-expired", "Two fifths of the deletes are refused because the receipt handles have expired",
        expire_handles),
    _new("clock-off", "All calls are refused for five seconds because the clock is ten minutes off",
        during=refuse_for_a_while("InvalidSignatureException", SIGNATURE, date_ten_minutes_off), seconds=0.2),
    _new("credentials-expire", "All calls are refused for five seconds because the credentials have expired",
        during=refuse_for_a_while("ExpiredToken", TOKEN), seconds=0.2),
    _new("postgres-restarts", "PostgreSQL, which holds effects, claims and outbox, restarts during the run",
        during=restart_postgres, seconds=0.2, may_double=LOST_WITH_POSTGRES),
    _new("postgres-killed", "PostgreSQL's processes are killed during the run, and it recovers",
        during=kill_postgres, seconds=0.2, may_double=LOST_WITH_POSTGRES),
    _new("stopped", "A worker is suspended in its handlers until another one has done its work, then continues",
        hold("before"), stop_past_the_lease, may_double=CONTINUED_LATE),
    _new("relay-killed", "The relay is killed twice after SNS has accepted a batch, before it gets the reply",
        kill_the_relay_at_its_publish, kill_the_relay_again),
    _new("redis-restarts", "Redis, which holds the claims in memory, restarts during the run and loses them",
        during=restart_redis, store="redis", seconds=0.2, may_double="Redis without persistence loses its claims"),
]  # fmt: skip


class Variant(NamedTuple):
    """Some of the faults, repeated with other services or another store."""

    name: str
    changes: dict[str, Any]
    faults: tuple[str, ...]


VARIANTS = {
    "redis": Variant("claims in Redis", {"store": "redis"},
                     ("killed-before-commit", "killed-after-commit", "delivered-twice")),
    "dynamodb": Variant("claims in DynamoDB", {"store": "dynamodb"},
                        ("killed-before-commit", "killed-after-commit", "delivered-twice", "errors-500")),
    "fifo": Variant("a FIFO queue", {"form": "fifo"},
                    ("killed-before-commit", "killed-after-commit", "killed-in-drain", "receive-replies-lost",
                     "publish-replies-lost", "handles-expired", "throttled")),
    "twins": Variant("two services whose handlers have the same module and name share the store", {"form": "twins"},
                     ("killed-before-commit", "delivered-twice", "copies")),
    "batch": Variant("batch handlers", {"form": "batch"},
                     ("killed-before-commit", "killed-after-commit", "killed-in-drain", "delete-replies-lost",
                      "delivered-twice")),
}  # fmt: skip


def _build_variants() -> list[Scenario]:
    by_key = {scenario.key: scenario for scenario in FAULTS}
    return [
        replace(by_key[fault], key=f"{key}-{fault}", name=f"{by_key[fault].name}; {variant.name}", **variant.changes)
        for key, variant in VARIANTS.items()
        for fault in variant.faults
    ]


SCENARIOS = {scenario.key: scenario for scenario in [*FAULTS, *_build_variants()]}
