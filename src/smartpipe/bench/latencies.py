"""Encode latencies as HdrHistograms and the set of handled events, and merge those of several processes."""

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
    """The time from due to handled, in seconds, accurate to three digits.

    Args:
        curve: Pairs of percentile and seconds, up to the highest percentile that enough events support.
    """

    deliveries: int
    mean: float
    p50: float
    p90: float
    p99: float
    p99_9: float
    max: float
    curve: list[tuple[float, float]]


def encode_latencies(latencies_seconds: Iterable[float]) -> str:
    """Return an encoded histogram of the latencies."""
    histogram = _create_histogram()
    for seconds in latencies_seconds:
        histogram.record_value(min(MAX_MICROSECONDS, max(1, round(seconds * MICROSECONDS))))
    return str(histogram.encode().decode())


def merge_latencies(histograms: Iterable[str]) -> Latency | None:
    """Return the figures of several encoded histograms together; None if they are empty."""
    histogram = _create_histogram()
    for encoded in histograms:
        histogram.decode_and_add(encoded.encode())
    count = histogram.get_total_count()
    if not count:
        return None

    def at(percentile: float) -> float:
        return float(histogram.get_value_at_percentile(percentile)) / MICROSECONDS

    # At least one delivery is above each percentile. Beyond that, the curve would only repeat the maximum.
    supported = [percentile for percentile in CURVE if percentile == 0 or round(count * (100 - percentile), 3) >= 100]  # noqa: PLR2004
    curve = [(percentile, at(percentile)) for percentile in supported]
    mean, longest = histogram.get_mean_value() / MICROSECONDS, histogram.get_max_value() / MICROSECONDS
    return Latency(count, mean, at(50), at(90), at(99), at(99.9), longest, curve)


def encode_seen(seen: bytes | bytearray) -> str:
    """Return the bytes of the handled events as text, compressed and in Base64."""
    return b64encode(zlib.compress(seen, 1)).decode()


def count_seen(encoded: Iterable[str]) -> int:
    """Return the number of different events that the workers of one queue have handled together."""
    merged = 0
    for seen in encoded:
        merged |= int.from_bytes(zlib.decompress(b64decode(seen)), "big")  # each byte is 0 or 1, so `|` is the union
    return merged.bit_count()


def _create_histogram() -> HdrHistogram:
    return HdrHistogram(1, MAX_MICROSECONDS, SIGNIFICANT_DIGITS)
