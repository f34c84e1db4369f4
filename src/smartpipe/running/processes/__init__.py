"""Child processes under one supervisor: started, restarted, asked how they fare, and drained together."""

from smartpipe.running.processes.child import Command, run_to_end
from smartpipe.running.processes.supervisor import Address, Supervisor
from smartpipe.running.processes.watch import Changes, can_watch

__all__ = ["Address", "Changes", "Command", "Supervisor", "can_watch", "run_to_end"]
