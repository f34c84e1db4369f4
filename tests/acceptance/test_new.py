"""``smartpipe new`` of the wheel in a fresh venv: the project's tests, its linter, and its first command."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from smartpipe.cli.deploy.commands import DEPLOY_FORMATS
from tests.support.loopback import free_port
from tests.support.programs import find_program
from tests.support.waiting import until_blocking
from tests.support.wheels import make_venv

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NAMES = {"service": "corner-shop", "api+worker": "corner_market"}


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_venv(tmp_path_factory.mktemp("new"), "local,doctor", ["fastapi", "uvicorn", "httpx", "pytest-asyncio"])


@pytest.fixture(scope="module")
def environment(venv: Path) -> dict[str, str]:
    """Return the environment of a user who has activated the venv, without uv."""
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "SMARTPIPE_", "PYTHON", "PYTEST"))
    }
    return {**own, "PATH": f"{venv / 'bin'}{os.pathsep}{own['PATH']}", "VIRTUAL_ENV": str(venv)}


@pytest.fixture(scope="module", params=list(NAMES))
def project(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, environment: Mapping[str, str]
) -> Path:
    """Return the directory of a new project."""
    directory = tmp_path_factory.mktemp("projects")
    name = NAMES[request.param]
    done = run("smartpipe", "new", name, "--template", request.param, directory=directory, environment=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"  cd {name}\n" in done.stdout
    assert "\n  make demo" in done.stdout
    return directory / name


def run(*command: str, directory: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    program = shutil.which(command[0], path=environment["PATH"])
    assert program is not None, command
    return subprocess.run(
        [program, *command[1:]],
        cwd=directory, env=environment, capture_output=True, text=True, check=False, timeout=110,
    )  # fmt: skip


class Demo:
    """``make demo``, and its output."""

    def __init__(self, project: Path, environment: Mapping[str, str]) -> None:
        self._log = project.parent / "demo.log"
        with self._log.open("w") as output:
            self._make = subprocess.Popen(
                ["make", "RUN=", f"PORT={free_port()}", "demo"],
                cwd=project,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return self._log.read_text()

    def wait_for(self, pattern: str) -> None:
        def is_found() -> bool:
            assert self._make.poll() is None, self.output
            return re.search(pattern, self.output) is not None

        try:
            until_blocking(is_found, 90)
        except AssertionError:
            pytest.fail(f"no line with {pattern!r}:\n{self.output}")

    def stop(self) -> int:
        """Send SIGTERM to ``smartpipe dev``, and return the exit code of make."""
        [dev] = [one for one in self._list_processes() if "dev" in one.cmdline()[1:3]]
        dev.send_signal(signal.SIGTERM)
        return self._make.wait(60)

    def end(self) -> None:
        for one in self._list_processes():
            one.kill()
        self._make.kill()
        self._make.wait()

    def _list_processes(self) -> list[psutil.Process]:
        if self._make.poll() is not None:
            return []
        found = psutil.Process(self._make.pid).children(recursive=True)
        return [one for one in found if one.is_running() and "smartpipe" in " ".join(one.cmdline()[:2])]


@pytest.fixture
def demo(project: Path, environment: Mapping[str, str]) -> Iterator[Demo]:
    if shutil.which("make") is None or shutil.which("curl") is None:
        pytest.skip("make or curl is not installed")
    demo = Demo(project, environment)
    yield demo
    demo.end()


@pytest.mark.timeout(240)
def test_the_tests_of_a_new_project_pass(project: Path, environment: Mapping[str, str]) -> None:
    done = run("pytest", "-q", "-p", "no:cacheprovider", directory=project, environment=environment)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(240)
def test_a_new_project_satisfies_its_linter_and_doctor(project: Path, environment: Mapping[str, str]) -> None:
    tools = Path(find_program("ruff")).parent
    with_ruff = {**environment, "PATH": f"{environment['PATH']}{os.pathsep}{tools}"}
    done = run("make", "RUN=", "check", directory=project, environment=with_ruff)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 errors, 0 warnings" in done.stdout


@pytest.mark.timeout(240)
def test_the_generated_files_are_those_of_the_export(project: Path, environment: Mapping[str, str]) -> None:
    (project / "uv.lock").touch()
    for form, file in (("dockerfile", "Dockerfile"), ("compose", "compose.yaml")):
        done = run("smartpipe", "deploy", "export", "--format", form, directory=project, environment=environment)
        assert (done.stdout, done.stderr) == ((project / file).read_text(), "")
    (project / "uv.lock").unlink()


@pytest.mark.timeout(240)
def test_every_export_accepts_the_options_of_a_new_project(project: Path, environment: Mapping[str, str]) -> None:
    (project / "uv.lock").touch()
    own = {**environment, "AWS_REGION": "eu-west-1"}
    for form in DEPLOY_FORMATS:
        done = run("smartpipe", "deploy", "export", "--format", form, directory=project, environment=own)
        assert (done.returncode, done.stderr) == (0, ""), form
    (project / "uv.lock").unlink()


@pytest.mark.timeout(240)
def test_the_first_command_handles_an_event_and_ends_with_0_on_sigterm(demo: Demo) -> None:
    demo.wait_for(r"order 1 of ada is confirmed")
    demo.wait_for(r"handled order.placed by corner_\w+.workers.confirm_order")

    assert demo.stop() == 0, demo.output
    assert "stopped: received 1, handled 1" in demo.output
    assert "Traceback" not in demo.output
