"""Protect the task on Amazon ECS from scale-in and deployments while long handlers run."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, Protocol, Self, TypeAlias

from tenacity import wait_random_exponential

from smartpipe.retry import backoff_seconds
from smartpipe.telemetry.families import Family, Sample
from smartpipe.worker.ecs_agent import AgentError, find_agent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from types import TracebackType

    from smartpipe.worker.long_handlers import LongHandler

    FindLongHandler: TypeAlias = Callable[[], Awaitable[LongHandler | None]]

log = logging.getLogger("smartpipe.protection")

Step: TypeAlias = Literal["set", "renew", "remove"]

EXPIRES_MINUTES = 30
"""Long enough for an outage of the agent, and short enough if this process cannot remove the protection."""
RENEW_SECONDS = EXPIRES_MINUTES * 60 / 2
CHECK_SECONDS = 1.0
ERROR_SECONDS = 30.0
LAST_SECONDS = 2.0
"""The limit of the last call. It comes after a drain, so ECS may kill the task soon."""
WAITS = wait_random_exponential(multiplier=1, min=1, max=30)


class Agent(Protocol):
    """Sets and removes the protection; see ``EcsAgent``."""

    async def set_protection(self, minutes: int | None) -> None:
        """Protect the task for this number of minutes from now; None removes the protection. Raise only AgentError."""


class ProtectionState:
    """Decides which call is due. It knows no clock: each method takes the time. Pure.

    A call without an answer may have had its effect. So there are two times: the task is protected for certain until
    ``certain_until``, and may be protected until ``possible_until``.

    Args:
        keep_seconds: How long to keep a protection that is not needed any more, because the next handler may need it.
    """

    def __init__(self, keep_seconds: float) -> None:
        self.certain_until = self.possible_until = -math.inf
        self.failures = 0
        self._keep_seconds = keep_seconds
        self._needed_at = self._retry_at = -math.inf

    def choose(self, now: float, *, needed: bool, draining: bool = False) -> Step | None:
        """Return the call to make now, or None.

        After SIGTERM, a new protection has no effect, so none is set. An existing one stays as long as it is needed.
        """
        if needed:
            self._needed_at = now
        if now < self._retry_at:
            return None
        if needed and not draining:
            if now >= self.certain_until:
                return "set"
            return "renew" if self.certain_until - now <= RENEW_SECONDS else None
        unneeded = not needed and (draining or now - self._needed_at >= self._keep_seconds)
        return "remove" if unneeded and now < self.possible_until else None

    def begin(self, step: Step) -> None:
        """Record that a call begins."""
        if step == "remove":  # from now on, the protection may end at any time
            self.certain_until = -math.inf

    def succeed(self, step: Step, began: float) -> int:
        """Record the success of a call that began at this time; return the number of failures before it."""
        failures, self.failures, self._retry_at = self.failures, 0, -math.inf
        until = -math.inf if step == "remove" else began + EXPIRES_MINUTES * 60
        self.certain_until = self.possible_until = until
        return failures

    def fail(self, step: Step, error: AgentError, now: float) -> None:
        """Record a failed call. The next one follows after a wait of up to 30 s."""
        self.failures += 1
        self._retry_at = now + backoff_seconds(WAITS, self.failures, error)
        if step != "remove" and not error.refused:
            self.possible_until = now + EXPIRES_MINUTES * 60


class TaskProtection:
    """Protects the task of this process while it is entered and while *find* returns a handler that needs it.

    One call to the agent is open at a time, and none delays a message. Failures are logged when they begin and when
    they end. Without an agent, it logs a warning and does nothing.

    Args:
        find: Returns the handler that needs protection, or None.
        after_seconds: The age at which *find* reports a handler. Half of it is the time for which a protection is kept.
        draining: Returns whether the process drains.
        labels: Those of its metrics.
        agent: By default the agent at ``ECS_AGENT_URI``.
    """

    def __init__(
        self,
        find: FindLongHandler,
        after_seconds: float,
        draining: Callable[[], bool],
        labels: Mapping[str, str],
        *,
        agent: Agent | None = None,
    ) -> None:
        self._find = find
        self._draining = draining
        self._labels = labels
        self._agent = agent
        self._check_seconds = min(CHECK_SECONDS, after_seconds / 4)
        self._state = ProtectionState(after_seconds / 2)
        self._failures = 0
        self._last_error: AgentError | None = None
        self._was_protected = False
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start to watch the handlers."""
        if self._agent is None:
            found = find_agent(os.environ)
            if isinstance(found, str):
                log.warning("SMARTPIPE_PROTECT_TASK has no effect: %s", found)
                return self
            self._agent = found
        self._task = asyncio.create_task(self._run(self._agent))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Remove the protection, if there is one. Takes 2 s at most."""
        self._closing.set()
        if self._task is None or self._agent is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_SECONDS):
                # A call that is open now must not reach ECS after the last one.
                await asyncio.wait([self._task])
                if self._may_be_protected():
                    await self._call(self._agent, "remove")
        self._task.cancel()
        if self._may_be_protected():
            log.warning(
                "The task may stay protected for up to %d min after the end of this process: %s",
                EXPIRES_MINUTES,
                self._last_error or f"no answer within {LAST_SECONDS:g} s",
            )

    @property
    def protected(self) -> bool:
        """Whether the task is protected for certain."""
        return self._now() < self._state.certain_until

    def collect(self) -> list[Family]:
        """Return the metrics, or none if there is no agent."""
        if self._agent is None:
            return []
        return [
            Family(
                "smartpipe_task_protected",
                "gauge",
                "1 while the task is protected from scale-in and deployments, 0 otherwise.",
                [Sample(self._labels, int(self.protected))],
            ),
            Family(
                "smartpipe_task_protection_failures_total",
                "counter",
                "Failed calls to the agent of ECS that set, renew or remove the protection of the task.",
                [Sample(self._labels, self._failures)],
            ),
        ]

    async def _run(self, agent: Agent) -> None:
        while not self._closing.is_set():
            seconds = self._check_seconds
            try:
                await self._check(agent)
            except Exception:
                log.exception("Internal error in smartpipe, will check the protection of the task again")
                seconds = ERROR_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._closing.wait()

    async def _check(self, agent: Agent) -> None:
        handler = await self._find()
        if self._was_protected and not self.protected:
            log.warning("The protection of the task has expired: a scale-in or a deployment may stop it")
        self._was_protected = self.protected
        step = self._state.choose(self._now(), needed=handler is not None, draining=self._draining())
        if step is None or self._closing.is_set():
            return
        if await self._call(agent, step):
            if step == "set" and handler is not None:
                log.info(
                    "The task is protected from scale-in and deployments: handler %s has run for %.0f s",
                    handler.name,
                    handler.seconds,
                    extra={"fields": {"handler": handler.name}},
                )
            elif step == "renew":
                log.debug("The protection of the task is renewed for %d min", EXPIRES_MINUTES)
        self._was_protected = self.protected

    async def _call(self, agent: Agent, step: Step) -> bool:
        """Make a call, and return whether it succeeded."""
        began = self._now()
        self._state.begin(step)
        try:
            await agent.set_protection(None if step == "remove" else EXPIRES_MINUTES)
        except AgentError as error:
            self._failures += 1
            self._last_error = error
            if not (self._state.failures or self._closing.is_set()):
                log.warning("Cannot %s the protection of the task, retrying: %s", step, error)
            self._state.fail(step, error, self._now())
            return False
        self._last_error = None
        failures = self._state.succeed(step, began)
        if failures:
            log.info("The protection of the task works again after %d failed calls", failures)
        if step == "remove":
            log.info("The task is no longer protected from scale-in and deployments")
        return True

    def _may_be_protected(self) -> bool:
        return self._now() < self._state.possible_until

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
