"""The signals that stop a process, in one place: the worker knows how to stop, and nothing of POSIX."""

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
"""From an orchestrator, Ctrl-C, a terminal that is closed, and Ctrl-\\ or an image's STOPSIGNAL."""


def heard_signals() -> list[signal.Signals]:
    """Return the signals to hear: `nohup` ignores SIGHUP for its command, and that is left so."""
    return [one for one in SIGNALS if one is not signal.SIGHUP or signal.getsignal(one) is not signal.SIG_IGN]


@contextmanager
def on_stop(*calls: Callable[[str], None]) -> Iterator[None]:
    """Make one of *calls* at each of SIGNALS, in their order; after the last a signal has its default effect.

    SIGHUP makes the first call only.

    The handlers are asyncio's, so all run in the loop between two steps of it, where they may set
    events and cancel tasks; a plain signal handler could interrupt the loop anywhere.
    """
    loop = asyncio.get_running_loop()
    left = list(calls)

    def received(name: str) -> None:
        if name == signal.SIGHUP.name and len(left) < len(calls):
            return  # a terminal's shell sends it besides the kernel, and systemd after SIGTERM
        if left:  # signals that came while the loop was blocked are all heard at once
            left.pop(0)(name)
        if not left:
            restore()

    heard = heard_signals()

    def restore() -> None:
        for signum in heard:
            loop.remove_signal_handler(signum)

    for signum in heard:
        loop.add_signal_handler(signum, received, signum.name)
    try:
        yield
    finally:
        restore()


@contextmanager
def on_supervisor(stop: Callable[[str], None], kill: Callable[[str], None]) -> Iterator[None]:
    """Hear a supervisor: SIGTERM and the end of standard input call *stop*, however often, and SIGINT calls *kill*.

    SIGHUP and SIGQUIT call *stop* too, from whoever sends them.

    SIGTERM never kills, because whoever stops a whole group of processes, as systemd does, signals
    the children besides the supervisor, which signals them too. Standard input ends with the
    supervisor, however that ends; whatever is started from here finds it empty.
    """
    loop = asyncio.get_running_loop()
    lifeline = os.dup(sys.stdin.fileno())
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - a handler's subprocess would wait for the supervisor's words
        os.dup2(nothing.fileno(), sys.stdin.fileno())

    def ended() -> None:
        if not os.read(lifeline, 1024):
            loop.remove_reader(lifeline)
            stop("the supervisor is gone")

    heard = heard_signals()
    for signum in heard:
        loop.add_signal_handler(signum, kill if signum is signal.SIGINT else stop, signum.name)
    loop.add_reader(lifeline, ended)
    try:
        yield
    finally:
        loop.remove_reader(lifeline)
        os.close(lifeline)
        for signum in heard:
            loop.remove_signal_handler(signum)
