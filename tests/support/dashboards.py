"""The panels of a Grafana dashboard, and their queries."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_LABEL_VALUES = re.compile(r"label_values\((.+), (\w+)\)")


def panels_of(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions_of(dashboard: dict[str, Any], **variables: str) -> Iterator[tuple[str, str]]:
    """Yield every query of panels and variables, with the name of its place, as Grafana would send it.

    Args:
        variables: The values of the dashboard's own variables.
    """
    values = {"$__rate_interval": "5m", **{f"${name}": value for name, value in variables.items()}}

    def replace(text: str) -> str:
        for name, value in values.items():
            text = text.replace(name, value)
        return text

    for panel in panels_of(dashboard):
        for target in panel.get("targets", ()):
            yield panel["title"], replace(target["expr"])
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            parsed = _LABEL_VALUES.fullmatch(variable["query"]["query"])
            assert parsed is not None
            yield variable["name"], replace(f"count by ({parsed[2]}) ({parsed[1]})")
