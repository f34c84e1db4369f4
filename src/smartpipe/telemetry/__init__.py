"""Metrics and traces: recorded in the process, and exported in the forms that other tools read."""

from smartpipe.telemetry.families import Family, Sample
from smartpipe.telemetry.prometheus import choose_content_type, render

__all__ = ["Family", "Sample", "choose_content_type", "render"]
