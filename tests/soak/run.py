"""Run the soak: producers and services under random kills and faults, and then the count of all effects."""

from __future__ import annotations

import json
import time
from collections import Counter
from contextlib import ExitStack
from signal import SIGTERM
from subprocess import TimeoutExpired
from typing import TYPE_CHECKING, Any

import boto3

from smartpipe.consumer.dead_letter import REASON_ATTRIBUTE
from smartpipe.envelope import encode, wrap
from tests.chaos.servers import RunSize, Servers
from tests.chaos.setup import WORKERS, Setup
from tests.soak.disturbances import NAMES, Schedule, deploy_one, disturb, kill_one
from tests.soak.poison import make_poison
from tests.soak.samples import CpuMeter, take_sample
from tests.soak.service import FORM, HANDLED_BY, Paid
from tests.support.planted import refuse_planted
from tests.support.processes import Process

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.chaos.servers import ServiceProcess
    from tests.soak.record import Record

PRODUCERS = ("publisher", "outbox")
TICK_SECONDS = 0.25
SAMPLE_SECONDS, SHORT_SAMPLE_SECONDS = 10.0, 2.0
REPORT_SECONDS = 60.0
KILL_SECONDS, DEPLOY_SECONDS = 30.0, 60.0
POISON_SECONDS, COPY_SECONDS = 4.0, 5.0
QUIET_SECONDS, DISTURBED_SECONDS = 15.0, 10.0
LATE_SECONDS = 90.0
SETTLE_SECONDS = 120.0
DRAIN_SECONDS = 40.0
KEPT_LINES = 20


class Producer(Process):
    """A producer, which is never killed. The ids of accepted events are lines of its file."""

    module = "tests.soak.producer"

    def __init__(self, kind: str, rate: float, accepted: Path) -> None:
        self.key = f"producer-{kind}"
        self.accepted = accepted
        accepted.touch()
        super().__init__(kind, str(rate), str(accepted), AWS_ACCESS_KEY_ID=self.key)


def run_soak(record: Record, report: Callable[[str], None]) -> None:
    """Run for ``record.minutes``, and complete *record*. All processes end with this call."""
    with Servers() as servers, Setup(servers, f"soak {record.seed}", FORM, RunSize()) as setup:
        Soak(setup, record, report).run()


