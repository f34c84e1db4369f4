"""The supervisor: starts child processes, keeps them running, and drains them together."""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from smartpipe.worker.health import HealthServer
from smartpipe.worker.supervisor.child import Child
from smartpipe.worker.supervisor.report import GroupReport
from smartpipe.worker.supervisor.restarts import exit_code

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Sequence

    from smartpipe.worker.supervisor.child import Command
    from smartpipe.worker.supervisor.watch import Changes

log = logging.getLogger("smartpipe.supervisor")

KILL_MARGIN_SECONDS = 5.0
# A mistake that all of them would report is reported by one, if it is quick; else all start without waiting for it.
FIRST_ALONE_SECONDS = 3.0
MAX_SOCKET_DIRECTORY = 70
MAX_SHOWN = 3


class Address(NamedTuple):
    """Where the supervisor answers for all of its children."""

    host: str
    port: int


class Supervisor:
    """Runs a process for each of *commands*.

    Args:
        commands: With names of their own, workers of ``smartpipe worker``.
        drain_seconds: The children's own budget; whoever outlives it by 5 s is killed.
        liveness_seconds: How long a child may take until it answers.
        address: Where ``/livez``, ``/readyz`` and ``/metrics`` are served; nowhere by default.
        alike: Whether they run the same service, so that the first may go ahead to find mistakes.
        changes: Makes them drain and start anew whenever sources change.
        prepare: Called before they are started, each time; returns an exit code, other than 0 if they
            had better not be. A cancel comes from a stop.
    """

    def __init__(
        self,
        commands: Sequence[Command],
        *,
        drain_seconds: float,
        liveness_seconds: float,
        address: Address | None = None,
        alike: bool = False,
        changes: Changes | None = None,
        prepare: Callable[[], Coroutine[Any, Any, int]] | None = None,
    ) -> None:
        self._commands = commands
        self._kill_after_seconds = drain_seconds + KILL_MARGIN_SECONDS
        self._alike = alike
        self._changes = changes
        self._prepare = prepare
        self._stopping = asyncio.Event()
        self._changed = changes.happened if changes else asyncio.Event()
        self._any_was_ready = False
        self._exit_code = 0
        self.children: list[Child] = []
        self.health = HealthServer(GroupReport(self, liveness_seconds), address.host, address.port) if address else None

    def stop(self, reason: str = "stop()") -> None:
        """Begin to drain all children. A second call does nothing."""
        if not self._stopping.is_set():
            log.info("draining all processes: %s; a second signal stops hard, a third kills", reason)
            self._stopping.set()

    def stop_hard(self, reason: str = "stop_hard()") -> None:
        """Let the children cancel what runs, and give it back."""
        self._stopping.set()
        self._signal(signal.SIGINT, f"stopping all processes hard: {reason}")

    def kill(self, reason: str = "kill()") -> None:
        """Kill the children; what they had comes back after its visibility timeout."""
        self._stopping.set()
        self._signal(signal.SIGKILL, f"killing all processes: {reason}")

    async def run(self) -> int:
        """Run until all have drained.

        Returns 0, 1 when a child did not end as it should, or the exit code of a child whose
        mistake starting again would not heal.

        Raises:
            ConfigError: The health port is taken.
        """
        async with AsyncExitStack() as stack:
            if self.health is not None:
                await stack.enter_async_context(self.health)
                fields = {"url": self.health.url}
                log.info("serving /livez, /readyz and /metrics on %s", self.health.bound, extra={"fields": fields})
            if self._changes is not None:
                await stack.enter_async_context(self._changes)
            sockets = Path(tempfile.mkdtemp(prefix="smartpipe-", dir=_socket_directory()))  # of mode 0700
            stack.callback(shutil.rmtree, sockets, ignore_errors=True)
            while not self._stopping.is_set():
                await self._run_once(sockets)
        log.info("stopped: all processes have ended")
        return self._exit_code

    async def _run_once(self, sockets: Path) -> None:
        """Start all, and drain all at a stop or a change."""
        self._exit_code = 0
        code = await self._prepared()
        if code and self._changes is None:
            self._exit_code = code
            self._stopping.set()
        elif code:
            log.error("nothing is started, and waits for a change of the sources")
            await self._until_stop_or_change([])
        elif not self._stopping.is_set():
            self.children = [
                Child(command, sockets / f"{number}.sock", reloading=self._changes is not None)
                for number, command in enumerate(self._commands, start=1)
            ]
            keeping = await self._start()
            telling = asyncio.create_task(self._tell_when_ready())
            await self._until_stop_or_change(keeping)
            telling.cancel()
            await self._drain(keeping)

    async def _prepared(self) -> int:
        if self._prepare is None:
            return 0
        preparing = asyncio.create_task(self._prepare())
        await _first_of(self._stopping, others=[preparing])
        if preparing.done():
            return preparing.result()
        preparing.cancel()
        await asyncio.wait([preparing])
        return 0

    async def _start(self) -> list[asyncio.Task[int | None]]:
        first, *rest = self.children
        keeping = [asyncio.create_task(first.keep(self._was_any_ready))]
        if self._alike and rest:
            await _first_of(first.ready, self._stopping, self._changed, others=keeping, seconds=FIRST_ALONE_SECONDS)
            if keeping[0].done():
                return keeping
        return keeping + [asyncio.create_task(child.keep(self._was_any_ready)) for child in rest]

    async def _until_stop_or_change(self, keeping: list[asyncio.Task[int | None]]) -> None:
        """Return when the children have to be drained; whoever gave up decides the exit code."""
        pending = set(keeping)
        while not self._stopping.is_set() and not self._changed.is_set():
            await _first_of(self._stopping, self._changed, others=pending)
            given_up = [task.result() for task in pending if task.done()]
            pending = {task for task in pending if not task.done()}
            self._exit_code = next(filter(None, given_up), 0)
            if self._exit_code:
                self._stopping.set()
        if self._changes is not None and self._changed.is_set() and not self._stopping.is_set():
            log.info("changed: %s; restarting", shown(self._changes.take()))

    async def _drain(self, keeping: list[asyncio.Task[int | None]]) -> None:
        for child in self.children:
            child.end()
        _, late = await asyncio.wait(keeping, timeout=self._kill_after_seconds)
        if late:
            names = ", ".join(child.name for child in self.children if child.pid is not None)
            self._signal(signal.SIGKILL, f"killing {names}: not drained within {self._kill_after_seconds:g} s")
            await asyncio.wait(late)
        drained = [child.drained for child in self.children if child.drained is not None]
        self._exit_code = self._exit_code or exit_code(drained)

    async def _tell_when_ready(self) -> None:
        for child in self.children:
            await child.ready.wait()
        if len(self.children) > 1:
            log.info("ready: all %d processes", len(self.children))

    def _was_any_ready(self) -> bool:
        self._any_was_ready = self._any_was_ready or any(child.ready.is_set() for child in self.children)
        return self._any_was_ready

    def _signal(self, signum: signal.Signals, why: str) -> None:
        log.warning("%s", why)
        for child in self.children:
            child.signal(signum)


def shown(paths: Sequence[str]) -> str:
    """Return the first few of *paths*, and how many more there are."""
    more = f" and {len(paths) - MAX_SHOWN} more" if len(paths) > MAX_SHOWN else ""
    return ", ".join(paths[:MAX_SHOWN]) + more


async def _first_of(
    *events: asyncio.Event, others: Collection[asyncio.Task[Any]] = (), seconds: float | None = None
) -> None:
    waiting: list[asyncio.Task[Any]] = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait([*waiting, *others], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


def _socket_directory() -> str | None:
    """Return the system's short directory where the usual one is too long for a socket's path, of some 100 bytes."""
    return "/tmp" if len(tempfile.gettempdir()) > MAX_SOCKET_DIRECTORY else None  # noqa: S108 - mkdtemp's is private
