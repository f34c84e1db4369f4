"""Build a Grafana dashboard from rows of panels. Pure.

Source: Grafana, "Dashboard JSON model"; schema version 41 is that of Grafana 12, and newer ones read it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SCHEMA_VERSION = 41
WINDOW = "$__rate_interval"
"""Grafana replaces it with at least four scrape intervals, so that each range has two samples."""
GRID_COLUMNS = 24
TAG = "smartpipe"
DATA_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


class Query(NamedTuple):
    """A query in PromQL, and the legend of its lines, as in ``{{queue}}``."""

    expression: str
    legend: str = ""


class Panel(NamedTuple):
    """A panel.

    Args:
        kind: ``timeseries``, ``heatmap``, ``stat``, ``table`` or ``text``. A heatmap has one query, for the buckets of
            a histogram. A text has no query, and its description is the text, in Markdown.
        unit: The name that Grafana gives to the unit.
        stacked: Stack the lines, for parts of a whole.
        red_from: The value from which a ``stat`` is red.
    """

    title: str
    description: str
    queries: tuple[Query, ...] = ()
    kind: str = "timeseries"
    unit: str = "short"
    width: int = 8
    height: int = 8
    stacked: bool = False
    red_from: float | None = None


class Row(NamedTuple):
    """A row of panels below a heading."""

    title: str
    panels: tuple[Panel, ...]


def data_source_variable() -> dict[str, Any]:
    """Return the variable by which a person chooses the Prometheus server."""
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "hide": 0}


def label_variable(name: str, label: str, selector: str, *, every: str = "") -> dict[str, Any]:
    """Return a variable with the values of the label *name*.

    Args:
        selector: The samples that have the label.
        every: The regular expression for all values. Without it, a person chooses exactly one value.
    """
    query = f"label_values({selector}, {name})"
    choice = {"multi": True, "includeAll": True, "allValue": every, "current": {"text": "All", "value": "$__all"}}
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATA_SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        **(choice if every else {"multi": False, "includeAll": False}),
    }


def build_dashboard(
    uid: str, title: str, description: str, *, variables: Sequence[dict[str, Any]], rows: Iterable[Row]
) -> dict[str, Any]:
    """Return the dashboard. Grafana replaces a dashboard with the same *uid* when it imports it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for row in rows:
        place = {"x": 0, "y": top, "w": GRID_COLUMNS, "h": 1}
        panels.append({"id": len(panels) + 1, "type": "row", "title": row.title, "collapsed": False, "gridPos": place})
        top += 1
        left = height = 0
        for panel in row.panels:
            if left + panel.width > GRID_COLUMNS:
                top, left, height = top + height, 0, 0
            place = {"x": left, "y": top, "w": panel.width, "h": panel.height}
            panels.append({"id": len(panels) + 1, "gridPos": place, **_render(panel)})
            left, height = left + panel.width, max(height, panel.height)
        top += height
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": [TAG],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "links": [{"type": "dashboards", "title": "smartpipe", "tags": [TAG], "keepTime": True, "asDropdown": True}],
        "annotations": {"list": []},
        "templating": {"list": list(variables)},
        "panels": panels,
    }


def _render(panel: Panel) -> dict[str, Any]:
    if panel.kind == "text":
        options = {"mode": "markdown", "content": panel.description}
        return {"type": "text", "title": panel.title, "options": options}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATA_SOURCE,
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _OPTIONS[panel.kind],
        "targets": [_target(place, query, panel.kind) for place, query in enumerate(panel.queries)],
    }


def _defaults(panel: Panel) -> dict[str, Any]:
    found: dict[str, Any] = {"unit": panel.unit}
    if panel.kind == "timeseries":
        fill, mode = (30, "normal") if panel.stacked else (0, "none")
        found |= {
            "min": 0,
            "custom": {
                "lineWidth": 1,
                "fillOpacity": fill,
                "showPoints": "never",
                "stacking": {"mode": mode, "group": "A"},
            },
        }
    if panel.red_from is not None:
        steps = [{"color": "green", "value": None}, {"color": "red", "value": panel.red_from}]
        found |= {"thresholds": {"mode": "absolute", "steps": steps}, "color": {"mode": "thresholds"}}
    return found


def _target(place: int, query: Query, kind: str) -> dict[str, Any]:
    form = {"heatmap": "heatmap", "table": "table"}.get(kind, "time_series")
    instant = kind in {"table", "stat"}
    return {
        "refId": chr(ord("A") + place),
        "datasource": DATA_SOURCE,
        "editorMode": "code",
        "expr": query.expression,
        "legendFormat": query.legend or "__auto",
        "format": form,
        "instant": instant,
        "range": not instant,
    }


_OPTIONS: dict[str, dict[str, Any]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "heatmap": {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64},
        "rowsFrame": {"layout": "auto"},
        "tooltip": {"mode": "single", "yHistogram": True},
        "yAxis": {"unit": "s", "axisPlacement": "left"},
    },
    "stat": {"reduceOptions": {"calcs": ["lastNotNull"], "values": False}, "colorMode": "value", "graphMode": "none"},
    "table": {"showHeader": True},
}
