"""Start the child processes of a run, read their messages, and end them with the run."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from typing import IO, TYPE_CHECKING, NamedTuple, Self

from smartpipe.bench.messages import Assignment, ChildMessage, Command, parse_message
from smartpipe.errors import SmartpipeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

MAX_LINE_BYTES = 1 << 28
"""The final report of a worker contains a compressed byte for each event."""
STOP_SECONDS = 5.0


class ChildProcess(NamedTuple):
    """A producer or a worker. Error messages show its *name*."""

    name: str
    assignment: Assignment
    process: asyncio.subprocess.Process
    stderr: IO[bytes]

    def send(self, command: Command) -> None:
        """Send the next step. Do nothing if the child has ended: its silence will be noticed."""
        if self.process.stdin is not None and not self.process.stdin.is_closing():
            self.process.stdin.write(command.model_dump_json().encode() + b"\n")

    def read_last_line(self) -> str:
        """Return the last line of its standard error."""
        self.stderr.seek(0)
        lines = self.stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it printed no error"


class ChildProcesses:
    """Child processes with one assignment each. An async context manager, which ends all of them on exit.

    Args:
        environment: The environment variables of the children, which lead them to the broker.
    """

    def __init__(self, assignments: Sequence[tuple[str, Assignment]], environment: Mapping[str, str]) -> None:
        self._assignments = assignments
        self._environment = environment
        self._messages: asyncio.Queue[tuple[ChildProcess, ChildMessage | None]] = asyncio.Queue()
        self._readers: list[asyncio.Task[None]] = []
        self.children: list[ChildProcess] = []

    async def __aenter__(self) -> Self:
        """Start the children, without waiting until they are ready."""
        try:
            for name, assignment in self._assignments:
                await self._start(name, assignment)
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop the children that still run. They do not drain: their work is done or no longer needed."""
        await self._stop()

    def send(self, command: Command, children: Sequence[ChildProcess]) -> None:
        """Send the next step to *children*."""
        for child in children:
            child.send(command)

    async def receive(self, timeout_seconds: float) -> tuple[ChildProcess, ChildMessage]:
        """Return the next message, with the child that sent it.

        Raises:
            TimeoutError: No child sent a message within *timeout_seconds*.
            SmartpipeError: A child ended without a final report.
        """
        async with asyncio.timeout(timeout_seconds):
            child, message = await self._messages.get()
        if message is None:
            code = await child.process.wait()
            how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise SmartpipeError(f"{child.name} (process {child.process.pid}) {how}: {child.read_last_line()}")
        return child, message

    async def _start(self, name: str, assignment: Assignment) -> None:
        stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in _stop
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "smartpipe.bench.child"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            env=dict(self._environment),
            limit=MAX_LINE_BYTES,
            start_new_session=True,  # the run handles a Ctrl-C in the terminal
        )
        child = ChildProcess(name, assignment, process, stderr)
        self.children.append(child)
        assert process.stdin is not None  # noqa: S101 - it is a pipe
        process.stdin.write(assignment.model_dump_json().encode() + b"\n")
        self._readers.append(asyncio.create_task(self._read_messages(child)))

    async def _read_messages(self, child: ChildProcess) -> None:
        """Put every message into the queue, and None if the child ends before its final report."""
        assert child.process.stdout is not None  # noqa: S101 - it is a pipe
        has_reported = False
        while line := await child.process.stdout.readline():
            message = parse_message(line)
            has_reported = message.kind in {"producer", "worker"}
            self._messages.put_nowait((child, message))
        if not has_reported:
            self._messages.put_nowait((child, None))

    async def _stop(self) -> None:
        for child in self.children:
            if child.process.stdin is not None:
                child.process.stdin.close()
        running = [asyncio.create_task(child.process.wait()) for child in self.children]
        if running:
            _, late = await asyncio.wait(running, timeout=STOP_SECONDS)
            if late:
                for child in self.children:
                    if child.process.returncode is None:
                        child.process.kill()
                await asyncio.wait(late)
        for reader in self._readers:
            reader.cancel()
        for child in self.children:
            child.stderr.close()
