"""The guarantees of the README as sentences, and the services and the broker with which tests prove them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeVar

from smartpipe.blocking import Publisher
from tests.support.processes import ROOT, Process
from tests.support.proxy import Fault
from tests.support.waiting import until_blocking

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack
    from pathlib import Path

    from tests.acceptance.guarantee_services import Moved, Ordered
    from tests.support.proxy import FaultProxy
    from tests.support.queues import Queues

F = TypeVar("F", bound="Callable[..., Any]")

SECTIONS = ("## Guarantees", "## How-to guides")
NOT_GUARANTEES = {
    "Set a `RetryPolicy` that fits your dependencies.": "advice",
    "Set `SMARTPIPE_IDEMPOTENCY_URL=postgresql://…`.": "an instruction",
    "Tests of the whole example do this.": "a link to test_one_transaction.py",
}
MODULE = "tests.acceptance.guarantee_services"

proved: dict[str, list[Callable[..., Any]]] = {}


def proves(*sentences: str) -> Callable[[F], F]:
    """Declare that a test proves these sentences of the README."""

    def register(test: F) -> F:
        for sentence in sentences:
            proved.setdefault(sentence, []).append(test)
        return test

    return register


def read_guarantees() -> list[str]:
    """Return the sentences and list items of the README's guarantees, without code blocks and Markdown marks."""
    text = (ROOT / "README.md").read_text()
    text = text[text.index(SECTIONS[0]) : text.index(SECTIONS[1])]
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", text).replace("**", "")
    found = []
    for block in re.split(r"\n\n|\n(?=- )", text):
        line = " ".join(block.removeprefix("- ").split())
        if not line.startswith("#"):
            found += re.split(r"(?<=[.:])\s+(?=[A-Z`])", line)
    return [sentence for sentence in found if sentence]


class Guaranteed:
    """The services of ``guarantee_services`` on a real broker, with a proxy between the broker and all processes."""

    def __init__(self, proxy: FaultProxy, queues: Queues, directory: Path, stack: ExitStack) -> None:
        self.proxy = proxy
        self.queues = queues
        self._file = directory / "happened"
        self._stack = stack

    def start_worker(self, *flags: str, target: str = "service", **environment: str) -> Process:
        worker = Process("worker", f"{MODULE}:{target}", "--host", "127.0.0.1", "--port", "0", *flags, **environment)
        self._stack.callback(worker.end)
        worker.wait_until(lambda: worker.logged("ready"))
        return worker

    def publish(self, *events: Ordered | Moved) -> list[str]:
        with Publisher("test") as publisher:
            return list(publisher.publish_many(events).event_ids)

    def inject(self, operation: str, **options: Any) -> Fault:
        return self.proxy.add(Fault(operation, **options))

    @property
    def steps(self) -> list[str]:
        return self._file.read_text().splitlines() if self._file.exists() else []

    def find(self, start: str) -> list[str]:
        """Return the steps that begin with *start*."""
        return [step for step in self.steps if step.startswith(start)]

    def wait_for(self, start: str, count: int = 1) -> None:
        until_blocking(lambda: len(self.find(start)) >= count)

    def wait_until_empty(self, queue: str = "guarantees") -> None:
        until_blocking(lambda: self.queues.depth(queue) == (0, 0))