class Soak:
    """The run itself, with the state that it keeps in between."""

    def __init__(self, setup: Setup, record: Record, report: Callable[[str], None]) -> None:
        self._setup = setup
        self._record = record
        self._report = report
        self._started = time.monotonic()
        self._expected: dict[tuple[str, str], float] = {}
        self._poison: dict[tuple[str, str], str] = {}
        self._draining: list[tuple[ServiceProcess, float]] = []
        self._names = list[str]()
        self._window = ExitStack()
        self._cpu = CpuMeter()
        self._cpu_before = self._cpu.read()
        self._read: Counter[str] = Counter()
        self._ready: set[str] = set()

    def run(self) -> None:
        setup, record = self._setup, self._record
        for position, target in enumerate(FORM.services):
            record.spared.append(setup.processes[position * WORKERS].key)
            assert setup.processes[position * WORKERS].target == (f"{FORM.module}:{target}",)
        with ExitStack() as stack:
            sqs: Any = boto3.client("sqs", endpoint_url=setup.servers.broker.endpoint_url)
            stack.callback(sqs.close)
            self._sqs = sqs
            self._producers = [Producer(kind, record.rate, setup.directory / kind) for kind in PRODUCERS]
            for producer in self._producers:
                stack.callback(producer.end)
                setup.keeper.watch(producer.pid)
                record.spared.append(producer.key)
            self._disturb()
            self._settle()
        self._count()
        record.seconds = self._now()
        record.cpu_cores = self._read_cores()

    def _now(self) -> float:
        return time.monotonic() - self._started

    def _read_cores(self) -> float:
        return (self._cpu.read() - self._cpu_before) / self._now()

    def _disturb(self) -> None:
        setup, record = self._setup, self._record
        schedule = Schedule(setup.random)
        sample_seconds = SAMPLE_SECONDS if record.minutes > 10 else SHORT_SAMPLE_SECONDS
        schedule.every(KILL_SECONDS, self._kill)
        schedule.every(DEPLOY_SECONDS, self._deploy)
        schedule.every(POISON_SECONDS, self._send_poison)
        schedule.every(COPY_SECONDS, self._send_copies)
        self._begin_window(schedule)
        sample_at, report_at, end = 0.0, REPORT_SECONDS, record.minutes * 60
        while self._now() < end:
            schedule.run_due()
            self._read_lines()
            setup.replace_ended()
            self._check_drains()
            if self._now() >= sample_at:
                sample_at = self._now() + sample_seconds
                self._sample()
            if self._now() >= report_at:
                report_at += REPORT_SECONDS
                self._report(self._describe())
            time.sleep(TICK_SECONDS)
        self._window.close()

    def _settle(self) -> None:
        """Stop the producers, wait until the queues are empty, and drain all processes."""
        setup, record = self._setup, self._record
        for producer in self._producers:
            producer.signal(SIGTERM)
        for producer in self._producers:
            code = producer.wait()
            if code:
                record.failed_ends.append(f"{producer.key}, exit code {code}: {producer.lines[-1:]}")
        self._read_accepted()
        self._report(f"settling: {setup.count_remaining()} messages and rows remain")
        record.stranded = setup.settle(SETTLE_SECONDS)
        self._check_drains(wait=True)
        setup.wait_until(self._are_all_ready)
        setup.drain()
        self._read_lines()
        for process in [process for process in setup.processes if not process.running]:
            code = process.wait()
            if code:
                record.bad_drains.append(f"{process.key}, exit code {code} without a fault: {process.lines[-1:]}")
        record.failed_ends += setup.unexpected_exits

    def _are_all_ready(self) -> bool:
        self._read_lines()
        return all(process.key in self._ready for process in self._setup.processes)

    # Disturbances.

    def _begin_window(self, schedule: Schedule) -> None:
        """Begin the next disturbance. Each comes once before any comes again."""
        if not self._names:
            self._names = list(NAMES)
            self._setup.random.shuffle(self._names)
        name, seconds = self._names.pop(), DISTURBED_SECONDS * self._setup.random.uniform(0.5, 1.5)
        began = self._now()
        self._window.enter_context(disturb(self._setup, name))

        def end() -> None:
            self._window.close()
            self._record.disturbances.append((name, began, self._now()))
            schedule.after(QUIET_SECONDS * self._setup.random.uniform(0.5, 1.5), lambda: self._begin_window(schedule))

        schedule.after(seconds, end)

    def _kill(self) -> None:
        kill_one(self._setup, set(self._record.spared))
        self._record.kills.append(self._now())

    def _deploy(self) -> None:
        process = deploy_one(self._setup, self._ready - set(self._record.spared))
        if process is not None:
            self._draining.append((process, self._now()))

    def _check_drains(self, *, wait: bool = False) -> None:
        """Check the exit codes of stopped processes. 1 means that a message will be delivered again."""
        for process, since in list(self._draining):
            try:
                code = process.wait(DRAIN_SECONDS if wait else 0.001)
            except TimeoutExpired:
                if wait or self._now() - since > DRAIN_SECONDS:
                    self._draining.remove((process, since))
                    self._record.bad_drains.append(f"{process.key} still runs after {DRAIN_SECONDS:.0f} s")
                continue
            self._draining.remove((process, since))
            self._record.drains += 1
            self._record.drains_with_1 += code == 1
            if code not in {0, 1, -9}:  # it may have been killed in its drain
                self._record.bad_drains.append(f"{process.key}, exit code {code}: {process.lines[-1:]}")

    def _send_poison(self) -> None:
        number = self._record.poison
        service = list(FORM.services.values())[number % len(FORM.services)]
        body, kind = make_poison(number, fifo=service.queue.fifo)
        group = {"MessageGroupId": "poison", "MessageDeduplicationId": str(number)} if service.queue.fifo else {}
        self._sqs.send_message(QueueUrl=self._setup.queues.url(service.queue.name), MessageBody=body, **group)
        self._poison[service.name, body] = kind
        self._record.poison += 1

    def _send_copies(self) -> None:
        """Send two copies of one event to the queue of an idempotent handler."""
        envelope = wrap(Paid(number=len(self._expected), account="copies"), source="soak-copies")
        self._setup.queues.send("ledger", *[encode(envelope)] * 2)
        self._expected["ledger", envelope.id] = self._now()
        self._record.accepted += 1

    # Measurements.

    def _sample(self) -> None:
        setup, record, now = self._setup, self._record, self._now()
        self._read_accepted()
        setup.proxy.calls.clear()
        self._cpu.read()
        processes: list[ServiceProcess | Producer] = [*setup.processes, *self._producers]
        for process in processes:
            record.names.setdefault(process.key, self._name_of(process))
            sample = take_sample(process.pid, now)
            if sample is not None and process.running:
                record.samples.setdefault(process.key, []).append(sample)
        record.effects = setup.database.count_effects()
        record.progress.append((round(now, 1), record.accepted, record.effects, setup.count_remaining()))

    def _name_of(self, process: ServiceProcess | Producer) -> str:
        if isinstance(process, Producer):
            return process.key
        return process.target[0].rpartition(":")[2] if process.target else process.kind

    def _read_accepted(self) -> None:
        """Read the events that producers have recorded since the last call."""
        for producer in self._producers:
            lines = producer.accepted.read_text().splitlines()
            for line in lines[self._read[producer.key] :]:
                event_id, class_name = json.loads(line)
                self._record.accepted += 1
                self._expected |= {(service, event_id): self._now() for service in HANDLED_BY[class_name]}
            self._read[producer.key] = len(lines)

    def _read_lines(self) -> None:
        """Read which processes are ready, count internal errors, and forget old lines, which would fill the memory."""
        for process in self._setup.processes:
            count = len(process.lines)
            new = process.lines[self._read[process.key] : count]
            refuse_planted(*new)
            if any('"ready: ' in line or '"relaying the outbox' in line for line in new):
                self._ready.add(process.key)
            self._record.internal_errors += sum("Internal error in smartpipe" in line for line in new)
            forgotten = max(0, count - KEPT_LINES)
            del process.lines[:forgotten]
            self._read[process.key] = count - forgotten

    def _find_missing(self) -> dict[tuple[str, str], float]:
        """Return the expected effects that have not happened, and count those that happened more than once."""
        counts = self._setup.database.count_by_event()
        self._record.doubled = sum(count.times > 1 for count in counts if count.handler == "transaction")
        self._record.repeated = sum(count.times > 1 for count in counts if count.handler == "plain")
        happened = {(count.service, count.event_id) for count in counts}
        return {effect: since for effect, since in self._expected.items() if effect not in happened}

    def _describe(self) -> str:
        record, now = self._record, self._now()
        late = sum(now - since > LATE_SECONDS for since in self._find_missing().values())
        workers = [record.samples[key][-1] for key in record.spared if record.samples.get(key)]
        memory = max(sample.memory_bytes for sample in workers) / 1e6
        descriptors = max(sample.descriptors for sample in workers)
        return (
            f"{now / 60:.0f} min: {record.accepted:,} accepted, {record.effects:,} effects, {late} late, "
            f"{record.doubled} doubled, {record.progress[-1][3]} in queues, {record.poison} poison, "
            f"{len(record.kills)} kills; largest long-lived process {memory:.0f} MB, {descriptors} descriptors; "
            f"{self._read_cores():.2f} cores"
        )

    def _count(self) -> None:
        setup, record = self._setup, self._record
        record.lost = len(self._find_missing())
        record.expected = len(self._expected)
        record.effects = setup.database.count_effects()
        record.out_of_order = setup.database.count_out_of_order(service="orders")
        record.faults = sum(fault.hits for fault in setup.faults)
        found: Counter[tuple[str, str]] = Counter()
        for service in FORM.services.values():
            for message in setup.queues.take(service.queue.dead_letter_name):
                attribute = message.get("MessageAttributes", {}).get(REASON_ATTRIBUTE, {"StringValue": "{}"})
                kind = json.loads(attribute["StringValue"]).get("kind")
                sent = (service.name, message["Body"])
                if sent not in self._poison:
                    record.good_dead_lettered += 1
                elif kind == self._poison[sent]:
                    found[sent] += 1
        record.poison_lost = len(self._poison) - len(found)
        record.poison_repeated = sum(found.values()) - len(found)
