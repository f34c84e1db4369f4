"""Child processes under one supervisor, which starts, restarts, queries and drains them."""

from smartpipe.worker.supervisor.child import Command, run_command
from smartpipe.worker.supervisor.supervisor import Address, Supervisor
from smartpipe.worker.supervisor.watch import SourceWatcher, can_watch

__all__ = ["Address", "Command", "SourceWatcher", "Supervisor", "can_watch", "run_command"]
