"""Child processes under one supervisor: started, restarted, asked how they fare, and drained together."""

from smartpipe.processes.child import Command
from smartpipe.processes.supervisor import Address, Supervisor
from smartpipe.processes.watch import Changes

__all__ = ["Address", "Changes", "Command", "Supervisor"]
