"""One child process: started, and started again when it ends by itself, until it is told to end."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from typing import TYPE_CHECKING, NamedTuple

from smartpipe.worker.log_writer import standard_output
from smartpipe.worker.supervisor.ask import Unanswered, ask
from smartpipe.worker.supervisor.output import PrefixedLines
from smartpipe.worker.supervisor.restarts import AwaitChange, Exit, GiveUp, after_exit, describe_exit, failures_in_a_row

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

log = logging.getLogger("smartpipe.supervisor")

READY_EVERY_SECONDS = 0.2
LAST_LINES_SECONDS = 1.0
READ_BYTES = 65_536


class Command(NamedTuple):
    """What a child runs.

    Args:
        name: What the child is called in logs, in reports and as a metric's label.
        arguments: Those of ``python -m smartpipe``.
        environment: All of its variables; by default this process's.
        prefix: Goes before each line that it prints; by default it prints to where this process does.
    """

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] | None = None
    prefix: str | None = None


async def run_to_end(command: Command) -> int:
    """Run a command that ends by itself; return its exit code. A cancel sends SIGTERM, and waits."""
    return await _finished(await _spawn(command), command.prefix)


async def _spawn(command: Command, *more: str) -> asyncio.subprocess.Process:
    """Start it in a session of its own: a Ctrl-C in the terminal reaches this process only, which passes it on.

    Its standard input is a pipe that ends with this process, however that ends.
    """
    piped = None if command.prefix is None else asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "smartpipe", *command.arguments, *more),
        stdin=asyncio.subprocess.PIPE,
        stdout=piped,
        stderr=asyncio.subprocess.STDOUT if piped else None,
        env=command.environment,
        start_new_session=True,
    )


async def _finished(process: asyncio.subprocess.Process, prefix: str | None) -> int:
    printing = asyncio.create_task(_pass_on(process.stdout, prefix or ""))
    try:
        code = await process.wait()
        # What a process of its own still holds open may never end; its last lines come at once.
        await asyncio.wait([printing], timeout=LAST_LINES_SECONDS)
        return code
    finally:
        printing.cancel()
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def _pass_on(stream: asyncio.StreamReader | None, prefix: str) -> None:
    lines = PrefixedLines(prefix, standard_output().write)
    while stream is not None and (chunk := await stream.read(READ_BYTES)):
        lines.feed(chunk)
    lines.end()


class Child:
    """A worker process under its supervisor; ``socket`` is where it answers."""

    def __init__(self, command: Command, socket: Path, *, reloading: bool) -> None:
        self.name = command.name
        self.socket = socket
        self.restarts = 0
        self.ready = asyncio.Event()
        self.drained: Exit | None = None
        self._command = command
        self._reloading = reloading
        self._ending = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._started_at = 0.0

    @property
    def pid(self) -> int | None:
        """Its process, or None while it has none."""
        return None if self._process is None else self._process.pid

    @property
    def running_seconds(self) -> float:
        """For how long its process has run."""
        return asyncio.get_running_loop().time() - self._started_at

    async def keep(self, any_was_ready: Callable[[], bool]) -> int | None:
        """Run it until `end`, again whenever it ends by itself.

        Returns the exit code to end all with, when starting it again can help nothing. A cancel drains it.
        """
        failures = 0
        while not self._ending.is_set():
            ended = await self._run()
            if self._ending.is_set():
                self.drained = ended
                break
            failures = failures_in_a_row(failures, ended)
            next_step = after_exit(ended, failures, any_was_ready=any_was_ready(), reloading=self._reloading)
            how = f"process {self.name} ended by itself: {describe_exit(ended.code)}"
            if isinstance(next_step, GiveUp):
                log.error("%s, before any was ready; starting it again would not help", how)
                return next_step.code
            if isinstance(next_step, AwaitChange):
                log.error("%s; waiting for a change of its sources", how)
                return None
            log.error("%s; starting it again in %g s", how, next_step.after_seconds)
            await self._wait_to_restart(next_step.after_seconds)
        return None

    def end(self) -> None:
        """Let it drain. A second call repeats the signal, which a draining child ignores."""
        self._ending.set()
        self.signal(signal.SIGTERM)

    def signal(self, signum: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signum)

    async def _run(self) -> Exit:
        self.ready.clear()
        self.socket.unlink(missing_ok=True)
        self._started_at = asyncio.get_running_loop().time()
        process = self._process = await _spawn(self._command, "--supervised", str(self.socket))
        if self._ending.is_set():
            self.signal(signal.SIGTERM)
        watching = asyncio.create_task(self._watch_until_ready())
        try:
            code = await _finished(process, self._command.prefix)
        finally:
            watching.cancel()
            self._process = None
        return Exit(code, self.running_seconds, self.ready.is_set())

    async def _watch_until_ready(self) -> None:
        while True:
            try:
                if (await ask(self.socket, "/readyz")).status == 200:  # noqa: PLR2004
                    self.ready.set()
                    return
            except Unanswered:
                pass
            await asyncio.sleep(READY_EVERY_SECONDS)

    async def _wait_to_restart(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._ending.wait()
        except TimeoutError:
            self.restarts += 1
