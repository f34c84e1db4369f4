"""Ask all child processes for a handler that needs the task to be protected."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from smartpipe.worker.long_handlers import LongHandler
from smartpipe.worker.supervisor.query import NoResponseError, query

if TYPE_CHECKING:
    from smartpipe.worker.supervisor.child import Child
    from smartpipe.worker.supervisor.supervisor import Supervisor


class ChildrenLongHandlers:
    """The long handlers of all children. One task has one protection, so only the supervisor sets and removes it.

    A child that does not answer counts with its last answer for as long as its process exists: its handlers may still
    run while its event loop is blocked.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._last: dict[int, LongHandler | None] = {}

    async def find(self) -> LongHandler | None:
        """Return the handler that has run for longest, if one needs protection."""
        pids = [child.pid for child in self._supervisor.children]
        answers = await asyncio.gather(*(self._ask(child) for child in self._supervisor.children))
        self._last = {pid: answer for pid, answer in zip(pids, answers, strict=True) if pid is not None}
        found = [answer for answer in self._last.values() if answer is not None]
        return max(found, key=lambda handler: handler.seconds, default=None)

    async def _ask(self, child: Child) -> LongHandler | None:
        pid = child.pid
        if pid is None:
            return None
        try:
            answer = json.loads((await query(child.socket, "/livez")).text).get("long_handler")
        except NoResponseError:
            return self._last.get(pid)
        return None if answer is None else LongHandler(answer["name"], answer["seconds"])
