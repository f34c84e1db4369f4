"""The model of all metrics: families of samples, which each exporter writes in its own form. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from smartpipe.telemetry.histograms import Histogram

Labels: TypeAlias = Mapping[str, str]


class Sample(NamedTuple):
    """The value of a metric for one set of labels. A family of the kind ``histogram`` has a Histogram for each."""

    labels: Labels
    value: float | Histogram


class Family(NamedTuple):
    """The samples of one metric.

    Args:
        kind: ``counter``, ``gauge`` or ``histogram``. The name of a counter ends with ``_total``.
        help: One sentence.
    """

    name: str
    kind: str
    help: str
    samples: Sequence[Sample]
