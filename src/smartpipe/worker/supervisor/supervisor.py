"""Start child processes, restart them when they end, and drain them together."""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from smartpipe.errors import ConfigError
from smartpipe.worker.health import HealthServer
from smartpipe.worker.supervisor.child import Child
from smartpipe.worker.supervisor.children_handlers import ChildrenLongHandlers
from smartpipe.worker.supervisor.children_health import ChildrenHealth
from smartpipe.worker.supervisor.restarts import combine_exits
from smartpipe.worker.task_protection import TaskProtection

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Sequence

    from smartpipe.worker.supervisor.child import Command
    from smartpipe.worker.supervisor.watch import SourceWatcher

log = logging.getLogger("smartpipe.supervisor")

KILL_MARGIN_SECONDS = 5.0
# The first child starts alone for up to this time, so that an error common to all children is reported only once.
FIRST_ALONE_SECONDS = 3.0
MAX_SOCKET_DIRECTORY = 70
MAX_LISTED_PATHS = 3


class Address(NamedTuple):
    """The address of the health server, which reports on all children."""

    host: str
    port: int


class Supervisor:
    """Runs a process for each of ``commands``.

    Args:
        commands: The arguments of ``smartpipe worker`` for each child. Names must differ. *prepare* may replace them.
        drain_seconds: The drain budget of the children. A child that takes 5 s longer is killed.
        liveness_seconds: The maximum time from the start of a child until it responds.
        address: The address of ``/livez``, ``/readyz`` and ``/metrics``. By default, they are not served.
        same_service: All children run the same service, so the first starts alone to detect errors.
        watcher: Restarts all children, after a drain, when sources change.
        protect_after_seconds: Protect the task on Amazon ECS while a handler of a child has run for this long. None: it
            is not protected.
        prepare: Called before each start of the children. They are not started if it returns an exit code other than 0.
            A stop cancels it.
    """

    def __init__(
        self,
        commands: Sequence[Command],
        *,
        drain_seconds: float,
        liveness_seconds: float,
        address: Address | None = None,
        same_service: bool = False,
        watcher: SourceWatcher | None = None,
        protect_after_seconds: float | None = None,
        prepare: Callable[[], Coroutine[Any, Any, int]] | None = None,
    ) -> None:
        self.commands = commands
        self._kill_after_seconds = drain_seconds + KILL_MARGIN_SECONDS
        self._same_service = same_service
        self._watcher = watcher
        self._prepare = prepare
        self._stopping = asyncio.Event()
        self._changed = watcher.changed if watcher else asyncio.Event()
        self._any_was_ready = False
        self._exit_code = 0
        self.children: list[Child] = []
        self._protection: TaskProtection | None = None
        if protect_after_seconds is not None:
            handlers = ChildrenLongHandlers(self)
            self._protection = TaskProtection(handlers.find, protect_after_seconds, self._stopping.is_set, {})
        self.health = (
            HealthServer(ChildrenHealth(self, liveness_seconds, self._protection), address.host, address.port)
            if address
            else None
        )

    def stop(self, reason: str = "stop()") -> None:
        """Start to drain all children. A second call does nothing."""
        if not self._stopping.is_set():
            log.info("draining all processes: %s; a second signal stops them hard, a third kills them", reason)
            self._stopping.set()

    def stop_hard(self, reason: str = "stop_hard()") -> None:
        """Let the children cancel their handlers, and return the messages to the queue."""
        self._stopping.set()
        self._signal(signal.SIGINT, f"stopping all processes hard: {reason}")

    def kill(self, reason: str = "kill()") -> None:
        """Kill the children. Their messages will reappear after the visibility timeout."""
        self._stopping.set()
        self._signal(signal.SIGKILL, f"killing all processes: {reason}")

    async def run(self) -> int:
        """Run until all children have drained.

        Returns:
            0 if all children drained cleanly, 1 if one did not, or the exit code of a child that a restart would not
            help.

        Raises:
            ConfigError: The health port cannot be bound, or no temporary directory is writable.
        """
        async with AsyncExitStack() as stack:
            if self.health is not None:
                await stack.enter_async_context(self.health)
                fields = {"url": self.health.url}
                log.info("serving /livez, /readyz and /metrics on %s", self.health.bound, extra={"fields": fields})
            if self._protection is not None:
                await stack.enter_async_context(self._protection)
            if self._watcher is not None:
                await stack.enter_async_context(self._watcher)
            sockets = _create_socket_directory()
            stack.callback(shutil.rmtree, sockets, ignore_errors=True)
            while not self._stopping.is_set():
                await self._run_once(sockets)
        log.info("stopped: all processes have ended")
        return self._exit_code

    async def _run_once(self, sockets: Path) -> None:
        """Start all children, and drain them after a stop or a change of the sources."""
        self._exit_code = 0
        code = await self._run_prepare()
        if code and self._watcher is None:
            self._exit_code = code
            self._stopping.set()
        elif code:
            log.error("not starting any process; waiting for a change of the sources")
            await self._until_stop_or_change([])
        elif not self._stopping.is_set():
            self.children = [
                Child(command, sockets / f"{number}.sock", reloading=self._watcher is not None)
                for number, command in enumerate(self.commands, start=1)
            ]
            child_tasks = await self._start_children()
            logging_ready = asyncio.create_task(self._log_when_ready())
            await self._until_stop_or_change(child_tasks)
            logging_ready.cancel()
            await self._drain(child_tasks)

    async def _run_prepare(self) -> int:
        if self._prepare is None:
            return 0
        preparing = asyncio.create_task(self._prepare())
        await _wait_for_first(self._stopping, others=[preparing])
        if preparing.done():
            return preparing.result()
        preparing.cancel()
        await asyncio.wait([preparing])
        return 0

    async def _start_children(self) -> list[asyncio.Task[int | None]]:
        if not self.children:
            return []
        first, *rest = self.children
        child_tasks = [asyncio.create_task(first.run(self._check_any_ready))]
        if self._same_service and rest:
            await _wait_for_first(
                first.ready, self._stopping, self._changed, others=child_tasks, seconds=FIRST_ALONE_SECONDS
            )
            if child_tasks[0].done():
                return child_tasks
        return child_tasks + [asyncio.create_task(child.run(self._check_any_ready)) for child in rest]

    async def _until_stop_or_change(self, child_tasks: list[asyncio.Task[int | None]]) -> None:
        """Return when the children must be drained. A child that gave up determines the exit code."""
        pending = set(child_tasks)
        while not self._stopping.is_set() and not self._changed.is_set():
            await _wait_for_first(self._stopping, self._changed, others=pending)
            exit_codes = [task.result() for task in pending if task.done()]
            pending = {task for task in pending if not task.done()}
            self._exit_code = next(filter(None, exit_codes), 0)
            if self._exit_code:
                self._stopping.set()
        if self._watcher is not None and self._changed.is_set() and not self._stopping.is_set():
            log.info("changed: %s; restarting", format_paths(self._watcher.take_paths()))

    async def _drain(self, child_tasks: list[asyncio.Task[int | None]]) -> None:
        for child in self.children:
            child.stop()
        if not child_tasks:
            return
        _, late = await asyncio.wait(child_tasks, timeout=self._kill_after_seconds)
        if late:
            names = ", ".join(child.name for child in self.children if child.pid is not None)
            self._signal(signal.SIGKILL, f"killing {names}: not drained within {self._kill_after_seconds:g} s")
            await asyncio.wait(late)
        # Another program has its own meaning of exit codes. It may also have been about to fail when the stop came.
        workers = [child for child in self.children if not child.external]
        exits = [child.exit_after_stop for child in workers if child.exit_after_stop is not None]
        self._exit_code = self._exit_code or combine_exits(exits)

    async def _log_when_ready(self) -> None:
        workers = [child for child in self.children if not child.external]
        for child in workers:
            await child.ready.wait()
        if len(workers) > 1:
            log.info("ready: all %d processes", len(workers))

    def _check_any_ready(self) -> bool:
        self._any_was_ready = self._any_was_ready or any(child.ready.is_set() for child in self.children)
        return self._any_was_ready

    def _signal(self, signum: signal.Signals, why: str) -> None:
        log.warning("%s", why)
        for child in self.children:
            child.signal(signum)


def format_paths(paths: Sequence[str]) -> str:
    """Return the first three of *paths*, and the number of the others."""
    more = f" and {len(paths) - MAX_LISTED_PATHS} more" if len(paths) > MAX_LISTED_PATHS else ""
    return ", ".join(paths[:MAX_LISTED_PATHS]) + more


async def _wait_for_first(
    *events: asyncio.Event, others: Collection[asyncio.Task[Any]] = (), seconds: float | None = None
) -> None:
    waiting: list[asyncio.Task[Any]] = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait([*waiting, *others], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


def _create_socket_directory() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="smartpipe-", dir=_socket_directory()))  # of mode 0700
    except OSError as error:
        msg = (
            f"the supervisor needs a temporary directory for its sockets: {error.strerror or error}; mount a "
            "writable one at /tmp, or set TMPDIR"
        )
        raise ConfigError(msg) from None


def _socket_directory() -> str | None:
    """Return ``/tmp`` if the usual directory is too long for the path of a socket, which has about 100 bytes."""
    return "/tmp" if len(tempfile.gettempdir()) > MAX_SOCKET_DIRECTORY else None  # noqa: S108 - mkdtemp creates a private directory in it
