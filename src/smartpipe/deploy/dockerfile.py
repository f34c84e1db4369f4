"""The Dockerfile of a project that uv locks. Pure.

Source: uv, "Using uv in Docker". The dependencies have a layer of their own, so a change of the code does not install
them again. The virtual environment has the same path in both stages, because its scripts contain it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from smartpipe.deploy.kubernetes import USER_ID

if TYPE_CHECKING:
    from collections.abc import Sequence

UV_VERSION = "0.13"
PYTHON_VERSION = "3.13"
_INSTALL = """\
RUN --mount=type=cache,target=/root/.cache/uv \\
    --mount=type=bind,source=uv.lock,target=uv.lock \\
    --mount=type=bind,source=pyproject.toml,target=pyproject.toml \\
    uv sync --locked --no-dev"""
_PACKAGED = f"""
COPY . /app
{_INSTALL} --no-editable
"""


def write_dockerfile(targets: Sequence[str], port: int, *, packaged: bool) -> str:
    """Return the text of the file.

    Args:
        targets: The services that the image runs if you give it no other command.
        port: The port of the probes.
        packaged: Whether uv can install the project itself. If not, the image needs the sources.
    """
    command = json.dumps(["worker", *targets])
    sources = "" if packaged else "COPY . /app\n"
    return f"""\
# syntax=docker/dockerfile:1
# The image of {", ".join(targets)}.
# Written by `smartpipe deploy export --format dockerfile`; run it again when the services change.
# Before you release, pin python and uv by digest. Exclude .venv, .git and .env in .dockerignore.

FROM python:{PYTHON_VERSION}-slim AS build
COPY --from=ghcr.io/astral-sh/uv:{UV_VERSION} /uv /usr/local/bin/uv
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
WORKDIR /app
{_INSTALL} --no-install-project
{_PACKAGED if packaged else ""}
FROM python:{PYTHON_VERSION}-slim
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
