"""The exported Dockerfile, carried out without Docker: uv builds its environment, and its command runs in it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import urlopen

import pytest

from smartpipe.deploy.compose import BROKER_HEALTH_PATH, WITH_DEVELOPMENT_PACKAGES
from smartpipe.deploy.kubernetes import USER_ID
from tests.support.processes import ROOT, smartpipe
from tests.support.programs import find_program
from tests.support.waiting import DEADLINE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smartpipe import EmbeddedBroker

SERVICE = """
from smartpipe import Event, Service, Topic

class OrderPlaced(Event, topic=Topic("image-orders"), type="image.order.placed", version="1.0"):
    order_id: str

billing = Service("image-billing")

@billing.subscribe(OrderPlaced)
async def charge(event: OrderPlaced) -> None:
    print("charged", event.order_id, flush=True)
"""
PACKAGE = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[tool.hatch.build]
include = ["imageshop.py"]
"""
PROJECT = """
[project]
name = "imageshop"
version = "1"
requires-python = ">=3.11"
dependencies = ["smartpipe"]

[dependency-groups]
dev = ["smartpipe[local]"]

[tool.uv.sources]
smartpipe = {{ path = "{root}" }}

[tool.smartpipe]
services = ["imageshop:billing"]
"""


@pytest.fixture
def app() -> Iterator[Path]:
    """Return an empty directory that every user may read, in place of the image's /app."""
    directory = Path(tempfile.mkdtemp(prefix="smartpipe-image-"))
    directory.chmod(0o755)
    yield directory / "app"
    shutil.rmtree(directory)


def find_python() -> tuple[str, int | None]:
    """Return a Python, and the user to run it as; None is the own user, who may not become another one."""
    own = str(Path(sys.executable).resolve())
    if os.geteuid() != 0:
        return own, None
    for python in (own, shutil.which("python3", path="/usr/local/bin:/usr/bin")):
        try:
            if python and subprocess.run([python, "-c", "import tomllib"], user=USER_ID, check=False).returncode == 0:
                return python, USER_ID
        except PermissionError:
            continue  # it is in a directory of the own user
    return own, None


def write_project(sources: Path, python: str, uv: str, *, packaged: bool) -> Path:
    """Write a project, and lock its packages."""
    sources.mkdir()
    (sources / "imageshop.py").write_text(SERVICE)
    (sources / "pyproject.toml").write_text((PACKAGE if packaged else "") + PROJECT.format(root=ROOT))
    locked = subprocess.run([uv, "lock", "--python", python], cwd=sources, capture_output=True, text=True, check=False)
    assert locked.returncode == 0, locked.stderr
    return sources


def build(dockerfile: str, sources: Path, app: Path, python: str, uv: str, **given: str) -> None:
    """Carry out both stages in the directory *app*: uv's commands as they are, and its mounts as copies.

    Args:
        given: Build arguments.
    """
    first, final = (stage.replace("\\\n", "") for stage in dockerfile.split("\nFROM ")[1:])
    app.mkdir()
    arguments = {**dict(re.findall(r"^ARG (\w+)=(.*)$", first, re.MULTILINE)), **given}
    for instruction in first.splitlines():
        if instruction.startswith("RUN"):
            for name in re.findall(r"type=bind,source=([\w.]+)", instruction):
                shutil.copy(sources / name, app)
            _, *options = shlex.split(re.sub(r"^RUN|--mount=\S+", "", instruction))
            environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            environment |= {**arguments, "UV_PYTHON": python, "UV_LINK_MODE": "copy", "UV_PYTHON_DOWNLOADS": "never"}
            done = subprocess.run([uv, *options], cwd=app, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        elif instruction.startswith("COPY . "):
            shutil.copytree(sources, app, dirs_exist_ok=True)
    built = app.rename(app.with_name("build"))
    app.mkdir()
    (built / ".venv").rename(app / ".venv")  # at the same path, as the scripts in it require
    if "\nCOPY . " in final:
        shutil.copytree(sources, app, dirs_exist_ok=True)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("packaged", [True, False], ids=["a package", "only sources"])
def test_the_image_handles_an_event_as_another_user_and_drains_on_sigterm(
    packaged: bool, app: Path, tmp_path: Path, fast_broker: EmbeddedBroker
) -> None:
    uv = find_program("uv")
    python, user = find_python()
    sources = write_project(tmp_path / "project", python, uv, packaged=packaged)
    exported = smartpipe("deploy", "export", "--format", "dockerfile", directory=str(sources))
    assert exported.returncode == 0, exported.stderr
    assert smartpipe("topology", "apply", "--yes", directory=str(sources)).returncode == 0

    build(exported.stdout, sources, app, python, uv)

    assert not list(app.glob(".venv/lib/python*/site-packages/ministack")), "the image has development packages"
    (entrypoint,) = json.loads(re.findall(r"^ENTRYPOINT (.*)$", exported.stdout, re.MULTILINE)[0])
    arguments = json.loads(re.findall(r"^CMD (.*)$", exported.stdout, re.MULTILINE)[0])
    worker = subprocess.Popen(
        [str(app / ".venv" / "bin" / entrypoint), *arguments],
        cwd=app,
        env={
            **{name: value for name, value in os.environ.items() if name.startswith(("AWS_", "SMARTPIPE_"))},
            "SMARTPIPE_PORT": "0", "SMARTPIPE_WAIT_SECONDS": "1", "PYTHONUNBUFFERED": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
    )  # fmt: skip
    try:
        assert worker.stdout is not None
        data = ["publish", "image.order.placed", "imageshop:billing", "--data", '{"order_id": "o-1"}']
        assert smartpipe(*data, directory=str(sources)).returncode == 0
        lines = []
        for line in worker.stdout:
            lines.append(line)
            if "charged o-1" in line:
                worker.send_signal(signal.SIGTERM)
        assert worker.wait(DEADLINE_SECONDS) == 0, "".join(lines)
        assert any("charged o-1" in line for line in lines), "".join(lines)
    finally:
        worker.kill()
        worker.communicate()


@pytest.mark.timeout(240)
def test_the_image_of_the_broker_in_a_compose_file_listens_as_another_user(app: Path, tmp_path: Path) -> None:
    uv = find_program("uv")
    python, user = find_python()
    sources = write_project(tmp_path / "project", python, uv, packaged=True)
    exported = smartpipe("deploy", "export", "--format", "dockerfile", directory=str(sources))

    build(exported.stdout, sources, app, python, uv, **WITH_DEVELOPMENT_PACKAGES)

    with subprocess.Popen(
        [str(app / ".venv" / "bin" / "smartpipe"), "local", "--host", "0.0.0.0", "--port", "0"],
        cwd=app,
        env={"PATH": str(app / ".venv" / "bin"), "PYTHONUNBUFFERED": "1"},  # no home directory
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
    ) as broker:
        try:
            assert broker.stdout is not None
            first = broker.stdout.readline()
            [port] = re.findall(r"^# ministack \S+ on http://127.0.0.1:(\d+), ", first)
            with urlopen(f"http://127.0.0.9:{port}{BROKER_HEALTH_PATH}", timeout=DEADLINE_SECONDS) as answer:
                assert answer.status == 200
            broker.send_signal(signal.SIGTERM)
            assert broker.wait(DEADLINE_SECONDS) == 0
        finally:
            broker.kill()
