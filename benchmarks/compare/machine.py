"""Where figures were read: they mean nothing without it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.compare.venvs import ROOT


def described(broker: str, command: str) -> dict[str, str]:
    """Return what a reader has to know of machine, versions and moment."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "command": command,
        "checkout": checkout(),
        "broker": f"{broker}, one process for the whole run, on loopback",
        "CPU": f"{cpu_model()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "load before": load(),
    }


def checkout() -> str:
    """The commit, and whether something was changed since."""
    try:
        asked = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
        return subprocess.run(asked, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def cpu_model() -> str:
    """As the kernel names it."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def load() -> str:
    """The load of the last 1, 5 and 15 minutes."""
    return ", ".join(f"{average:.1f}" for average in os.getloadavg())
