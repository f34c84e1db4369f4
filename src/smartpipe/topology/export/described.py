"""What exporters ask of a service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from smartpipe.topology.derive import Declares

if TYPE_CHECKING:
    from smartpipe.topology.model import Queue


class Described(Declares, Protocol):
    """Anything that can be exported; a Service is."""

    @property
    def sends_to(self) -> tuple[Queue, ...]:
        """The queues that it sends to past their topics."""
