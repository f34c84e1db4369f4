"""The model of all metrics: families of samples, which each exporter writes in its own form. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
        kind: ``counter``, ``gauge``, ``histogram`` or ``info``. The name of a counter ends with ``_total``, and that of
            an info, whose value is 1, with ``_info``.
        help: One sentence.
    """

    name: str
    kind: str
    help: str
    samples: Sequence[Sample]


def add_samples(families: Iterable[Family], more: Iterable[Family]) -> list[Family]:
    """Return *families* with the samples of *more*, so that each family appears once."""
    found = {family.name: family for family in families}
    for family in more:
        known = found.get(family.name)
        found[family.name] = family if known is None else known._replace(samples=[*known.samples, *family.samples])
    return list(found.values())
