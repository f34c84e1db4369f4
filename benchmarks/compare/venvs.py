"""A virtual environment for each client, made once and kept: nobody's pins get in another's way."""

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


def python_of(venv: Venv, directory: Path) -> Path:
    """Return its interpreter, with the requirements installed.

    Raises:
        CalledProcessError: They cannot be.
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
