"""The setup of a scenario: broker, stores, workers and a relay, and the functions that inject faults into them."""

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
from tests.chaos.database import CHUNK, ScenarioDatabase
from tests.chaos.servers import ServiceProcess
from tests.support.processes import Keeper
from tests.support.proxy import Fault, FaultProxy
from tests.support.queues import Queues
from tests.support.waiting import DEADLINE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smartpipe import Event
    from tests.chaos.delivery_faults import DeliveryFault
    from tests.chaos.servers import RunSize, Servers
    from tests.chaos.service import Form
    from tests.support.calls import Call

WORKERS = 2
_DEPTHS = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed"]


class Setup:
    """The database, prefix, proxy and processes of one scenario. They end with it.

    Args:
        store: The store of the claims: ``postgres``, ``redis`` or ``dynamodb``.
        concurrency: The number of events that each worker handles at a time.
    """

    def __init__(
        self,
        servers: Servers,
        seed: str,
        form: Form,
        size: RunSize,
        *,
        store: str = "postgres",
        concurrency: int = 10,
    ) -> None:
        self.servers = servers
        self.concurrency = concurrency
        self.form = form
        self.store = store
        self.random = Random(seed)
        self.size = size
        self.processes: list[ServiceProcess] = []
        self.faults: list[Fault | DeliveryFault] = []
        self.kills = 0
        self.unexpected_exits: list[str] = []
        self._started = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.directory = Path(stack.enter_context(TemporaryDirectory(prefix="sp-", ignore_cleanup_errors=True)))
            self.keeper = stack.enter_context(Keeper())
            self.database = ScenarioDatabase(stack.enter_context(self.servers.postgres.database()))
            self.proxy = stack.enter_context(FaultProxy(self.servers.broker.endpoint_url))
            stack.enter_context(patch.dict(os.environ, self._environment(f"c{uuid4().hex[:8]}-")))
            asyncio.run(provision(*self.form.services.values()))
            sqs = boto3.client("sqs", endpoint_url=self.servers.broker.endpoint_url)
            stack.callback(sqs.close)
            self._sqs: Any = sqs
            self.queues = Queues(sqs)
            stack.callback(self._end)
            for target in self.form.services:
                for _ in range(WORKERS):
                    self._start("worker", f"{self.form.module}:{target}")
            self._start("relay")
            for process in self.processes:
                ready = "ready" if process.kind == "worker" else "relaying the outbox"
                process.wait_until(lambda process=process, ready=ready: process.logged(ready))  # type: ignore[misc]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    # Called by scenarios.

    def publish(self, events: Sequence[Event]) -> list[str]:
        """Publish the events with a Publisher, and return the ids of those that SNS has accepted."""
        event_ids: list[str] = []
        with Publisher("chaos-publisher") as publisher:
            for start in range(0, len(events), CHUNK):
                try:
                    event_ids += publisher.publish_many(events[start : start + CHUNK]).event_ids
                except PublishError:
                    continue  # the caller got an error, and these events may or may not arrive
        return event_ids

    def send_copies(self, events: Sequence[Event], copies: int) -> list[str]:
        """Send several copies of each event to every queue, in random order."""
        envelopes = [wrap(event, source="chaos-copies") for event in events]
        bodies = [encode(envelope) for envelope in envelopes] * copies
        self.random.shuffle(bodies)
        for service in self.form.services.values():
            self.queues.send(service.queue.name, *bodies)
        return [envelope.id for envelope in envelopes]

    @property
    def relay(self) -> ServiceProcess:
        return next(process for process in self.processes if process.kind == "relay")

    def hold(self, point: str) -> None:
        """Hold every handler at *point* until ``release``."""
        (self.directory / f"hold-{point}").touch()

    def release(self, point: str) -> None:
        (self.directory / f"hold-{point}").unlink()

    def wait_until_held(self, point: str) -> ServiceProcess:
        """Wait until a worker has a handler at *point*, and return this worker."""
        found: list[ServiceProcess] = []

        def find_held() -> bool:
            alive = [process for process in self.processes if not process.stopped]
            found.extend(process for process in alive if (self.directory / f"at-{point}-{process.pid}").exists())
            return bool(found)

        self.wait_until(find_held)
        return found[0]

    def kill(self, process: ServiceProcess) -> None:
        self.kills += 1
        process.kill()

    def wait_for_effects(self, count: int) -> None:
        """Wait until at least *count* effects have happened."""
        self.wait_until(lambda: self.database.count_effects() >= count)

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until *condition* holds. Meanwhile, replace processes that have ended."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"the condition did not hold within {DEADLINE_SECONDS} s"
            self.replace_ended()
            time.sleep(0.02)

    def inject(self, operation: str = "", *, share: float = 1.0, key: str = "", **options: Any) -> Fault:
        """Inject a fault into a random share of the calls with this access key, and always into the first call."""
        draws = chain([0.0], iter(self.random.random, None))

        def when(call: Call) -> bool:
            return call.access_key.startswith(key) and next(draws) < share

        fault = self.proxy.add(Fault(operation, when=when, **options))
        self.faults.append(fault)
        return fault

    def inject_delivery_fault(self, fault: DeliveryFault, *, queue: str = "") -> None:
        """Change the messages that workers receive, from all queues or from *queue*."""
        self.proxy.add(
            Fault("ReceiveMessage", rewrite=fault, when=lambda call: call.fields["QueueUrl"].endswith(queue))
        )
        self.faults.append(fault)

    def kill_at_reply(self, process: ServiceProcess, operation: str, needle: bytes) -> Fault:
        """Kill the process after the broker has carried out its call, and before it gets the reply."""

        def rewrite(status: int, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
            if needle in body and not process.stopped:
                self.kill(process)
            return status, headers, body

        return self.proxy.add(Fault(operation, when=lambda call: call.access_key == process.key, rewrite=rewrite))

    # Called by the runner.

    def replace_ended(self) -> None:
        """Start a new process for each that has ended."""
        for process in [process for process in self.processes if not process.running]:
            if not process.stopped:
                lines = process.lines
                self.unexpected_exits.append(f"{process.key}, exit code {process.wait()}: {lines[-1:]}")
            process.end()
            self.processes.remove(process)
            self._start(process.kind, *process.target)

    def count_remaining(self) -> int:
        """Return the number of messages in the queues, in any state, and of events in the outbox."""
        return self._count_messages(_DEPTHS) + self.database.count_unpublished()

    def count_in_flight(self) -> int:
        """Return the number of messages that workers have received and not yet deleted or returned."""
        return self._count_messages(["ApproximateNumberOfMessagesNotVisible"])

    def _count_messages(self, attributes: Sequence[str]) -> int:
        count = 0
        for service in self.form.services.values():
            url = self.queues.url(service.queue.name)
            response = self._sqs.get_queue_attributes(QueueUrl=url, AttributeNames=attributes)
            count += sum(int(response["Attributes"].get(name, 0)) for name in attributes)
        return count

    def count_dead_lettered(self) -> int:
        """Return the number of messages in dead-letter queues."""
        services = self.form.services.values()
        return sum(sum(self.queues.depth(service.queue.dead_letter_name)) for service in services)

    def settle(self, timeout_seconds: float) -> int:
        """Wait until queues and outbox are empty, and return the number that remains after the timeout."""
        deadline, quiet = time.monotonic() + timeout_seconds, 0
        while (remaining := self.count_remaining()) or quiet < 3:
            quiet = 0 if remaining else quiet + 1
            if time.monotonic() > deadline:
                break
            self.replace_ended()
            time.sleep(0.2)
        return remaining

    def drain(self) -> None:
        """Stop all processes with SIGTERM, as an orchestrator does."""
        for process in self.processes:
            process.signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait()
            except TimeoutExpired:
                self.unexpected_exits.append(f"{process.key} did not end after SIGTERM")

    def _environment(self, prefix: str) -> dict[str, str]:
        return {
            **self.servers.broker.environment,
            **self.servers.store_environment(self.store, self.database.url, prefix),
            "AWS_ENDPOINT_URL": self.proxy.endpoint_url,
            "AWS_ACCESS_KEY_ID": "publisher",
            "CHAOS_DIR": str(self.directory),
            "CHAOS_DATABASE_URL": self.database.url,
            "SMARTPIPE_OUTBOX_URL": self.database.url,
            "SMARTPIPE_PREFIX": prefix,
            "SMARTPIPE_CONCURRENCY": str(self.concurrency),
            "SMARTPIPE_WAIT_SECONDS": "1",
            "SMARTPIPE_LOG_FORMAT": "json",
        }

    def _start(self, kind: str, *target: str) -> None:
        self._started += 1
        process = ServiceProcess(f"{kind}-{self._started:03}", kind, *target)
        self.keeper.watch(process.pid)
        self.processes.append(process)

    def _end(self) -> None:
        for process in self.processes:
            process.end()
