"""The IAM policies that ``smartpipe deploy export --directory`` writes."""

from __future__ import annotations

from typing import Any

import pytest

from smartpipe.deploy.options import read_options
from smartpipe.deploy.rights import build_rights
from smartpipe.deploy.workloads import build_workloads
from smartpipe.names import Naming
from smartpipe.topology.export.iam import build_policies
from smartpipe.topology.table_and_bucket import NO_TABLE_AND_BUCKET
from tests.support import exported

NAMING = Naming("aws", "eu-west-1", "123456789012", "prod-")
SIZES = {"image": "shop:1", "cpu": 1, "memory": "1Gi"}


@pytest.fixture
def rights(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Return the policies of two services that publish, and of the relay."""
    monkeypatch.setenv("SMARTPIPE_OUTBOX_URL", "postgresql://me@db/shop")
    services = [exported.portal(), exported.mailer()]
    options = read_options(SIZES, ["mailer"], complete=True)
    workloads = build_workloads({f"shop:{one.name}": one for one in services}, options, {})
    return build_rights(workloads, services, NAMING, NO_TABLE_AND_BUCKET)


def test_a_worker_has_the_policies_of_its_service_for_publishing_and_consuming(
    rights: dict[str, dict[str, Any]],
) -> None:
    policies = build_policies(exported.mailer(), NAMING)

    assert rights["mailer"] == {"publish": policies["publish"], "consume": policies["consume"]}


def test_the_relay_may_publish_and_send_to_all_that_the_services_declare_and_nothing_else(
    rights: dict[str, dict[str, Any]],
) -> None:
    assert rights["smartpipe-relay"].keys() == {"publish"}
    allowed = {one["Sid"]: one["Resource"] for one in rights["smartpipe-relay"]["publish"]["Statement"]}
    assert allowed == {
        "PublishToTopics": [
            "arn:aws:sns:eu-west-1:123456789012:prod-accounts",
            "arn:aws:sns:eu-west-1:123456789012:prod-payments.fifo",
        ],
        "SendToQueues": ["arn:aws:sqs:eu-west-1:123456789012:prod-reports"],
    }
