"""Turn the signals that stop a process into calls. The worker itself does not handle signals."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""Sent by an orchestrator, by Ctrl-C, by a closed terminal, and by Ctrl-\\ or an image's STOPSIGNAL."""


def signals_to_handle() -> list[signal.Signals]:
    """Return the signals to handle. SIGHUP stays ignored if the process was started by ``nohup``."""
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
    return [signum for signum in SIGNALS if signum not in ignored]


@contextmanager
def on_stop(*calls: Callable[[str], None]) -> Iterator[None]:
    """Make the next of *calls* at each signal. After the last call, signals have their default effect again.

    SIGHUP makes only the first call.

    The handlers are registered with asyncio, so they run between two steps of the event loop, where they may set events
    and cancel tasks. A plain signal handler could interrupt the loop at any point.
    """
    loop = asyncio.get_running_loop()
    left = list(calls)

    def on_signal(name: str) -> None:
        if name == signal.SIGHUP.name and len(left) < len(calls):
            return  # the shell of a terminal sends it in addition to the kernel, and systemd sends it after SIGTERM
        if left:  # signals that arrived while the loop was blocked are handled in one step
            left.pop(0)(name)
        if not left:
            restore()

    signums = signals_to_handle()

    def restore() -> None:
        for signum in signums:
            loop.remove_signal_handler(signum)

    for signum in signums:
        loop.add_signal_handler(signum, on_signal, signum.name)
    try:
        yield
    finally:
        restore()


@contextmanager
def on_supervisor(stop: Callable[[str], None], kill: Callable[[str], None]) -> Iterator[None]:
    """Handle the signals of a supervisor: SIGTERM and the end of standard input call *stop*, and SIGINT calls *kill*.

    SIGHUP and SIGQUIT call *stop* too. Each signal makes its call, not only the first one.

    A second SIGTERM does not kill the process. systemd, for example, signals all processes of a group: the children get
    SIGTERM from systemd and from the supervisor. Standard input ends with the supervisor, even if the supervisor is
    killed. Subprocesses that a handler starts get an empty standard input.
    """
    loop = asyncio.get_running_loop()
    supervisor_input = os.dup(sys.stdin.fileno())
    with open(os.devnull, "rb") as empty:  # noqa: PTH123 - else a handler's subprocess could wait for input
        os.dup2(empty.fileno(), sys.stdin.fileno())

    def check_supervisor() -> None:
        if not os.read(supervisor_input, 1024):
            loop.remove_reader(supervisor_input)
            stop("the supervisor has ended")

    signums = signals_to_handle()
    for signum in signums:
        loop.add_signal_handler(signum, kill if signum is signal.SIGINT else stop, signum.name)
    loop.add_reader(supervisor_input, check_supervisor)
    try:
        yield
    finally:
        loop.remove_reader(supervisor_input)
        os.close(supervisor_input)
        for signum in signums:
            loop.remove_signal_handler(signum)
