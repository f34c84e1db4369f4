"""Runs ``smartpipe new``. The project appears complete, or not at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from smartpipe.cli.export import check_choice
from smartpipe.cli.new.name import read_name
from smartpipe.cli.new.render import TEMPLATES, find_source, list_services, render_files
from smartpipe.contracts.files import write_text
from smartpipe.deploy.compose import LOCAL_FILE as COMPOSE_FILE
from smartpipe.errors import ConfigError, SmartpipeError

if TYPE_CHECKING:
    from smartpipe.cli.new.compose import NewServices

_EXPORT = ("-m", "smartpipe.cli.new.compose")


def run_new(name: str, template: str) -> None:
    """Create the project in a directory called *name*, and print the next steps.

    Raises:
        ConfigError: The name or the template is wrong; the directory exists; or it cannot be written.
    """
    project = read_name(name)
    check_choice("--template", template, list(TEMPLATES))
    target = Path(project.name)
    _refuse_existing(target)
    try:
        files = _create(target, render_files(template, project), list_services(template, project))
    except OSError as error:
        raise ConfigError(f"cannot create {target} in {Path.cwd()}: {error.strerror or error}") from None
    typer.echo(_describe(project.name, files))


def _refuse_existing(target: Path) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ConfigError(f"{target.absolute()} exists, and nothing was changed: choose another name, or move it")
    if target.is_dir() and any(target.iterdir()):
        raise ConfigError(f"{target.absolute()} is not empty, and nothing was changed: choose another name, or move it")


def _create(target: Path, files: dict[str, str], services: NewServices) -> list[str]:
    """Write the files below a hidden directory, and move them to *target*. Return their paths."""
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=Path.cwd()))
    try:
        project = staging / target.name
        for path, text in files.items():
            write_text(project / path, text)
        write_text(project / COMPOSE_FILE, _export_compose(project, services))
        project.rename(target)  # replaces an empty directory
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return sorted([*files, COMPOSE_FILE])


def _export_compose(directory: Path, services: NewServices) -> str:
    """Return the compose file of the project, with the default settings."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "SMARTPIPE_"))}
    done = subprocess.run(  # noqa: S603 - our own module
        [sys.executable, *_EXPORT, json.dumps(services)],
        cwd=directory,
        env={**own, "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SmartpipeError(f"the compose file could not be written: {done.stderr.strip()}")
    return done.stdout


def _describe(name: str, files: list[str]) -> str:
    lines = [f"{name}: {len(files)} files written", *(f"  {path}" for path in files), "", "Next steps:"]
    lines += [f"  cd {name}"]
    if shutil.which("uv") is None:
        lines += ["  # without uv: activate a virtual environment, and run the pip command that README.md names"]
    lines += [
        "  make demo                   # a broker, the services and one event, in this terminal until Ctrl-C",
        "  make test",
        "  uv lock                     # pins all packages: commit uv.lock for CI and the Dockerfile",
        "  docker compose up --build   # the same in containers",
    ]
    if (source := find_source()) and "path" in source:
        lines += ["", f"note: pyproject.toml installs smartpipe from {source['path']}, which Docker cannot see."]
        lines += ["Use a release of smartpipe before you build an image."]
    return "\n".join(lines)
