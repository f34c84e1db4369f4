"""What to do when a process has ended: pure decisions, no process and no clock."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

FIRST_WAIT_SECONDS = 1.0
MAX_WAIT_SECONDS = 30.0
STEADY_SECONDS = 60.0
MISCONFIGURED = (1, 2)


class Exit(NamedTuple):
    """How one run of a process ended; ``code`` is negative for a signal, as in subprocess."""

    code: int
    ran_seconds: float
    was_ready: bool


class Restart(NamedTuple):
    """Start it again, after a wait."""

    after_seconds: float


class GiveUp(NamedTuple):
    """Stop the others too, and end with ``code``."""

    code: int


class AwaitChange(NamedTuple):
    """Start it again when its sources have changed."""


def failures_in_a_row(before: int, ended: Exit) -> int:
    """Return the number of failures with this one; who ran steadily begins anew."""
    return 1 if ended.ran_seconds >= STEADY_SECONDS else before + 1


def after_exit(ended: Exit, failures: int, *, any_was_ready: bool, reloading: bool) -> Restart | GiveUp | AwaitChange:
    """Decide about a process that ended although nobody wanted it to, *failures* times in a row.

    Who exits with the code of a user's mistake before any of them was ever ready would do so again:
    a wrong configuration does not heal by waiting.
    """
    mistaken = ended.code in MISCONFIGURED and not ended.was_ready
    if mistaken and reloading:
        return AwaitChange()
    if mistaken and not any_was_ready:
        return GiveUp(ended.code)
    return Restart(min(MAX_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0 ** min(failures - 1, 10)))


def exit_code(drained: Iterable[Exit]) -> int:
    """Return 0 when all of them ended as they should once told to stop, else 1.

    A process that SIGTERM met before it listened had taken nothing yet.
    """
    return int(any(one.code and not (one.code == -signal.SIGTERM and not one.was_ready) for one in drained))


def describe_exit(code: int) -> str:
    """Return ``exit code 3``, or the signal's name."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
