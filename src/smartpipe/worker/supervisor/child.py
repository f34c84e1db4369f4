"""Run one child process, and restart it whenever it ends unexpectedly."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from smartpipe.worker.log_writer import standard_output
from smartpipe.worker.supervisor.output import PrefixedLines
from smartpipe.worker.supervisor.query import NoResponseError, query
from smartpipe.worker.supervisor.restarts import (
    AwaitChange,
    GiveUp,
    ProcessExit,
    choose_wait_seconds,
    count_failures,
    decide_after_exit,
    describe_exit,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

log = logging.getLogger("smartpipe.supervisor")

READY_CHECK_SECONDS = 0.2
LAST_OUTPUT_SECONDS = 1.0
READ_BYTES = 65_536


class Command(NamedTuple):
    """The command line of a child.

    Args:
        name: The name of the child in logs, health reports and metric labels.
        arguments: The arguments of ``python -m smartpipe``.
        environment: All environment variables; by default those of this process.
        prefix: A prefix for each line that the child prints. By default, the child shares this process's output.
        external: *arguments* begin with another program, which does not report whether it is ready.
    """

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] | None = None
    prefix: str | None = None
    external: bool = False


async def run_command(command: Command) -> int:
    """Run a command until it ends, and return its exit code. A cancel sends SIGTERM, and waits for the end."""
    return await _wait_for_exit(await _spawn(command), command.prefix)


async def _spawn(command: Command, *more: str) -> asyncio.subprocess.Process:
    """Start a child in its own session, so that a Ctrl-C in the terminal reaches only this process, which forwards it.

    The standard input of the child is a pipe. It ends with this process, even if this process is killed.
    """
    output = None if command.prefix is None else asyncio.subprocess.PIPE
    words = command.arguments if command.external else (sys.executable, "-m", "smartpipe", *command.arguments, *more)
    return await asyncio.create_subprocess_exec(
        *words,
        stdin=asyncio.subprocess.PIPE,
        stdout=output,
        stderr=asyncio.subprocess.STDOUT if output else None,
        env=command.environment,
        start_new_session=True,
    )


async def _wait_for_exit(process: asyncio.subprocess.Process, prefix: str | None) -> int:
    forwarding = asyncio.create_task(_forward_output(process.stdout, prefix or ""))
    try:
        code = await process.wait()
        # A process that the child started may keep the pipe open, so do not wait for its end.
        await asyncio.wait([forwarding], timeout=LAST_OUTPUT_SECONDS)
        return code
    finally:
        forwarding.cancel()
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def _forward_output(stream: asyncio.StreamReader | None, prefix: str) -> None:
    lines = PrefixedLines(prefix, standard_output().write)
    while stream is not None and (chunk := await stream.read(READ_BYTES)):
        lines.feed(chunk)
    lines.end()


class Child:
    """A worker process under a supervisor. It listens on the Unix socket ``socket``."""

    def __init__(self, command: Command, socket: Path, *, reloading: bool) -> None:
        self.name = command.name
        self.external = command.external
        self.socket = socket
        self.restarts = 0
        self.ready = asyncio.Event()
        self.exit_after_stop: ProcessExit | None = None
        self._command = command
        self._reloading = reloading
        self._stopping = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._started_at = 0.0
        self._was_started = False

    @property
    def pid(self) -> int | None:
        """The id of the process, or None while none is running."""
        return None if self._process is None else self._process.pid

    @property
    def running_seconds(self) -> float:
        """The time since the process was started."""
        return asyncio.get_running_loop().time() - self._started_at

    async def run(self, any_was_ready: Callable[[], bool]) -> int | None:
        """Run the process until ``stop`` is called, and restart it whenever it ends unexpectedly.

        Returns:
            The exit code for all processes if a restart would not help, or else None.

        Raises:
            OSError: The process cannot be started, before any process has been ready.

        A cancel drains the process.
        """
        failures = 0
        while not self._stopping.is_set():
            try:
                ended = await self._run_once()
            except OSError as error:
                if not any_was_ready():
                    raise
                # The system lacks memory, processes or file descriptors for now. The other processes continue.
                failures += 1
                seconds = choose_wait_seconds(failures)
                log.error("process %s cannot be started, retrying in %g s: %s", self.name, seconds, error)  # noqa: TRY400
                await self._wait_to_restart(seconds)
                continue
            if self._stopping.is_set():
                self.exit_after_stop = ended
                break
            if self.external and ended.code == 0:
                log.info("process %s has ended with exit code 0", self.name)
                return None
            failures = count_failures(failures, ended)
            next_step = decide_after_exit(ended, failures, any_was_ready=any_was_ready(), reloading=self._reloading)
            text = f"process {self.name} ended unexpectedly: {describe_exit(ended.code)}"
            if isinstance(next_step, GiveUp):
                log.error("%s, before any process was ready; a restart would not help", text)
                return next_step.code
            if isinstance(next_step, AwaitChange):
                log.error("%s; waiting for a change of the sources", text)
                return None
            log.error("%s; will restart it in %g s", text, next_step.after_seconds)
            await self._wait_to_restart(next_step.after_seconds)
        return None

    def stop(self) -> None:
        """Let the process drain. A second call sends the signal again, which a draining child ignores."""
        self._stopping.set()
        self.signal(signal.SIGTERM)

    def signal(self, signum: signal.Signals) -> None:
        """Send a signal to the process, if it is running."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signum)

    async def _run_once(self) -> ProcessExit:
        self.ready.clear()
        self.socket.unlink(missing_ok=True)
        self._started_at = asyncio.get_running_loop().time()
        process = await _spawn(self._command, "--supervised", str(self.socket))
        self.restarts += self._was_started
        self._process, self._was_started = process, True
        if self._stopping.is_set():
            self.signal(signal.SIGTERM)
        watching = None if self.external else asyncio.create_task(self._watch_until_ready())
        try:
            code = await _wait_for_exit(process, self._command.prefix)
        finally:
            if watching is not None:
                watching.cancel()
            self._process = None
        return ProcessExit(code, self.running_seconds, self.ready.is_set())

    async def _watch_until_ready(self) -> None:
        while True:
            try:
                if (await query(self.socket, "/readyz")).status == 200:  # noqa: PLR2004
                    self.ready.set()
                    return
            except NoResponseError:
                pass
            await asyncio.sleep(READY_CHECK_SECONDS)

    async def _wait_to_restart(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
