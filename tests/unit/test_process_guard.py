"""An object with connections belongs to the process that uses it first."""

from __future__ import annotations

import pytest

from smartpipe import ConfigError
from smartpipe.process_guard import ProcessGuard


def test_the_first_process_to_use_an_object_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    guard, process = ProcessGuard("this pool"), 1
    monkeypatch.setattr("os.getpid", lambda: process)
    process = 2  # a fork before the first use
    guard.check()
    guard.check()

    process = 3
    for _ in range(2):
        with pytest.raises(ConfigError, match="^this pool was first used in process 2, and this is process 3"):
            guard.check()

    process = 2
    guard.check()
