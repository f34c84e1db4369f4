"""The Dockerfile of a project that uv locks. Pure.

Source: uv, "Using uv in Docker". The dependencies have a layer of their own, so a change of the code does not install
them again. The virtual environment has the same path in both stages, because its scripts contain it.

The build argument ``UV_NO_DEV`` is a variable of uv. With 0, the image also has the packages of the group ``dev``, such
as the broker in a compose file.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from smartpipe.deploy.kubernetes import USER_ID
from smartpipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

UV_VERSION = "0.13"
PYTHON_VERSIONS = ("3.13", "3.12", "3.11")
"""Those that smartpipe supports, the preferred one first."""
_VERSION = re.compile(r"(?<![\d.])3\.\d+(?![\d])")
_CLAUSE = re.compile(r"(===|==|~=|!=|<=|>=|<|>)\s*(\d+)(?:\.(\d+))?([.\d*]*)")
_INSTALL = """\
RUN --mount=type=cache,target=/root/.cache/uv \\
    --mount=type=bind,source=uv.lock,target=uv.lock \\
    --mount=type=bind,source=pyproject.toml,target=pyproject.toml \\
    uv sync --locked"""
_PACKAGED = f"""
COPY . /app
{_INSTALL} --no-editable
"""


def choose_python(pinned: str | None, requires: str | None) -> str:
    """Return the minor version of Python for the image.

    Args:
        pinned: The text of ``.python-version``, which wins; None without this file.
        requires: ``requires-python`` of the project; None without it. Only its major and minor numbers count, and
            clauses of another form than PEP 440's are left to uv.

    Raises:
        ConfigError: smartpipe does not support the version, or none of its versions fits.
    """
    if pinned is not None:
        found = _VERSION.search(pinned)
        if found is None or found[0] not in PYTHON_VERSIONS:
            supported = ", ".join(reversed(PYTHON_VERSIONS))
            raise ConfigError(
                f".python-version is {pinned.strip()!r}, and the image can have Python {supported}: write one of them"
            )
        return found[0]
    clauses = _CLAUSE.findall(requires or "")
    fitting = [one for one in PYTHON_VERSIONS if all(_fits(one, *clause) for clause in clauses)]
    if not fitting:
        raise ConfigError(
            f"requires-python = {requires!r} admits none of the versions of Python that smartpipe supports: "
            f"{', '.join(reversed(PYTHON_VERSIONS))}"
        )
    return fitting[0]


def _fits(version: str, operator: str, major: str, minor: str | None, rest: str) -> bool:
    """Return whether a patch release of *version* fits one clause. ``<3.13.2`` excludes only some of 3.13."""
    own, other = _parse(version), (int(major), int(minor or 0))
    if operator in {"==", "==="}:
        return own == other if minor else own[0] == other[0]
    if operator == "~=":
        return own == other if rest.strip(".*") else own[0] == other[0] and own >= other
    if operator == "!=":
        return own != other or rest != ".*"
    if operator == "<":
        return own <= other if rest.strip(".*0") else own < other
    return own <= other if operator == "<=" else own >= other


def _parse(version: str) -> tuple[int, int]:
    major, minor = version.split(".")
    return int(major), int(minor)


def write_dockerfile(targets: Sequence[str], port: int, *, packaged: bool, python: str = PYTHON_VERSIONS[0]) -> str:
    """Return the text of the file.

    Args:
        targets: The services that the image runs if you give it no other command; without any, it runs the relay.
        port: The port of the probes.
        python: The minor version of Python, as in 3.13.
        packaged: Whether uv can install the project itself. If not, the image needs the sources.
    """
    command = json.dumps(["worker", *targets] if targets else ["relay"])
    sources = "" if packaged else "COPY . /app\n"
    return f"""\
# syntax=docker/dockerfile:1
# The image of {", ".join(targets) or "the relay"}.
# Written by `smartpipe deploy export --format dockerfile`; run it again when the services change.
# Before you release, pin python and uv by digest. Exclude .venv, .git and .env in .dockerignore.

FROM python:{python}-slim AS build
COPY --from=ghcr.io/astral-sh/uv:{UV_VERSION} /uv /usr/local/bin/uv
ARG UV_NO_DEV=1
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
WORKDIR /app
{_INSTALL} --no-install-project
{_PACKAGED if packaged else ""}
FROM python:{python}-slim
RUN groupadd --gid {USER_ID} app && \\
    useradd --uid {USER_ID} --gid {USER_ID} --no-create-home --shell /usr/sbin/nologin app
WORKDIR /app
COPY --from=build /app/.venv /app/.venv
{sources}ENV PATH=/app/.venv/bin:$PATH PYTHONUNBUFFERED=1
USER {USER_ID}:{USER_ID}
# Amazon ECS mounts a volume here, with the permissions of this directory only if it is a volume of the image too.
VOLUME ["/tmp"]
EXPOSE {port}
STOPSIGNAL SIGTERM
ENTRYPOINT ["smartpipe"]
CMD {command}
"""
