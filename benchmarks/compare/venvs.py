"""Create a virtual environment for each client once, so that the pinned versions of clients cannot conflict."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.compare.contenders import PYTHON_312

if TYPE_CHECKING:
    from benchmarks.compare.contenders import Venv

ROOT = Path(__file__).parents[2]
CLIENTS = Path(__file__).parent / "clients"


@cache
def find_python() -> tuple[str, tuple[int, int]]:
    """Return the interpreter for all clients, and its version: Python 3.12 if it is installed, or else this one.

    Some clients need 3.12, and the figures of different versions cannot be compared.
    """
    places = [shutil.which("python3.12"), *sorted(map(str, Path.home().glob(".pyenv/versions/3.12.*/bin/python")))]
    # A shim of pyenv is on the PATH for versions that are installed but not chosen, and fails.
    working = (one for one in places if one and _works(one))
    return next(((place, PYTHON_312) for place in working), (sys.executable, sys.version_info[:2]))


def _works(python: str) -> bool:
    return subprocess.run([python, "-c", ""], check=False, capture_output=True).returncode == 0


def install_python(venv: Venv, directory: Path) -> Path | None:
    """Install the requirements of *venv*, and return its interpreter; None if they need a newer one.

    Raises:
        CalledProcessError: A requirement cannot be installed.
    """
    base, version = find_python()
    if version < venv.needs:
        return None
    home = directory / venv.name
    wanted = json.dumps([base, *venv.requirements, str(ROOT) if venv.checkout else ""])
    stamp = home / "installed.json"
    python = home / "bin" / "python"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    subprocess.run([base, "-m", "venv", "--clear", str(home)], check=True)
    checkout = ["--editable", str(ROOT)] if venv.checkout else []
    quiet = ["--quiet", "--quiet", "--disable-pip-version-check"]
    subprocess.run([str(python), "-m", "pip", "install", *quiet, *venv.requirements, *checkout], check=True)
    stamp.write_text(wanted)
    return python
