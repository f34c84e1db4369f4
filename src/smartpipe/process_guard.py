"""Refuses objects with connections in a fork of the process that used them first."""

from __future__ import annotations

import os

from smartpipe.errors import ConfigError


class ProcessGuard:
    """Lets only one process use an object: the first that uses it. Before that, a fork may inherit the object.

    After a fork, parent and child have the same sockets, and each would read responses to requests of the other.

    Args:
        name: Of the object, as the subject of a sentence: "this publisher".
    """

    __slots__ = ("_name", "_process")

    def __init__(self, name: str) -> None:
        self._name = name
        self._process: int | None = None

    def check(self) -> None:
        """Check that this process uses the object, or is the first to use it.

        Raises:
            ConfigError: Another process was the first.
        """
        process = os.getpid()
        if self._process is None:
            self._process = process
        elif self._process != process:
            raise ConfigError(
                f"{self._name} was first used in process {self._process}, and this is process {process}, a fork of it: "
                "the two would share connections; create one in each process, after the fork"
            )
