"""Ask CloudWatch for the age of the oldest message in each queue that is not empty."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from smartpipe.names import name_in
from smartpipe.transports.measured import MeasuredTransport

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smartpipe.transport import Depth, Transport
    from smartpipe.transports.aws.session import AwsSession

log = logging.getLogger("smartpipe.queues")


class QueueAges:
    """The ages of the oldest messages in seconds, as ``values`` by queue. Unknown ages are absent.

    The age of an empty queue is 0. CloudWatch is not asked for it, because it charges for each age.

    Args:
        session: None: there is no CloudWatch, as in tests in memory.
        seconds: The shortest time between two requests; 0: never ask.
    """

    def __init__(self, session: AwsSession | None, seconds: float) -> None:
        self.values: dict[str, float] = {}
        self._session = session
        self._seconds = seconds
        self._next_at = 0.0
        self._failing = False

    def clear(self) -> None:
        """Forget all ages."""
        self.values = {}

    async def read(self, depths: Mapping[str, Depth]) -> None:
        """Update the ages of the queues of *depths*, unless CloudWatch was asked a short time ago. Raises nothing."""
        now = asyncio.get_running_loop().time()
        if self._session is None or not self._seconds or now < self._next_at:
            return
        self._next_at = now + self._seconds
        addresses = self._session.addresses
        physical = {name_in(addresses.physical(name)): name for name, depth in depths.items() if sum(depth)}
        try:
            found = await _ask(self._session, list(physical)) if physical else {}
        except Exception as error:  # noqa: BLE001 - a metric must not disturb the worker
            if not self._failing:
                log.warning(
                    "Cannot ask CloudWatch for the age of messages, retrying every %g s: %s", self._seconds, error
                )
            self._failing = True
            self.values = {}
            return
        if self._failing:
            log.info("CloudWatch reports the age of messages again")
        self._failing = False
        empty = {name: 0.0 for name, depth in depths.items() if not sum(depth)}
        self.values = {**empty, **{physical[name]: age for name, age in found.items()}}


async def _ask(session: AwsSession, names: list[str]) -> dict[str, float]:
    from smartpipe.topology.aws.cloudwatch import oldest_ages  # botocore, which a worker in memory does not need

    return await oldest_ages(session, names)


def session_of(transport: Transport) -> AwsSession | None:
    """Return the session of a transport to AWS, or None."""
    inner: Any = transport.inner if isinstance(transport, MeasuredTransport) else transport
    session: AwsSession | None = getattr(inner, "session", None)
    return session
