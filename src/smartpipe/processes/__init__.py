"""Child processes under one supervisor: started, restarted, asked how they fare, and drained together."""

from smartpipe.processes.child import Command
from smartpipe.processes.supervisor import Address, Supervisor

__all__ = ["Address", "Command", "Supervisor"]
