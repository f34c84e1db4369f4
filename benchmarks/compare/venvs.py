"""Create a virtual environment for each client once, so that the pinned versions of clients cannot conflict."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.compare.contenders import Venv

ROOT = Path(__file__).parents[2]
CLIENTS = Path(__file__).parent / "clients"


def install_python(venv: Venv, directory: Path) -> Path:
    """Install the requirements of *venv*, and return its interpreter.

    Raises:
        CalledProcessError: A requirement cannot be installed.
    """
    home = directory / venv.name
    wanted = json.dumps([sys.version, *venv.requirements, str(ROOT) if venv.checkout else ""])
    stamp = home / "installed.json"
    python = home / "bin" / "python"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
    checkout = ["--editable", str(ROOT)] if venv.checkout else []
    quiet = ["--quiet", "--quiet", "--disable-pip-version-check"]
    subprocess.run([str(python), "-m", "pip", "install", *quiet, *venv.requirements, *checkout], check=True)
    stamp.write_text(wanted)
    return python
