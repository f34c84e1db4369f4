"""Decide whether and when to restart a process that has ended. Pure."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

MIN_WAIT_SECONDS = 1.0
MAX_WAIT_SECONDS = 30.0
STABLE_SECONDS = 60.0
CONFIGURATION_EXIT_CODES = (1, 2)


class ProcessExit(NamedTuple):
    """The end of one run of a process. ``code`` is negative for a signal, as in subprocess."""

    code: int
    ran_seconds: float
    was_ready: bool


class Restart(NamedTuple):
    """Restart the process after a wait."""

    after_seconds: float


class GiveUp(NamedTuple):
    """Stop all processes, and exit with ``code``."""

    code: int


class AwaitChange(NamedTuple):
    """Restart the process when its sources have changed."""


def count_failures(before: int, ended: ProcessExit) -> int:
    """Return the number of failures in a row, with this one. A run of 60 s or more resets the count."""
    return 1 if ended.ran_seconds >= STABLE_SECONDS else before + 1


def decide_after_exit(
    ended: ProcessExit, failures: int, *, any_was_ready: bool, reloading: bool
) -> Restart | GiveUp | AwaitChange:
    """Decide about a process that has ended unexpectedly, *failures* times in a row.

    If a process exits with 1 or 2 before any process has become ready, the cause is a configuration error, and a
    restart cannot fix it.
    """
    is_misconfigured = ended.code in CONFIGURATION_EXIT_CODES and not ended.was_ready
    if is_misconfigured and reloading:
        return AwaitChange()
    if is_misconfigured and not any_was_ready:
        return GiveUp(ended.code)
    return Restart(choose_wait_seconds(failures))


def choose_wait_seconds(failures: int) -> float:
    """Return the time until the next start after this number of *failures* in a row."""
    return min(MAX_WAIT_SECONDS, MIN_WAIT_SECONDS * 2.0 ** min(failures - 1, 10))


def combine_exits(exits: Iterable[ProcessExit]) -> int:
    """Return 0 if all processes drained cleanly after they were asked to stop, or else 1.

    A process that SIGTERM ended before it was ready counts as clean, because it had not received any messages. A
    program that is not a worker is never ready, and may report the signal as a shell does.
    """
    by_sigterm = (-signal.SIGTERM, 128 + signal.SIGTERM)
    return int(any(one.code and not (one.code in by_sigterm and not one.was_ready) for one in exits))


def describe_exit(code: int) -> str:
    """Return a text such as ``exit code 3``, or the name of the signal."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
