"""``smartpipe deploy export --format dockerfile``, judged by hadolint."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from smartpipe.deploy.dockerfile import choose_python, write_dockerfile
from smartpipe.deploy.kubernetes import USER_ID
from smartpipe.errors import ConfigError
from tests.support.programs import find_program

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
    command = [find_program("hadolint"), "--format", "json", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
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


@pytest.mark.parametrize(
    ("requires", "version"),
    [
        (None, "3.13"),
        (">=3.11", "3.13"),
        (">=3.11,<3.13", "3.12"),
        (">=3.11, <3.13.2", "3.13"),
        ("<3.13.0", "3.12"),
        ("~=3.12", "3.13"),
        ("~=3.12.0", "3.12"),
        ("==3.11.*", "3.11"),
        (">=3.11,!=3.13.*", "3.12"),
        (">=3.11,!=3.13.1", "3.13"),
        (">=3,<4", "3.13"),
        ("<=3.12", "3.12"),
        ("==3.*", "3.13"),
    ],
)
def test_the_image_has_the_newest_python_that_the_project_admits(requires: str | None, version: str) -> None:
    assert choose_python(None, requires) == version
    assert f"FROM python:{version}-slim AS build" in write_dockerfile(TARGETS, 8080, packaged=True, python=version)


@pytest.mark.parametrize("pinned", ["3.12\n", "3.12.4\n", "cpython-3.12.4-linux-x86_64-gnu\n", "cpython@3.12\n"])
def test_a_pinned_python_wins(pinned: str) -> None:
    assert choose_python(pinned, ">=3.11") == "3.12"


@pytest.mark.parametrize("pinned", ["3.10.2", "pypy", "", "3.130"])
def test_a_pinned_python_that_smartpipe_does_not_support_is_refused(pinned: str) -> None:
    with pytest.raises(
        ConfigError, match=r"^\.python-version is '.*', and the image can have Python 3\.11, 3\.12, 3\.13"
    ):
        choose_python(pinned, None)


def test_a_project_without_a_supported_python_is_refused() -> None:
    with pytest.raises(ConfigError, match="requires-python = '<3.11' admits none of the versions"):
        choose_python(None, "<3.11")
