"""The processes of a run: started together, heard together, and gone with it."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from typing import IO, TYPE_CHECKING, NamedTuple, Self

from smartpipe.bench.messages import Assignment, Message, Order, read
from smartpipe.errors import SmartpipeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

LINE_BYTES = 1 << 28
"""The longest line: a worker's last word has a compressed byte for each event."""
END_SECONDS = 5.0


class Member(NamedTuple):
    """One process. Its *name* is as people read it."""

    name: str
    assignment: Assignment
    process: asyncio.subprocess.Process
    errors: IO[bytes]

    def order(self, order: Order) -> None:
        """Tell it what to do next; one that is gone is heard of by its silence."""
        if self.process.stdin is not None and not self.process.stdin.is_closing():
            self.process.stdin.write(order.model_dump_json().encode() + b"\n")

    @property
    def last_words(self) -> str:
        """The last line of its standard error."""
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


class Crew:
    """Processes with an assignment each. An async context manager: at its end none is left.

    Args:
        environment: Of the processes: where they publish to and receive from.
    """

    def __init__(self, assignments: Sequence[tuple[str, Assignment]], environment: Mapping[str, str]) -> None:
        self._assignments = assignments
        self._environment = environment
        self._heard: asyncio.Queue[tuple[Member, Message | None]] = asyncio.Queue()
        self._listening: list[asyncio.Task[None]] = []
        self.members: list[Member] = []

    async def __aenter__(self) -> Self:
        """Start them, without waiting until they are ready."""
        try:
            for name, assignment in self._assignments:
                await self._start(name, assignment)
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End those that still run: at once, as their work is done or not wanted any more."""
        await self._end()

    def order(self, order: Order, members: Sequence[Member]) -> None:
        """Tell *members* what to do next."""
        for member in members:
            member.order(order)

    async def next(self, timeout_seconds: float) -> tuple[Member, Message]:
        """Return what is said next, and who says it.

        Raises:
            TimeoutError: Nobody said anything for so long.
            SmartpipeError: One of them ended without its last word.
        """
        async with asyncio.timeout(timeout_seconds):
            member, message = await self._heard.get()
        if message is None:
            code = await member.process.wait()
            how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise SmartpipeError(f"{member.name} (process {member.process.pid}) {how}: {member.last_words}")
        return member, message

    async def _start(self, name: str, assignment: Assignment) -> None:
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in _end
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "smartpipe.bench.child"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env=dict(self._environment),
            limit=LINE_BYTES,
            start_new_session=True,  # a Ctrl-C in the terminal is the run's to handle
        )
        member = Member(name, assignment, process, errors)
        self.members.append(member)
        assert process.stdin is not None  # noqa: S101 - it is a pipe
        process.stdin.write(assignment.model_dump_json().encode() + b"\n")
        self._listening.append(asyncio.create_task(self._listen(member)))

    async def _listen(self, member: Member) -> None:
        """Pass on every line; the end of the lines counts only before the last word."""
        assert member.process.stdout is not None  # noqa: S101 - it is a pipe
        ended = False
        while line := await member.process.stdout.readline():
            message = read(line)
            ended = message.kind in {"published", "handled"}
            self._heard.put_nowait((member, message))
        if not ended:
            self._heard.put_nowait((member, None))

    async def _end(self) -> None:
        for member in self.members:
            if member.process.stdin is not None:
                member.process.stdin.close()
        running = [asyncio.create_task(member.process.wait()) for member in self.members]
        if running:
            _, slow = await asyncio.wait(running, timeout=END_SECONDS)
            if slow:
                for member in self.members:
                    if member.process.returncode is None:
                        member.process.kill()
                await asyncio.wait(slow)
        for listening in self._listening:
            listening.cancel()
        for member in self.members:
            member.errors.close()
