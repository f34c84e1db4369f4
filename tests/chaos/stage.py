"""Where a scenario is played: broker, stores, workers and a relay, and the ways to hinder them."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from random import Random
from subprocess import TimeoutExpired
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self
from unittest.mock import patch
from uuid import uuid4

import boto3

from smartpipe.blocking import Publisher
from smartpipe.envelope import encode, wrap
from smartpipe.errors import PublishError
from smartpipe.testing import provision
from tests.chaos.ledger import CHUNK, Ledger
from tests.chaos.service import FORMS
from tests.chaos.stand import Actor
from tests.support.proxy import Fault, FaultProxy
from tests.support.queues import Queues
from tests.support.waiting import DEADLINE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smartpipe import Event, Service
    from tests.chaos.deliveries import Deliveries
    from tests.chaos.scenarios import Scenario
    from tests.chaos.stand import Extent, Stand
    from tests.support.calls import Call

WORKERS = 2
_DEPTHS = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed"]


class Stage:
    """One scenario's own database, prefix, proxy and processes; they end with it."""

    def __init__(self, stand: Stand, seed: str, scenario: Scenario, extent: Extent) -> None:
        self.stand = stand
        self.scenario = scenario
        self.form = FORMS[scenario.form]
        self.random = Random(seed)
        self.extent = extent
        self.actors: list[Actor] = []
        self.hindrances: list[Fault | Deliveries] = []
        self.kills = 0
        self.ended_by_themselves: list[str] = []
        self._started = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.directory = Path(stack.enter_context(TemporaryDirectory(prefix="sp-", ignore_cleanup_errors=True)))
            self.ledger = Ledger(stack.enter_context(self.stand.postgres.database()))
            self.proxy = stack.enter_context(FaultProxy(self.stand.broker.endpoint_url))
            stack.enter_context(patch.dict(os.environ, self._environment(f"c{uuid4().hex[:8]}-")))
            asyncio.run(provision(*self.form.services.values()))
            sqs = boto3.client("sqs", endpoint_url=self.stand.broker.endpoint_url)
            stack.callback(sqs.close)
            self._sqs: Any = sqs
            self.queues = Queues(sqs)
            stack.callback(self._end)
            for target in self.form.services:
                for _ in range(WORKERS):
                    self._start("worker", f"tests.chaos.service:{target}")
            self._start("relay")
            for actor in self.actors:
                ready = "ready" if actor.kind == "worker" else "relaying the outbox"
                actor.process.wait_until(lambda actor=actor, ready=ready: actor.process.logged(ready))  # type: ignore[misc]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    # What a scenario does.

    def publish(self, events: Sequence[Event]) -> list[str]:
        """Publish them with a Publisher; return the ids of those that SNS is known to have taken."""
        taken: list[str] = []
        with Publisher("chaos-publisher") as publisher:
            for start in range(0, len(events), CHUNK):
                try:
                    taken += publisher.publish_many(events[start : start + CHUNK]).event_ids
                except PublishError:
                    continue  # the caller was told: whether they arrive is open
        return taken

    def send_copies(self, events: Sequence[Event], copies: int) -> list[str]:
        """Send each of them to every queue several times, in a random order."""
        envelopes = [wrap(event, source="chaos-copies") for event in events]
        bodies = [encode(envelope) for envelope in envelopes] * copies
        self.random.shuffle(bodies)
        for service in self.form.services.values():
            self.queues.send(service.queue.name, *bodies)
        return [envelope.id for envelope in envelopes]

    @property
    def relay(self) -> Actor:
        return next(actor for actor in self.actors if actor.kind == "relay")

    def hold(self, point: str) -> None:
        """Let no handler go past *point* from now on."""
        (self.directory / f"hold-{point}").touch()

    def release(self, point: str) -> None:
        (self.directory / f"hold-{point}").unlink()

    def wait_held(self, point: str) -> Actor:
        """Return a worker of which a handler stands at *point*."""
        found: list[Actor] = []

        def look() -> bool:
            alive = [actor for actor in self.actors if not actor.killed]
            found.extend(actor for actor in alive if (self.directory / f"at-{point}-{actor.process.pid}").exists())
            return bool(found)

        self.wait(look)
        return found[0]

    def kill(self, actor: Actor) -> None:
        self.kills += 1
        actor.kill()

    def wait_effects(self, count: int) -> None:
        """Return when at least so many effects have happened."""
        self.wait(lambda: self.ledger.effects() >= count)

    def wait(self, condition: Callable[[], object]) -> None:
        """Return when *condition* is true; meanwhile who is gone is replaced."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"not true within {DEADLINE_SECONDS} s"
            self.replace()
            time.sleep(0.02)

    def hinder(self, operation: str = "", *, share: float = 1.0, key: str = "", **how: Any) -> Fault:
        """Hinder a share of the calls, by lot, of whoever has the access key; the first one for certain."""
        lots = chain([0.0], iter(self.random.random, None))

        def when(call: Call) -> bool:
            return call.access_key.startswith(key) and next(lots) < share

        fault = self.proxy.add(Fault(operation, when=when, **how))
        self.hindrances.append(fault)
        return fault

    def deliver(self, deliveries: Deliveries) -> None:
        """Let workers get messages so."""
        self.proxy.add(Fault("ReceiveMessage", rewrite=deliveries))
        self.hindrances.append(deliveries)

    def kill_at_reply(self, actor: Actor, operation: str, needle: bytes) -> Fault:
        """Kill it when the broker has done what it asked for, and before it hears of that."""

        def rewrite(status: int, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
            if needle in body and not actor.killed:
                self.kill(actor)
            return status, headers, body

        return self.proxy.add(Fault(operation, when=lambda call: call.access_key == actor.key, rewrite=rewrite))

    # What the driver asks.

    def replace(self) -> None:
        """Start another process for each that is gone."""
        for actor in [actor for actor in self.actors if not actor.process.running]:
            if not actor.killed:
                lines = actor.process.lines
                self.ended_by_themselves.append(f"{actor.key}, exit code {actor.process.wait()}: {lines[-1:]}")
            actor.process.end()
            self.actors.remove(actor)
            self._start(actor.kind, *actor.target)

    def waiting(self) -> int:
        """How many messages are in the queues in any way, and how many events in the outbox."""
        return sum(map(self._in_queue, self.form.services.values())) + self.ledger.unpublished()

    def _in_queue(self, service: Service) -> int:
        url = self.queues.url(service.queue.name)
        answer = self._sqs.get_queue_attributes(QueueUrl=url, AttributeNames=_DEPTHS)
        return sum(int(answer["Attributes"].get(name, 0)) for name in _DEPTHS)

    def dead(self) -> int:
        """How many messages are in dead-letter queues."""
        return sum(sum(self.queues.depth(one.queue.dead_letter_name)) for one in self.form.services.values())

    def settle(self, bound_seconds: float) -> int:
        """Wait until nothing waits any more; return what still does after the bound."""
        deadline, quiet = time.monotonic() + bound_seconds, 0
        while (left := self.waiting()) or quiet < 3:
            quiet = 0 if left else quiet + 1
            if time.monotonic() > deadline:
                break
            self.replace()
            time.sleep(0.2)
        return left

    def drain(self) -> None:
        """End all processes as an orchestrator does."""
        for actor in self.actors:
            actor.process.signal(signal.SIGTERM)
        for actor in self.actors:
            try:
                actor.process.wait()
            except TimeoutExpired:
                self.ended_by_themselves.append(f"{actor.key} did not end at SIGTERM")

    def _environment(self, prefix: str) -> dict[str, str]:
        return {
            **self.stand.broker.environment,
            **self.stand.store_environment(self.scenario.store, self.ledger.url, prefix),
            "AWS_ENDPOINT_URL": self.proxy.endpoint_url,
            "AWS_ACCESS_KEY_ID": "publisher",
            "CHAOS_DIR": str(self.directory),
            "CHAOS_DATABASE_URL": self.ledger.url,
            "SMARTPIPE_OUTBOX_URL": self.ledger.url,
            "SMARTPIPE_PREFIX": prefix,
            "SMARTPIPE_WAIT_SECONDS": "1",
            "SMARTPIPE_LOG_FORMAT": "json",
        }

    def _start(self, kind: str, *target: str) -> None:
        self._started += 1
        self.actors.append(Actor(f"{kind}-{self._started:03}", kind, *target))

    def _end(self) -> None:
        for actor in self.actors:
            actor.process.end()
