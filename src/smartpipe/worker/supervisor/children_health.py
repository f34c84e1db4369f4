"""Combine the health and the metrics of all child processes."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, NamedTuple

from smartpipe.telemetry.families import Family, Sample
from smartpipe.telemetry.prometheus import TEXT, join, merge, render
from smartpipe.worker.health import ProbeResult
from smartpipe.worker.log_writer import family_of_dropped_lines
from smartpipe.worker.supervisor.query import NoResponseError, query

if TYPE_CHECKING:
    from smartpipe.worker.supervisor.child import Child
    from smartpipe.worker.supervisor.supervisor import Supervisor
    from smartpipe.worker.task_protection import TaskProtection

SUPERVISOR = "supervisor"
"""The label ``process`` of the supervisor's own samples."""


class ChildStatus(NamedTuple):
    """The state of one child: ``answering`` with its text, ``restarting``, ``starting`` or ``silent``."""

    child: Child
    state: str
    text: str = ""


class ChildrenHealth:
    """The HealthReport of a supervisor.

    A child that is being restarted counts as alive, so that the orchestrator does not restart all of them. A child that
    does not respond counts as not alive, unless it has just been started.

    Args:
        liveness_seconds: The maximum time from the start of a child until it responds.
        protection: Protects the task of all children.
    """

    def __init__(
        self, supervisor: Supervisor, liveness_seconds: float, protection: TaskProtection | None = None
    ) -> None:
        self._supervisor = supervisor
        self._protection = protection
        self._liveness_seconds = liveness_seconds

    async def livez(self) -> ProbeResult:
        """Return whether every child is alive."""
        return await self._combine("alive", "/livez", defaults={"restarting": True, "starting": True})

    async def readyz(self) -> ProbeResult:
        """Return whether every child is ready."""
        return await self._combine("ready", "/readyz", defaults={})

    async def metrics(self, content_type: str = TEXT) -> str:
        """Return the samples of all children that respond, labelled by ``process``, and the number of restarts."""
        statuses = await self._query_all("/metrics", accept=content_type)
        samples = [Sample({"process": status.child.name}, status.child.restarts) for status in statuses]
        restarts = Family(
            "smartpipe_process_restarts_total", "counter", "Restarts of a process that ended unexpectedly.", samples
        )
        texts = {status.child.name: status.text for status in statuses if status.text}
        own = [family_of_dropped_lines({}), *(self._protection.collect() if self._protection is not None else [])]
        texts[SUPERVISOR] = render(own, content_type)
        return join(render([restarts], content_type), merge(texts, "process"))

    async def _combine(self, word: str, path: str, *, defaults: dict[str, bool]) -> ProbeResult:
        processes: dict[str, dict[str, Any]] = {}
        for child, state, text in await self._query_all(path):
            body = json.loads(text) if text else {word: defaults.get(state, False)}
            processes[child.name] = {"pid": child.pid, "restarts": child.restarts, "state": state, **body}
        ok = bool(processes) and all(process[word] for process in processes.values())
        return ProbeResult(ok, {word: ok, "processes": processes})

    async def _query_all(self, path: str, *, accept: str = "*/*") -> list[ChildStatus]:
        return await asyncio.gather(*(self._query(child, path, accept) for child in self._supervisor.children))

    async def _query(self, child: Child, path: str, accept: str) -> ChildStatus:
        if child.pid is None:
            return ChildStatus(child, "restarting")
        try:
            return ChildStatus(child, "answering", (await query(child.socket, path, accept=accept)).text)
        except NoResponseError as error:
            if child.pid is None:  # the child ended during the query
                return ChildStatus(child, "restarting")
            is_new = child.running_seconds < self._liveness_seconds
            return ChildStatus(child, "starting" if is_new and not error.listening else "silent")
