"""Child processes under one supervisor: started, restarted, asked how they fare, and drained together."""

from smartpipe.worker.supervisor.child import Command, run_to_end
from smartpipe.worker.supervisor.supervisor import Address, Supervisor
from smartpipe.worker.supervisor.watch import Changes, can_watch

__all__ = ["Address", "Changes", "Command", "Supervisor", "can_watch", "run_to_end"]
