"""Write metrics as Prometheus text 0.0.4 or OpenMetrics 1.0.0, and merge the texts of several processes. Pure.

Sources: Prometheus, "Exposition formats"; OpenMetrics 1.0.0, "OpenMetrics, a cloud-native, highly scalable metrics
protocol".
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING

from smartpipe.escaping import escape_text
from smartpipe.telemetry.histograms import Histogram

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from smartpipe.telemetry.families import Family, Labels
    from smartpipe.telemetry.histograms import Exemplar

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
END = "# EOF"
_SUFFIXES = {"counter": "_total", "info": "_info"}


def choose_content_type(accept: str) -> str:
    """Return OPENMETRICS if the header *accept* names it, without a weight of 0, and TEXT otherwise."""
    for entry in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in entry.split(";"))
        if kind == OPENMETRICS.partition(";")[0]:
            weights = [one[2:] for one in parameters if one.startswith("q=")]
            return TEXT if weights and not weights[0].strip("0.") else OPENMETRICS
    return TEXT


def render(families: Iterable[Family], content_type: str = TEXT) -> str:
    """Return *families* as text. Exemplars are only in OpenMetrics, which has a place for them."""
    opened = content_type == OPENMETRICS
    lines: list[str] = []
    for family in families:
        # In OpenMetrics, the names of some families have no suffix, but their samples have one.
        name = family.name.removesuffix(_SUFFIXES.get(family.kind, "")) if opened else family.name
        kind = "gauge" if family.kind == "info" and not opened else family.kind
        lines += [f"# HELP {name} {_escape(family.help, quotes=opened)}", f"# TYPE {name} {kind}"]
        for labels, value in family.samples:
            if isinstance(value, Histogram):
                lines += _render_histogram(family.name, _format_labels(labels), value, exemplars=opened)
            else:
                pairs, number = _format_labels(labels), "+Inf" if value == math.inf else value
                lines.append(f"{family.name}{{{pairs}}} {number}" if pairs else f"{family.name} {number}")
    if opened:
        lines.append(END)
    return "\n".join([*lines, ""])


def _render_histogram(name: str, pairs: str, histogram: Histogram, *, exemplars: bool) -> list[str]:
    found, total = histogram.snapshot()  # all lines must be of the same moment
    counts = list(accumulate(found))
    head = f'{name}_bucket{{{pairs},le="' if pairs else f'{name}_bucket{{le="'
    lines = [f"{head}{end}{count}" for end, count in zip(_format_bounds(histogram.bounds), counts, strict=True)]
    if exemplars:
        for index, exemplar in histogram.exemplars.items():
            lines[index] += _format_exemplar(exemplar)
    rest = f"{{{pairs}}}" if pairs else ""
    return [*lines, f"{name}_sum{rest} {total}", f"{name}_count{rest} {counts[-1]}"]


@lru_cache(maxsize=64)
def _format_bounds(bounds: tuple[float, ...]) -> list[str]:
    return [f'{bound}"}} ' for bound in (*bounds, "+Inf")]


def _format_exemplar(exemplar: Exemplar) -> str:
    return f' # {{trace_id="{_escape(exemplar.trace_id, quotes=True)}"}} {exemplar.value} {exemplar.time:.3f}'


def join(*texts: str) -> str:
    """Put texts of different families into one."""
    ended = any(text.endswith(f"{END}\n") for text in texts)
    return "".join(text.removesuffix(f"{END}\n") for text in texts) + (f"{END}\n" if ended else "")


def merge(texts: Mapping[str, str], label: str) -> str:
    """Merge *texts* from ``render``: each family appears once, and each sample gets its key as *label*."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    ended = False
    for key, text in texts.items():
        pair = f'{label}="{_escape(key, quotes=True)}"'
        family = ""
        for line in filter(None, text.split("\n")):
            if line == END:
                ended = True
                continue
            if line.startswith("# HELP "):
                family = line.split(" ", 3)[2]
                samples.setdefault(family, [])
            if line.startswith("#"):
                head = heads.setdefault(family, [])
                if line not in head:
                    head.append(line)
            else:
                samples[family].append(_add_label(line, pair))
    merged = [line for family, head in heads.items() for line in (*head, *samples[family])]
    return "".join(f"{line}\n" for line in (*merged, *([END] if ended else ())))


def _add_label(line: str, pair: str) -> str:
    name, brace, rest = line.partition("{")
    if brace and " " not in name:
        return f"{name}{{{pair},{rest}"
    name, _, value = line.partition(" ")
    return f"{name}{{{pair}}} {value}"


def _format_labels(labels: Labels) -> str:
    return ",".join(f'{name}="{_escape(text, quotes=True)}"' for name, text in labels.items())


@lru_cache(maxsize=4_096)
def _escape(text: str, *, quotes: bool = False) -> str:
    text = "\n".join(map(escape_text, text.split("\n")))
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text
