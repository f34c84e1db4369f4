"""The name of a new project, and the names that follow from it."""

from __future__ import annotations

import keyword
import re
import sys
from importlib.metadata import packages_distributions
from typing import NamedTuple

from smartpipe.deploy.compose import BROKER, TOPOLOGY
from smartpipe.deploy.options import RELAY
from smartpipe.errors import ConfigError

MAX_LENGTH = 40
"""A longer name leaves little room for the prefix and the suffixes of queues, which have at most 80 characters."""
_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
_CONTAINERS = frozenset({BROKER, TOPOLOGY, RELAY})
_TESTS = frozenset({"tests", "test", "conftest"})


class ProjectName(NamedTuple):
    """The names of a project.

    Args:
        name: The name of the directory, of the distribution and of the service.
        package: The name of the Python package.
        container: The name of the service in the compose file.
    """

    name: str
    package: str
    container: str


def read_name(text: str) -> ProjectName:
    """Return the names of a project called *text*.

    Raises:
        ConfigError: It cannot be the name of a package, or another module or container has this name.
    """
    if not _NAME.fullmatch(text) or len(text) > MAX_LENGTH:
        raise ConfigError(
            f"NAME {text!r} cannot be the name of a project: use up to {MAX_LENGTH} lower-case letters and digits, "
            f"beginning with a letter, with single hyphens or underscores between them{_suggest(text)}"
        )
    package = text.replace("-", "_")
    if reason := _find_conflict(package):
        raise ConfigError(f"NAME {text!r} {reason}, so Python could not import your package; try {text}-service")
    container = text.replace("_", "-")
    if container in _CONTAINERS:
        raise ConfigError(
            f"NAME {text!r} is the name of a container that `smartpipe deploy export` adds to yours; try {text}-service"
        )
    return ProjectName(text, package, container)


def _suggest(text: str) -> str:
    words = re.findall(r"[a-z0-9]+", text.lower())
    name = "-".join(words).lstrip("0123456789-")[:MAX_LENGTH].rstrip("-")
    if not name or name == text:
        return ""
    return f"; try {name}-service" if _find_conflict(name.replace("-", "_")) else f"; try {name}"


def _find_conflict(package: str) -> str | None:
    if keyword.iskeyword(package) or keyword.issoftkeyword(package):
        return "is a keyword of Python"
    if package in _TESTS:
        return "is the name of a module of tests"
    if package in sys.stdlib_module_names:
        return "is the name of a module of Python"
    if package == "smartpipe":
        return "is the name of the package that you import"
    distributions = packages_distributions().get(package)
    return f"is the name of a package that {distributions[0]} has installed" if distributions else None
