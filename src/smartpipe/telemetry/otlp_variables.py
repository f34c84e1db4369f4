"""Read the variables of OpenTelemetry that concern the export of metrics. Pure.

Source: OpenTelemetry specification 1.49, "Environment variables" and "OTLP exporter configuration".
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_INTERVAL_SECONDS = 60.0
DEFAULT_TIMEOUT_SECONDS = 30.0
PROTOCOLS = {
    "http/protobuf": ("opentelemetry.exporter.otlp.proto.http.metric_exporter", "http://localhost:4318"),
    "grpc": ("opentelemetry.exporter.otlp.proto.grpc.metric_exporter", "http://localhost:4317"),
}
"""The module of each protocol's exporter, and the default endpoint. ``smartpipe[otel]`` installs the first one."""


class OtlpOptions(NamedTuple):
    """How metrics are exported.

    Args:
        endpoint: Scheme, host and port only, for log lines. The exporter reads the variable itself.
        warnings: A sentence for each variable whose value is ignored.
    """

    protocol: str
    endpoint: str
    interval_seconds: float
    timeout_seconds: float
    warnings: tuple[str, ...] = ()


def find_request(environ: Mapping[str, str]) -> str | None:
    """Return the variable that asks for an export of metrics by OTLP, as in ``NAME=value``, or None.

    ``OTEL_METRICS_EXPORTER`` decides if it is set. If it is not, an endpoint is enough.
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    exporters = environ.get("OTEL_METRICS_EXPORTER", "").strip().lower()
    if exporters:
        found = "otlp" in (name.strip() for name in exporters.split(","))
        return f"OTEL_METRICS_EXPORTER={exporters}" if found else None
    for name in ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        if environ.get(name, "").strip():
            return name
    return None


def read_options(environ: Mapping[str, str]) -> OtlpOptions:
    """Return the options. A wrong value is replaced by its default, as the specification demands, with a warning."""
    warnings: list[str] = []
    protocol = _first(environ, "PROTOCOL") or "http/protobuf"
    if protocol not in PROTOCOLS:
        known = " or ".join(PROTOCOLS)
        warnings.append(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol} is ignored: smartpipe exports metrics with {known}")
        protocol = "http/protobuf"
    try:
        url = urlsplit(_first(environ, "ENDPOINT") or PROTOCOLS[protocol][1])
    except ValueError as error:  # the exporter will report it, too
        warnings.append(f"OTEL_EXPORTER_OTLP_ENDPOINT is not a URL: {error}")
        url = urlsplit("that address")  # as the lines after the warning call it
    host = url.netloc.rpartition("@")[2]  # without a user and a password
    seconds = [
        _read_milliseconds(environ, name, default, warnings)
        for name, default in (
            ("OTEL_METRIC_EXPORT_INTERVAL", DEFAULT_INTERVAL_SECONDS),
            ("OTEL_METRIC_EXPORT_TIMEOUT", DEFAULT_TIMEOUT_SECONDS),
        )
    ]
    return OtlpOptions(
        protocol, f"{url.scheme}://{host}" if host else url.path, seconds[0], seconds[1], tuple(warnings)
    )


def has_exporter_timeout(environ: Mapping[str, str]) -> bool:
    """Return whether a variable sets the timeout of the exporter's requests."""
    return bool(_first(environ, "TIMEOUT"))


def _first(environ: Mapping[str, str], name: str) -> str:
    """Return the value for metrics, or else the one for all signals."""
    values = (environ.get(f"OTEL_EXPORTER_OTLP_{signal}{name}", "").strip() for signal in ("METRICS_", ""))
    return next(filter(None, values), "")


def _read_milliseconds(environ: Mapping[str, str], name: str, default: float, warnings: list[str]) -> float:
    text = environ.get(name, "").strip()
    if not text:
        return default
    try:
        seconds = float(text) / 1_000
    except ValueError:
        seconds = math.nan
    if 0 < seconds < math.inf:
        return seconds
    warnings.append(f"{name}={text} is ignored: it must be a number of milliseconds above 0. Using {default:g} s")
    return default
