"""Build the two dashboards of services: all of them at a glance, and one in detail. Pure."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from smartpipe.errors import ConfigError
from smartpipe.monitoring.fleet_rows import build_fleet_rows
from smartpipe.monitoring.grafana import build_dashboard, data_source_variable, label_variable
from smartpipe.monitoring.promql import any_of, equals, matches, select
from smartpipe.monitoring.service_rows import build_service_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from smartpipe.topology.derive import Declares

FLEET, SERVICE = "smartpipe-fleet", "smartpipe-service"


def build_dashboards(
    services: Sequence[Declares], *, application: str, labels: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Return the dashboards by the name of their file, without its suffix.

    Args:
        labels: Labels that all samples of these services have, such as ``env``.

    Raises:
        ConfigError: No service has handlers.
    """
    distinct = sorted({one.name: one for one in services}.values(), key=lambda one: one.name)
    if not any(one.bindings for one in distinct):
        names = ", ".join(one.name for one in distinct)
        msg = f"no service has handlers ({names}), and the dashboards show workers; name a TARGET with handlers"
        raise ConfigError(msg)
    others = tuple(equals(*item) for item in sorted(labels.items()))
    pattern = any_of(one.name for one in distinct)
    declared = select("smartpipe_messages_in_flight", matches("service", pattern), *others)
    chosen = select("smartpipe_messages_in_flight", equals("service", "$service"), *others)
    # Grafana copies this value between the quotes of a query, without escaping it.
    every = f"({json.dumps(pattern, ensure_ascii=False)[1:-1]})"
    environment = "".join(f", {name} {value}" for name, value in sorted(labels.items()))
    return {
        FLEET: build_dashboard(
            _uid("fleet", application, labels),
            f"smartpipe fleet: {application}{environment}",
            "All services: do events arrive, are they handled in time, and which of them fail?",
            variables=[data_source_variable(), label_variable("service", "Service", declared, every=every)],
            rows=build_fleet_rows(distinct, others),
        ),
        SERVICE: build_dashboard(
            _uid("service", application, labels),
            f"smartpipe service: {application}{environment}",
            "One service and its queues, from the receive call to the dead-letter queue.",
            variables=[
                data_source_variable(),
                label_variable("service", "Service", declared),
                label_variable("queue", "Queue", chosen, every=".+"),
            ],
            rows=build_service_rows(others),
        ),
    }


def _uid(name: str, application: str, labels: Mapping[str, str]) -> str:
    """Return an id of at most 40 characters, the same for the same application and environment."""
    return f"smartpipe-{name}-{sha256(repr((application, sorted(labels.items()))).encode()).hexdigest()[:8]}"
