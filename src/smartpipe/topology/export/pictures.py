"""Pictures of services, topics and queues, for Mermaid and Graphviz. Pure.

Source: Mermaid, "Flowcharts syntax", entity codes; Graphviz, "DOT language" and "HTML-like labels".
"""

from __future__ import annotations

import html
import json
import re
from typing import TYPE_CHECKING

from smartpipe.topology.export.graph import COLUMNS, Arrow, Column, Graph, Node, Place, build_graph
from smartpipe.topology.export.portable import make_unique

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from smartpipe.topology.derive import Declares

COLOURS = ("#0072b2", "#c04e00", "#00805e", "#a0448f", "#8a6d00", "#332288", "#882255", "#4d4d4d")
"""All arrows of a topic have one of these. They are dark enough for text, and colour-blind people can distinguish most
of them."""
GREY = "#808080"
_STYLES: dict[Column, tuple[str, str]] = {
    "publisher": ("#dbe9f6", "#5b7fa6"),
    "topic": ("#fde7cf", "#c08a4e"),
    "queue": ("#e0f0da", "#6d9c5f"),
    "handler": ("#dbe9f6", "#5b7fa6"),
}
"""The fill colour and the border colour of the nodes in each column."""
_MERMAID_SHAPES: dict[Column, tuple[str, str]] = {
    "publisher": ('("', '")'),
    "topic": ('{{"', '"}}'),
    "queue": ('(["', '"])'),
    "handler": ('("', '")'),
}
_DOT_SHAPES: dict[Column, str] = {"publisher": "box", "topic": "hexagon", "queue": "cylinder", "handler": "box"}


def draw_mermaid(services: Iterable[Declares]) -> str:
    """Return a Mermaid flowchart, which GitHub, GitLab and others draw in Markdown."""
    found = build_graph(services)
    ids = _ids(found)
    spacing = {"rankSpacing": 60 + 5 * _tallest(found), "nodeSpacing": 20, "wrappingWidth": 400}
    lines = [f"%%{{init: {json.dumps({'flowchart': spacing})}}}%%", "flowchart LR"]
    for node in found.nodes:
        before, after = _MERMAID_SHAPES[node.column]
        classes = f":::{node.column}" if not node.external else ":::foreign"
        lines.append(f"    {ids[node.place]}{before}{_mermaid_label(node)}{after}{classes}")
    lines += [_mermaid_arrow(arrow, ids) for arrow in found.arrows]
    lines += [
        f"    classDef {column} fill:{fill},stroke:{border},color:#222" for column, (fill, border) in _STYLES.items()
    ]
    lines.append("    classDef foreign fill:#f4f4f4,stroke:#888,stroke-dasharray:4,color:#222")
    lines += _link_styles(found)
    return "\n".join(lines) + "\n"


def _mermaid_arrow(arrow: Arrow, ids: Mapping[Place, str]) -> str:
    shaft = "-.->" if arrow.direct else "-->"
    label = f'|"{"<br/>".join(map(_entities, arrow.lines))}"|' if arrow.lines else ""
    return f"    {ids[arrow.source.place]} {shaft}{label} {ids[arrow.target.place]}"


def _mermaid_label(node: Node) -> str:
    first, *others = map(_entities, node.lines)
    return "<br/>".join([first, *(f"<small>{other}</small>" for other in others)])


def _entities(text: str) -> str:
    """Return *text* with entity codes for all characters that Mermaid, Markdown or HTML could interpret."""
    return re.sub(r"[^\w .,:/+…-]", lambda match: f"#{ord(match[0])};", text)


def _link_styles(found: Graph) -> list[str]:
    by_colour: dict[str, list[str]] = {}
    for number, arrow in enumerate(found.arrows):
        by_colour.setdefault(_colour(arrow, found), []).append(str(number))
    return [f"    linkStyle {','.join(numbers)} stroke:{colour}" for colour, numbers in sorted(by_colour.items())]


def draw_dot(services: Iterable[Declares]) -> str:
    """Return a graph for Graphviz's ``dot``, which can draw hundreds of arrows, unlike Mermaid."""
    found = build_graph(services)
    ids = _ids(found)
    rank_separation = 1 + _tallest(found) / 12  # inches
    lines = [
        "digraph topology {",
        f'    graph [rankdir=LR, nodesep=0.25, ranksep={rank_separation:.1f}, fontname="Helvetica", bgcolor="white"]',
        '    node [style="filled", fontname="Helvetica", fontsize=12, margin="0.18,0.08", penwidth=1.2]',
        '    edge [fontname="Helvetica", fontsize=10, arrowsize=0.7, penwidth=1.2]',
    ]
    for column in COLUMNS:
        members = [f"        {_dot_node(node, ids)}" for node in found.nodes if node.column == column]
        lines += ["    {", "        rank=same", *members, "    }"] if members else []
    lines += [f"    {_dot_arrow(arrow, found, ids)}" for arrow in found.arrows]
    return "\n".join([*lines, "}"]) + "\n"


def _dot_node(node: Node, ids: Mapping[Place, str]) -> str:
    first, *others = (html.escape(line) for line in node.lines)
    label = "<br/>".join([first, *(f'<font point-size="9" color="#555555">{other}</font>' for other in others)])
    fill, border = _STYLES[node.column]
    style = "filled,dashed" if node.external else "filled,rounded" if _DOT_SHAPES[node.column] == "box" else "filled"
    return (
        f'{ids[node.place]} [label=<{label}>, shape={_DOT_SHAPES[node.column]}, style="{style}", '
        f'fillcolor="{"#f4f4f4" if node.external else fill}", color="{border}"]'
    )


def _dot_arrow(arrow: Arrow, found: Graph, ids: Mapping[Place, str]) -> str:
    colour = _colour(arrow, found)
    label = "<br/>".join(html.escape(line) for line in arrow.lines)
    described = f'label=<{label}>, fontcolor="{colour}", ' if label else ""
    style = ", style=dashed" if arrow.direct else ""
    return f'{ids[arrow.source.place]} -> {ids[arrow.target.place]} [{described}color="{colour}"{style}]'


def _tallest(found: Graph) -> int:
    """Return the length of the longest column: the longer it is, the further apart columns must be for flat arrows."""
    return max(sum(node.column == column for node in found.nodes) for column in COLUMNS)


def _colour(arrow: Arrow, found: Graph) -> str:
    if arrow.topic is None:
        return GREY
    topics = [node.key for node in found.nodes if node.column == "topic"]
    return COLOURS[topics.index(arrow.topic) % len(COLOURS)]


def _ids(found: Graph) -> dict[Place, str]:
    """Return ids of letters, digits and underscores, as in ``queue_email_verification``."""
    return make_unique(
        {node.place: f"{node.column}_{re.sub(r'[^A-Za-z0-9]+', '_', node.lines[0])}" for node in found.nodes}
    )
