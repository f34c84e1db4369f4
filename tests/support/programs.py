"""Programs that judge exported files and are not packages of this environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT


def find_program(name: str, *places: str | None) -> str:
    """Return the path of a program beside this Python, in one of the places, or on the PATH; skip without it."""
    return look_for(name, *places) or pytest.skip(f"{name} is not installed")


def look_for(name: str, *places: str | None) -> str | None:
    """Return the same as ``find_program``, or None without the program."""
    own = str(Path(sys.executable).parent)
    paths = (own, *filter(None, places), os.environ.get("PATH", ""))
    return next(filter(None, (shutil.which(name, path=path) for path in paths)), None)


def find_ansible(name: str) -> str:
    """Return a program of Ansible, which `.ci/run` installs into a separate environment."""
    return find_program(name, os.environ.get("SMARTPIPE_TEST_ANSIBLE"), str(ROOT / ".venv-ansible/bin"))


def judge(*command: str) -> None:
    """Run a validator, and fail with its output if it has findings."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
