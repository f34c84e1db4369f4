"""Services for the exports to Amazon ECS, with each option, and their templates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smartpipe import Event, Queue, Service, Topic
from smartpipe.deploy.cloudformation import build_template
from smartpipe.deploy.ecs_tasks import Home, Task, build_tasks
from smartpipe.deploy.options import RELAY, read_options
from smartpipe.deploy.rights import build_rights
from smartpipe.deploy.terraform import build_configuration
from smartpipe.deploy.workloads import build_workloads
from smartpipe.topology.export.portable import portable_naming
from smartpipe.topology.table_and_bucket import TableAndBucket

if TYPE_CHECKING:
    from collections.abc import Sequence

NOWHERE = Home(None, None)
PREFIX = "prod-"
SIZES: dict[str, Any] = {"image": "registry.example.com/shop@sha256:" + "0" * 64, "cpu": 0.25, "memory": "512Mi"}
PROMISE: dict[str, Any] = {"max_wait_seconds": 60, "seconds_per_message": 0.5}
TABLE: dict[str, Any] = {
    **SIZES,
    "Order_Mail": {**PROMISE, "min": 0, "max": 5, "spot": True, "protect_task": True, "drain_seconds": 115},
    "reports": {**PROMISE, "min": 2, "spot": True, "cpu": 1, "memory": "2Gi", "image": "reports:2"},
    "videos": {**PROMISE, "platform": "ec2", "drain_seconds": 900, "secret": "videos"},
}


class ParcelSent(Event, topic=Topic("ecs-parcels"), type="ecs.parcel.sent", version="1.0"):
    parcel_id: str


class ParcelLost(Event, topic=Topic("ecs-losses"), type="ecs.parcel.lost", version="1.0"):
    parcel_id: str


async def handle(_: Event) -> None: ...


def subscribe(service: Service, *queues: Queue | None, **options: Any) -> Service:
    """Return the service with a handler on each queue; None is its own."""
    for queue in queues or (None,):
        service.subscribe(ParcelSent, queue=queue, **options)(handle)
    return service


def shop() -> list[Service]:
    """Return services with every option: from zero on spot, with a minimum on spot, on EC2, and with a fixed number."""
    mail = subscribe(Service("Order_Mail"))
    mail.subscribe(ParcelSent, queue=Queue("audit", delay_seconds=30), concurrency=2)(handle)
    return [
        subscribe(Service("billing", publishes=[ParcelLost]), idempotent=True),
        mail,
        subscribe(Service("reports")),
        subscribe(Service("videos"), idempotent=True),
    ]


def unusual() -> list[Service]:
    """Return services whose names AWS accepts nowhere, or that are equal without their signs."""
    names = ["a.b", "a-b", "urn:shop/1", "1st", "~~", "$x", "x" * 256]
    return [subscribe(Service(name, queue=Queue(f"parcels-{place}"))) for place, name in enumerate(names)]


def describe(services: Sequence[Service], table: dict[str, Any] | None = None, home: Home = NOWHERE) -> list[Task]:
    """Return the tasks of the services, with the settings of the environment."""
    table = TABLE if table is None else table
    names = [*(one.name for one in services), *([RELAY] if RELAY in table else [])]
    options = read_options(table, names, complete=True)
    workloads = build_workloads({f"shop:{one.name}": one for one in services}, options, {})
    naming = portable_naming(PREFIX, "shop")
    rights = build_rights(workloads, services, naming, TableAndBucket.from_environment())
    return build_tasks(workloads, rights, PREFIX, home)


def template_of(
    services: Sequence[Service] | None = None, table: dict[str, Any] | None = None, home: Home = NOWHERE
) -> dict[str, Any]:
    return build_template(describe(services or shop(), table, home), ["portal"])


def configuration_of(services: Sequence[Service] | None = None, table: dict[str, Any] | None = None) -> dict[str, Any]:
    return build_configuration(describe(services or shop(), table), ["portal"])


def properties(template: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = template["Resources"][name]["Properties"]
    return found


def metrics_of(template: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the ``Metrics`` of an alarm or of a policy."""
    found = properties(template, name)
    policy = found.get("TargetTrackingScalingPolicyConfiguration", {}).get("CustomizedMetricSpecification", found)
    metrics: list[dict[str, Any]] = policy["Metrics"]
    return metrics
