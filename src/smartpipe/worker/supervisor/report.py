"""One answer for many processes: each is asked, all at once."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from smartpipe.worker.health import ProbeResult
from smartpipe.worker.log_writer import family_of_dropped_lines
from smartpipe.worker.metrics import Family, Sample, merge, render
from smartpipe.worker.supervisor.ask import Unanswered, ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.worker.supervisor.child import Child


SUPERVISOR = "supervisor"
"""The label ``process`` of the supervisor's own samples."""


class Parent(Protocol):
    """A Supervisor, as far as it is reported on."""

    @property
    def children(self) -> Sequence[Child]:
        """All of them, whether they run or not."""


class Seen(NamedTuple):
    """What one child answered, or why it did not: ``restarting``, ``starting`` or ``silent``."""

    child: Child
    state: str
    text: str = ""


class GroupReport:
    """The Report of a supervisor.

    A child that is being restarted is no reason to restart all: it counts as alive. One that does
    not answer does not, unless it has just been started.

    Args:
        liveness_seconds: For how long a child that does not serve yet may take to start.
    """

    def __init__(self, parent: Parent, liveness_seconds: float) -> None:
        self._parent = parent
        self._liveness_seconds = liveness_seconds

    async def livez(self) -> ProbeResult:
        """Tell whether every child is alive."""
        return await self._all("alive", "/livez", otherwise={"restarting": True, "starting": True})

    async def readyz(self) -> ProbeResult:
        """Tell whether every child is ready."""
        return await self._all("ready", "/readyz", otherwise={})

    async def metrics(self) -> str:
        """Return the samples of all that answer, each with its ``process``, and how often each was restarted."""
        seen = await self._ask("/metrics")
        samples = [Sample({"process": one.child.name}, one.child.restarts) for one in seen]
        restarts = Family(
            "smartpipe_process_restarts_total", "counter", "Restarts of a process that ended by itself.", samples
        )
        texts = {one.child.name: one.text for one in seen if one.text}
        texts[SUPERVISOR] = render([family_of_dropped_lines({})])
        return render([restarts]) + merge(texts, "process")

    async def _all(self, word: str, path: str, *, otherwise: dict[str, bool]) -> ProbeResult:
        processes: dict[str, dict[str, Any]] = {}
        for child, state, text in await self._ask(path):
            own = json.loads(text) if text else {word: otherwise.get(state, False)}
            processes[child.name] = {"pid": child.pid, "restarts": child.restarts, "state": state, **own}
        good = bool(processes) and all(one[word] for one in processes.values())
        return ProbeResult(good, {word: good, "processes": processes})

    async def _ask(self, path: str) -> list[Seen]:
        return await asyncio.gather(*(self._see(child, path) for child in self._parent.children))

    async def _see(self, child: Child, path: str) -> Seen:
        if child.pid is None:
            return Seen(child, "restarting")
        try:
            return Seen(child, "answering", (await ask(child.socket, path)).text)
        except Unanswered as unanswered:
            if child.pid is None:  # it ended while it was asked
                return Seen(child, "restarting")
            young = child.running_seconds < self._liveness_seconds
            return Seen(child, "starting" if young and not unanswered.listening else "silent")
