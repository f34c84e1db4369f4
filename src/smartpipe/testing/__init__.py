"""For the tests of services: a broker in memory on virtual time, and a real one on a free port.

The pytest plugin ``smartpipe`` loads by itself: it shows what happened on a MemoryBroker below a
failed test, and has the fixture ``smartpipe_moto``.
"""

from smartpipe.testing.broker import MemoryBroker
from smartpipe.testing.clock import virtual_time
from smartpipe.testing.records import DeadLettered, Handled, Published, Retried
from smartpipe.testing.wire import provision, working

__all__ = [
    "DeadLettered",
    "Handled",
    "MemoryBroker",
    "Published",
    "Retried",
    "provision",
    "virtual_time",
    "working",
]
