"""Write expressions in PromQL, for alert rules and for the panels of dashboards. Pure.

With ``--processes``, each sample has a label ``process``, and replicas differ in ``instance``. So counters and
histograms are summed, and of the readings that every process takes of the same queue the highest counts.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_SPECIAL = re.compile(r"([\\.+*?()|\[\]{}^$])")


def any_of(names: Iterable[str]) -> str:
    """Return a regular expression of RE2 that matches exactly these names."""
    return "|".join(_SPECIAL.sub(r"\\\1", name) for name in names)


def equals(label: str, value: str) -> str:
    """Return a matcher, as in ``service="billing"``."""
    return f"{label}={json.dumps(value, ensure_ascii=False)}"


def matches(label: str, pattern: str) -> str:
    """Return a matcher with a regular expression, as in ``service=~"billing|signup"``."""
    return f"{label}=~{json.dumps(pattern, ensure_ascii=False)}"


def matches_process(pattern: str) -> str:
    """Return a matcher for samples of a process, whose label lists all services that run in it: ``billing,signup``."""
    return matches("service", f"(.+,)?({pattern})(,.+)?")


def select(metric: str, *matchers: str) -> str:
    """Return a selector."""
    return f"{metric}{{{','.join(matchers)}}}" if matchers else metric


def add_up(labels: str, expression: str) -> str:
    """Return the sums by *labels*, or the sum of all without labels."""
    return f"sum by ({labels}) ({expression})" if labels else f"sum({expression})"


def highest(labels: str, expression: str) -> str:
    """Return the highest values by *labels*."""
    return f"max by ({labels}) ({expression})"


def rate(labels: str, selector: str, window: str) -> str:
    """Return the sums of the increases per second."""
    return add_up(labels, f"rate({selector}[{window}])")


def increase(labels: str, selector: str, window: str) -> str:
    """Return the sums of the increases during the window."""
    return add_up(labels, f"increase({selector}[{window}])")


def quantile(share: float, labels: str, histogram: str, window: str) -> str:
    """Return a quantile of the histogram, for each combination of *labels*.

    Args:
        histogram: A selector of the metric, whose name does not end with ``_bucket``.
    """
    name, brace, matchers = histogram.partition("{")
    by = f"{labels}, le" if labels else "le"
    return f"histogram_quantile({share:g}, {rate(by, f'{name}_bucket{brace}{matchers}', window)})"


def backlog(labels: str, matchers: tuple[str, ...], window: str) -> str:
    """Return the seconds that all workers together need for the visible messages of a queue, in parentheses.

    The gauge ``smartpipe_backlog_seconds`` is the estimate of one host for itself alone. Every host reports the same
    messages and its own rate, so the rates are summed here.
    """
    visible = highest(labels, select("smartpipe_queue_messages", *matchers, equals("state", "visible")))
    settled = select("smartpipe_messages_total", *matchers, 'outcome=~"handled|ignored|dead_lettered"')
    # An idle queue has 0 / 0, which is not a number, instead of 0.
    return f"(({visible} > 0) / {rate(labels, settled, window)} or {visible} == 0)"
