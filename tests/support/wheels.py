"""Install the wheel of smartpipe into a fresh venv, as a user does."""

from __future__ import annotations

import site
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SCRIPTS = ("alembic", "uvicorn", "pytest")


def make_venv(directory: Path, extras: str, packages: Sequence[str], *, shares: bool = True) -> Path:
    """Return a venv in which pip has installed the wheel with *extras*, and *packages*. Skip the test if pip cannot.

    Args:
        shares: The venv sees the packages of this one, and pip adds only those that are missing.
    """
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    _require(*pip, "wheel", "--no-deps", "--wheel-dir", str(directory), str(ROOT))
    [wheel] = directory.glob("*.whl")
    venv = directory / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(venv / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
    if shares:
        _share_packages(venv)
        _require(*pip, "--no-deps", "--force-reinstall", str(wheel))
    _require(*pip, f"{wheel}[{extras}]", *packages)
    return venv


def _share_packages(venv: Path) -> None:
    """Let *venv* import the packages of this one, after its own."""
    [own] = venv.glob("lib/python*/site-packages")
    (own / "shared.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    for name in SCRIPTS:
        script = venv / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {venv}/bin/python -m {name} "$@"\n')
        script.chmod(0o755)


def _require(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"pip cannot install a package: {done.stderr.strip().splitlines()[-1]}")
