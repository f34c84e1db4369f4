"""Feed a worker with poison messages only, and measure its memory: ``python -m tests.soak --poison 200000``."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from unittest.mock import patch
from uuid import uuid4

import boto3

from smartpipe import EmbeddedBroker
from smartpipe.consumer.dead_letter import REASON_ATTRIBUTE
from smartpipe.testing import provision
from tests.chaos.servers import ServiceProcess
from tests.soak.poison import make_poison
from tests.soak.samples import GROWTH_BYTES, GROWTH_DESCRIPTORS, Sample, take_sample
from tests.soak.service import mailer
from tests.support.processes import Keeper
from tests.support.queues import Queues

if TYPE_CHECKING:
    from collections.abc import Callable

ROUND = 5_000
WARM_UP_ROUNDS = 2
ROUND_SECONDS = 120.0
CHECKED = 10
"""Messages whose reasons are read in each round. All of them are counted."""


@dataclass(kw_only=True)
class Flood:
    """The result.

    Args:
        dead_lettered: The messages that were found in the dead-letter queue.
        wrong_reasons: Messages among those read whose reason is missing or wrong.
        samples: Samples of the worker, one after each round.
    """

    poison: int
    machine: dict[str, str]
    dead_lettered: int = 0
    wrong_reasons: int = 0
    checked: int = 0
    seconds: float = 0.0
    samples: list[Sample] = field(default_factory=list)

    @property
    def before(self) -> int:
        """The resident set after the warm-up."""
        return round(median(sample.memory_bytes for sample in self.samples[WARM_UP_ROUNDS : WARM_UP_ROUNDS + 3]))

    @property
    def after(self) -> int:
        """The resident set at the end."""
        return round(median(sample.memory_bytes for sample in self.samples[-3:]))

    @property
    def violations(self) -> list[str]:
        broken = []
        if self.dead_lettered != self.poison:
            broken.append(f"{self.dead_lettered:,} of {self.poison:,} poison messages dead-lettered")
        if self.wrong_reasons:
            broken.append(f"{self.wrong_reasons} poison messages without their reason")
        if abs(self.after - self.before) > GROWTH_BYTES:
            broken.append(f"the worker went from {self.before / 1e6:.1f} MB to {self.after / 1e6:.1f} MB")
        descriptors = [sample.descriptors for sample in self.samples[WARM_UP_ROUNDS:]]
        if descriptors[-1] - descriptors[0] > GROWTH_DESCRIPTORS:
            broken.append(f"the worker went from {descriptors[0]} to {descriptors[-1]} file descriptors")
        return broken


def run_flood(flood: Flood, report: Callable[[str], None]) -> None:
    """Send the messages in rounds of 5,000, so that broker and disk stay small, and complete *flood*."""
    with ExitStack() as stack:
        broker = stack.enter_context(EmbeddedBroker("ministack"))
        keeper = stack.enter_context(Keeper())
        directory = stack.enter_context(TemporaryDirectory(prefix="sp-"))
        environment = {
            **broker.environment,
            "SMARTPIPE_PREFIX": f"s{uuid4().hex[:8]}-",
            "SMARTPIPE_LOG_FORMAT": "json",
            "SMARTPIPE_WAIT_SECONDS": "1",
            "CHAOS_DIR": directory,
        }
        stack.enter_context(patch.dict(os.environ, environment))
        asyncio.run(provision(mailer))
        sqs: Any = boto3.client("sqs")
        stack.callback(sqs.close)
        worker = ServiceProcess("worker-001", "worker", "tests.soak.service:mailer")
        stack.callback(worker.end)
        keeper.watch(worker.pid)
        worker.wait_until(lambda: worker.logged("ready"))
        _run_rounds(flood, worker, sqs, report)


def _run_rounds(flood: Flood, worker: ServiceProcess, sqs: Any, report: Callable[[str], None]) -> None:
    started, queues = time.monotonic(), Queues(sqs)
    url, dead_letters = queues.url(mailer.queue.name), queues.url(mailer.queue.dead_letter_name)
    for first in range(0, flood.poison, ROUND):
        numbers = range(first, min(first + ROUND, flood.poison))
        kinds: Counter[str] = Counter()
        for start in range(numbers.start, numbers.stop, 10):
            made = [make_poison(number, fifo=False) for number in range(start, min(start + 10, numbers.stop))]
            kinds.update(kind for _, kind in made)
            entries = [{"Id": str(position), "MessageBody": body} for position, (body, _) in enumerate(made)]
            answer = sqs.send_message_batch(QueueUrl=url, Entries=entries)
            assert not answer.get("Failed"), answer
        deadline = time.monotonic() + ROUND_SECONDS
        while sum(queues.depth(mailer.queue.name)) and time.monotonic() < deadline:
            time.sleep(0.1)
        flood.dead_lettered += sum(queues.depth(mailer.queue.dead_letter_name))
        _check_reasons(flood, sqs, dead_letters, set(kinds))
        sqs.purge_queue(QueueUrl=dead_letters)
        del worker.lines[:-20]
        assert worker.running, worker.lines
        flood.seconds = time.monotonic() - started
        sample = take_sample(worker.pid, flood.seconds)
        assert sample is not None
        flood.samples.append(sample)
        report(
            f"{numbers.stop:,} poison messages in {flood.seconds:.0f} s, {flood.dead_lettered:,} dead-lettered, "
            f"{sample.memory_bytes / 1e6:.1f} MB, {sample.descriptors} descriptors"
        )


def _check_reasons(flood: Flood, sqs: Any, dead_letters: str, kinds: set[str]) -> None:
    answer = sqs.receive_message(QueueUrl=dead_letters, MaxNumberOfMessages=CHECKED, MessageAttributeNames=["All"])
    for message in answer.get("Messages", []):
        attribute = message.get("MessageAttributes", {}).get(REASON_ATTRIBUTE, {"StringValue": "{}"})
        flood.checked += 1
        flood.wrong_reasons += json.loads(attribute["StringValue"]).get("kind") not in kinds
