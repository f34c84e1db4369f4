"""The files of a new project, from the templates of this package."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, distribution
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from smartpipe.cli.new.compose import NewServices
from smartpipe.deploy.dockerfile import write_dockerfile
from smartpipe.settings import WorkerSettings
from smartpipe.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smartpipe.cli.new.name import ProjectName

_COMMON = {
    ".dockerignore": "dockerignore",
    ".env.example": "env",
    ".github/workflows/ci.yml": "ci",
    ".gitignore": "gitignore",
    "example.json": "example",
    "~{package}/__init__.py": "package",
    "~{package}/events.py": "events",
    "~{package}/workers.py": "workers",
    "tests/test_workers.py": "test_workers",
}
TEMPLATES = {
    "service": {
        **_COMMON,
        "Makefile": "make.service",
        "README.md": "readme.service",
        "pyproject.toml": "pyproject.service",
    },
    "api+worker": {
        **_COMMON,
        "Makefile": "make.api",
        "README.md": "readme.api",
        "pyproject.toml": "pyproject.api",
        "compose.override.yaml": "override",
        "~{package}/api.py": "api",
        "tests/test_api.py": "test_api",
    },
}
"""The templates in the folder ``files``, by the path of the file that each of them becomes."""


class _Template(Template):
    """A template in which ``$`` has no meaning, because Makefiles, workflows and compose files use it."""

    delimiter = "~"


def render_files(template: str, project: ProjectName) -> dict[str, str]:
    """Return the texts of a project by path, without the compose file, which needs the services of the project."""
    source = find_source()
    values = {
        "name": project.name,
        "package": project.package,
        "container": project.container,
        "version": __version__,
        "source": f"\n{format_source(source)}" if source else "",
    }
    folder = files("smartpipe.cli.new") / "files"
    texts = {
        _Template(path).substitute(values): _Template((folder / f"{name}.tmpl").read_text(encoding="utf-8")).substitute(
            values
        )
        for path, name in TEMPLATES[template].items()
    }
    port = int(WorkerSettings.model_fields["port"].default)
    return {**texts, "Dockerfile": write_dockerfile([f"{project.package}.workers:service"], port, packaged=True)}


def list_services(template: str, project: ProjectName) -> NewServices:
    """Return the services of a project, in the order of its pyproject.toml."""
    worker = f"{project.package}.workers:service"
    if "~{package}/api.py" in TEMPLATES[template]:
        return NewServices(worker, [f"{project.package}.api:service", worker], [f"{project.name}-api"])
    return NewServices(worker, [worker], [])


def find_source() -> dict[str, Any] | None:
    """Return the place from which this smartpipe was installed, as uv describes it; None if it was a registry.

    Source: PEP 610, "Recording the Direct URL Origin of installed distributions".
    """
    try:
        record = json.loads(distribution("smartpipe").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return None
    url = str(record.get("url", ""))
    if "vcs_info" in record:
        return {str(record["vcs_info"]["vcs"]): url, "rev": record["vcs_info"]["commit_id"]}
    if url.startswith("file:"):
        editable = {"editable": True} if record.get("dir_info", {}).get("editable") else {}
        return {"path": unquote(urlsplit(url).path), **editable}
    return {"url": url} if url else None


def format_source(source: Mapping[str, Any]) -> str:
    """Return the lines of pyproject.toml with which uv installs smartpipe from *source*."""
    fields = ", ".join(f"{name} = {json.dumps(value)}" for name, value in source.items())
    return (
        "# Your smartpipe comes from here, and not from a package index. Remove this table when you use a release.\n"
        f"[tool.uv.sources]\nsmartpipe = {{ {fields} }}\n"
    )
