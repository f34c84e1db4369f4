"""Describe the machine and the versions of a run, without which its figures mean nothing."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.compare.venvs import ROOT, find_python


def describe_machine(broker: str, command: str) -> dict[str, str]:
    """Return the date, machine, versions and load of a run."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "command": command,
        "checkout": describe_checkout(),
        "broker": f"{broker}, one process for the whole run, on loopback",
        "CPU": f"{cpu_model()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release()}",
        "Python": subprocess.run(
            [find_python()[0], "--version"], check=True, capture_output=True, text=True
        ).stdout.strip(),
        "load before": load_averages(),
    }


def describe_checkout() -> str:
    """Return the commit, and whether the working tree has changes."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def cpu_model() -> str:
    """Return the name of the CPU as in the kernel."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def load_averages() -> str:
    """Return the load averages of the last 1, 5 and 15 minutes."""
    return ", ".join(f"{average:.1f}" for average in os.getloadavg())
