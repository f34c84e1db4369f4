"""``smartpipe deploy export --format dockerfile``, judged by hadolint."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from smartpipe.deploy.dockerfile import write_dockerfile
from smartpipe.deploy.kubernetes import USER_ID

TARGETS = ["shop.billing:service", "shop.mail:service"]
PACKAGED = pytest.mark.parametrize("packaged", [True, False])


def instructions(*, packaged: bool = True) -> list[str]:
    """Return the instructions in order, each on one line, without comments."""
    lines = [line for line in write_dockerfile(TARGETS, 8080, packaged=packaged).splitlines() if line[:1] != "#"]
    return [one for one in "\n".join(lines).replace("\\\n", "").splitlines() if one]


def stages(*, packaged: bool = True) -> tuple[list[str], list[str]]:
    found = instructions(packaged=packaged)
    second = max(place for place, one in enumerate(found) if one.startswith("FROM "))
    return found[:second], found[second:]


def lint(text: str) -> list[str]:
    """Return the codes of hadolint's findings."""
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([hadolint, "--format", "json", "-"], input=text, capture_output=True, text=True, check=False)
    return [one["code"] for one in json.loads(done.stdout)]


@PACKAGED
def test_hadolint_has_no_findings(packaged: bool) -> None:
    assert lint(write_dockerfile(TARGETS, 8080, packaged=packaged)) == []


def test_hadolint_would_notice_a_command_that_a_shell_runs() -> None:
    text = re.sub(r'CMD \["worker".*', "CMD smartpipe worker", write_dockerfile(TARGETS, 8080, packaged=True))

    assert lint(text) == ["DL3025"]


@PACKAGED
def test_the_worker_is_process_one_and_gets_sigterm(packaged: bool) -> None:
    found = instructions(packaged=packaged)

    assert found[-3:] == ["STOPSIGNAL SIGTERM", 'ENTRYPOINT ["smartpipe"]', f"CMD {json.dumps(['worker', *TARGETS])}"]


@PACKAGED
def test_the_image_runs_as_the_user_of_the_manifests(packaged: bool) -> None:
    _, final = stages(packaged=packaged)

    assert f"USER {USER_ID}:{USER_ID}" in final
    assert not [one for one in final[final.index(f"USER {USER_ID}:{USER_ID}") :] if one.startswith(("RUN", "COPY"))]


@PACKAGED
def test_a_change_of_the_code_does_not_install_the_dependencies_again(packaged: bool) -> None:
    build, _ = stages(packaged=packaged)
    dependencies = next(place for place, one in enumerate(build) if "--no-install-project" in one)

    assert not [one for one in build[:dependencies] if one.startswith("COPY .")]
    assert "source=uv.lock" in build[dependencies]
    assert all("uv sync --locked" in one for one in build if "uv sync" in one)
    assert build.index("ARG UV_NO_DEV=1") < dependencies  # uv reads this variable: no packages of the group dev


def test_the_final_stage_has_the_environment_and_no_sources_of_a_package() -> None:
    _, final = stages()

    assert [one for one in final if one.startswith("COPY")] == ["COPY --from=build /app/.venv /app/.venv"]


def test_a_project_that_is_no_package_brings_its_sources() -> None:
    build, final = stages(packaged=False)

    assert "COPY . /app" in final
    assert len([one for one in build if "uv sync" in one]) == 1
