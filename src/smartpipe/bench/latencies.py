"""Latencies as HdrHistograms, and which events came: in the form in which processes hand them over."""

from __future__ import annotations

import zlib
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, NamedTuple

from hdrh.histogram import HdrHistogram

if TYPE_CHECKING:
    from collections.abc import Iterable

MICROSECONDS = 1_000_000
MAX_MICROSECONDS = 86_400 * MICROSECONDS
SIGNIFICANT_DIGITS = 3
CURVE = (0, 10, 20, 30, 40, 50, 60, 70, 75, 80, 85, 90, 92.5, 95, 97, 98, 99, 99.5, 99.7, 99.9, 99.95, 99.99, 99.999)


class Latency(NamedTuple):
    """Seconds from due to handled, exact to three digits.

    Args:
        curve: Percentile and seconds, as far as there were enough events for it to mean something.
    """

    deliveries: int
    mean: float
    p50: float
    p90: float
    p99: float
    p99_9: float
    max: float
    curve: list[tuple[float, float]]


def encoded(latencies_seconds: Iterable[float]) -> str:
    """Return the histogram of these."""
    histogram = _empty()
    for seconds in latencies_seconds:
        histogram.record_value(min(MAX_MICROSECONDS, max(1, round(seconds * MICROSECONDS))))
    return str(histogram.encode().decode())


def summed(encodings: Iterable[str]) -> Latency | None:
    """Return the figures of all of them together; None if nothing was recorded."""
    histogram = _empty()
    for encoding in encodings:
        histogram.decode_and_add(encoding.encode())
    count = histogram.get_total_count()
    if not count:
        return None

    def at(percentile: float) -> float:
        return float(histogram.get_value_at_percentile(percentile)) / MICROSECONDS

    # At least one delivery lies above each: beyond that the curve would only repeat the longest.
    told = [percentile for percentile in CURVE if percentile == 0 or round(count * (100 - percentile), 3) >= 100]  # noqa: PLR2004
    curve = [(percentile, at(percentile)) for percentile in told]
    mean, longest = histogram.get_mean_value() / MICROSECONDS, histogram.get_max_value() / MICROSECONDS
    return Latency(count, mean, at(50), at(90), at(99), at(99.9), longest, curve)


def packed(seen: bytes | bytearray) -> str:
    """Return which events came, for a line."""
    return b64encode(zlib.compress(seen, 1)).decode()


def count_seen(tallies: Iterable[str]) -> int:
    """Return how many different events came to any of the workers of one queue."""
    merged = 0
    for tally in tallies:
        merged |= int.from_bytes(zlib.decompress(b64decode(tally)), "big")  # a byte is 0 or 1: `|` is the union
    return merged.bit_count()


def _empty() -> HdrHistogram:
    return HdrHistogram(1, MAX_MICROSECONDS, SIGNIFICANT_DIGITS)
