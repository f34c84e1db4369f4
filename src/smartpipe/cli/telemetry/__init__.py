"""``smartpipe telemetry``: files with dashboards and alerts."""
