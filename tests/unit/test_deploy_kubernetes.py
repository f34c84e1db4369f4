"""``smartpipe deploy export --format kubernetes``, read as YAML and judged by the schemas of Kubernetes and KEDA."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from smartpipe import Event, Queue, Service, Topic
from smartpipe.deploy.kubernetes import name_workloads, write_manifests
from smartpipe.deploy.options import read_options
from smartpipe.deploy.place import Place
from smartpipe.deploy.workloads import build_workloads
from smartpipe.deploy.yaml import write_documents

PLACE = Place("eu-west-1", "prod-", "123456789012")
TABLE = {
    "image": "registry.example.com/shop@sha256:" + "0" * 64,
    "cpu": 0.25,
    "memory": "512Mi",
    "Order_Mail": {
        "max_wait_seconds": 60, "seconds_per_message": 0.5, "min": 0, "max": 5, "spot": True, "drain_seconds": 100,
        "role": "arn:aws:iam::123456789012:role/mail",
    },
}  # fmt: skip
THEIRS = "arn:aws:sqs:us-east-1:210987654321:theirs"


class OrderPlaced(Event, topic=Topic("k8s-orders"), type="k8s.order.placed", version="1.0"):
    order_id: str


async def handle(_: Event) -> None: ...


def services() -> dict[str, Service]:
    billing, mail = Service("billing"), Service("Order_Mail")
    billing.subscribe(OrderPlaced, idempotent=True)(handle)
    mail.subscribe(OrderPlaced)(handle)
    mail.subscribe(OrderPlaced, queue=Queue(THEIRS, existing=True))(handle)
    return {"shop:mail": mail, "shop.billing:service": billing}


def export(place: Place = PLACE) -> str:
    found = services()
    options = read_options(TABLE, [one.name for one in found.values()], complete=True)
    return write_manifests(build_workloads(found, options, {"AWS_REGION": place.region}), ["portal"], place)


def documents(text: str = "") -> dict[tuple[str, str], dict[str, Any]]:
    """Return the documents by kind and name."""
    found = list(yaml.safe_load_all(text or export()))
    by_name = {(one["kind"], one["metadata"]["name"]): one for one in found}
    assert len(by_name) == len(found)
    return by_name


@pytest.fixture(autouse=True)
def _outbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_OUTBOX_URL", "postgresql://me:hunter2@db/shop")
    monkeypatch.setenv("SMARTPIPE_IDEMPOTENCY_URL", "redis://:hunter2@cache/0")
    monkeypatch.setenv("SMARTPIPE_APPLICATION", "yes")  # a boolean in YAML, unless it is quoted


def pod(name: str) -> dict[str, Any]:
    found: dict[str, Any] = documents()["Deployment", name]["spec"]["template"]["spec"]
    return found


def test_every_service_and_the_relay_have_an_account_a_deployment_and_a_budget() -> None:
    kinds = ("ServiceAccount", "Deployment", "PodDisruptionBudget")

    assert documents().keys() == {
        *((kind, name) for kind in kinds for name in ("billing", "order-mail", "smartpipe-relay")),
        ("TriggerAuthentication", "order-mail"),
        ("ScaledObject", "order-mail"),
    }


def test_the_header_names_the_command_and_the_services_that_are_left_out() -> None:
    header = "".join(line for line in export().splitlines(keepends=True) if line.startswith("#"))

    assert "smartpipe deploy export --format kubernetes" in header
    assert "Without portal" in header


def test_the_order_of_services_changes_nothing() -> None:
    found = dict(reversed(services().items()))
    options = read_options(TABLE, [one.name for one in found.values()], complete=True)

    workloads = build_workloads(found, options, {"AWS_REGION": "eu-west-1"})
    assert write_manifests(workloads, ["portal"], PLACE) == export()


def test_kubernetes_waits_for_the_drain_and_probes_the_port_of_the_worker() -> None:
    (container,) = pod("order-mail")["containers"]

    assert pod("order-mail")["terminationGracePeriodSeconds"] == 105
    assert container["command"] == ["smartpipe", "worker", "shop:mail"]
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "health"}
    assert container["livenessProbe"]["failureThreshold"] == 11  # a handler may block the event loop for a drain
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "health"}
    assert container["ports"] == [{"name": "health", "containerPort": 8080}]
    assert {"name": "SMARTPIPE_PORT", "value": "8080"} in container["env"]


@pytest.mark.parametrize(("service", "failures"), [("billing", 6), ("order-mail", 11), ("smartpipe-relay", 6)])
def test_kubernetes_restarts_no_worker_that_is_blocked_for_less_than_its_grace_period(
    service: str, failures: int
) -> None:
    (container,) = pod(service)["containers"]

    probe = container["livenessProbe"]
    assert (probe["periodSeconds"], probe["failureThreshold"]) == (10, failures)


def test_pods_know_their_names_for_log_lines_and_metrics() -> None:
    for name in ("billing", "smartpipe-relay"):
        (container,) = pod(name)["containers"]
        fields = {one["name"]: one["valueFrom"].get("fieldRef") for one in container["env"] if "valueFrom" in one}
        assert (
            fields.items()
            >= {
                "K8S_POD_NAME": {"fieldPath": "metadata.name"},
                "K8S_NAMESPACE_NAME": {"fieldPath": "metadata.namespace"},
                "K8S_NODE_NAME": {"fieldPath": "spec.nodeName"},
            }.items()
        )


def test_task_protection_of_ecs_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_PROTECT_TASK", "true")

    assert "PROTECT_TASK" not in export()


def test_pods_have_no_more_rights_than_they_need() -> None:
    for name in ("billing", "order-mail", "smartpipe-relay"):
        (container,) = pod(name)["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert pod(name)["securityContext"]["runAsNonRoot"] is True
        assert pod(name)["automountServiceAccountToken"] is False


def test_secrets_are_references_and_their_values_appear_nowhere() -> None:
    (container,) = pod("billing")["containers"]

    reference = {"secretKeyRef": {"name": "smartpipe", "key": "SMARTPIPE_IDEMPOTENCY_URL"}}
    assert {"name": "SMARTPIPE_IDEMPOTENCY_URL", "valueFrom": reference} in container["env"]
    assert "hunter2" not in export()


def test_a_deployment_has_a_fixed_number_of_replicas_only_without_a_scaler() -> None:
    found = documents()

    assert found["Deployment", "billing"]["spec"]["replicas"] == 1
    assert "replicas" not in found["Deployment", "order-mail"]["spec"]


def test_the_scaler_has_a_trigger_for_each_queue_and_counts_messages_in_flight() -> None:
    spec = documents()["ScaledObject", "order-mail"]["spec"]

    assert [one["metadata"] for one in spec["triggers"]] == [
        {
            "queueURL": "https://sqs.eu-west-1.amazonaws.com/123456789012/prod-Order_Mail",
            "queueLength": "1200",
            "awsRegion": "eu-west-1",
            "scaleOnInFlight": "true",
        },
        {
            "queueURL": "https://sqs.us-east-1.amazonaws.com/210987654321/theirs",
            "queueLength": "1200",
            "awsRegion": "us-east-1",
            "scaleOnInFlight": "true",
        },
    ]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (0, 5)
    assert spec["scaleTargetRef"] == {"name": "order-mail"}


@pytest.mark.parametrize(
    ("minimum", "promise", "interval"), [(0, 20, 10), (0, 1.5, 1), (0, 59, 29), (0, 60, None), (1, 20, None)]
)
def test_a_worker_at_zero_is_started_within_its_promise(minimum: int, promise: float, interval: int | None) -> None:
    found = services()
    own = {"max_wait_seconds": promise, "seconds_per_message": 0.5, "min": minimum}
    options = read_options({**TABLE, "billing": own}, [one.name for one in found.values()], complete=True)

    scaler = documents(write_manifests(build_workloads(found, options, {}), [], PLACE))["ScaledObject", "billing"]

    assert scaler["spec"].get("pollingInterval") == interval


def test_without_an_account_the_scaler_finds_queues_by_name_and_in_china_by_another_domain() -> None:
    def first(place: Place) -> str:
        spec = documents(export(place))["ScaledObject", "order-mail"]["spec"]
        return str(spec["triggers"][0]["metadata"]["queueURL"])

    assert first(Place("eu-west-1", "prod-")) == "prod-Order_Mail"
    assert first(Place("cn-north-1", "", "1" * 12)) == f"https://sqs.cn-north-1.amazonaws.com.cn/{'1' * 12}/Order_Mail"


def test_the_scaler_waits_at_least_the_grace_period_before_it_removes_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    for drain, window in (("100", 300), ("900", 905), ("7200", 3_600)):
        monkeypatch.setitem(TABLE, "Order_Mail", {**TABLE["Order_Mail"], "drain_seconds": float(drain), "spot": False})  # type: ignore[dict-item]
        behavior = documents()["ScaledObject", "order-mail"]["spec"]["advanced"]["horizontalPodAutoscalerConfig"]
        assert behavior["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == window
        cooldown = documents()["ScaledObject", "order-mail"]["spec"]["cooldownPeriod"]
        assert cooldown == max(300, int(drain) + 5)


def test_an_update_starts_a_pod_before_it_ends_another_and_a_node_drains_one_at_a_time() -> None:
    found = documents()

    update = found["Deployment", "billing"]["spec"]["strategy"]["rollingUpdate"]
    assert update == {"maxSurge": 1, "maxUnavailable": 0}
    budget = found["PodDisruptionBudget", "billing"]["spec"]
    assert budget["maxUnavailable"] == 1
    labels = found["Deployment", "billing"]["spec"]["template"]["metadata"]["labels"]
    assert budget["selector"]["matchLabels"] == labels


def test_a_container_requests_its_sizes_and_is_limited_only_in_memory() -> None:
    (container,) = pod("billing")["containers"]

    assert container["resources"] == {"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"memory": "512Mi"}}


def test_kubernetes_sets_no_variables_that_look_like_settings() -> None:
    assert pod("billing")["enableServiceLinks"] is False


def test_a_role_is_an_annotation_for_irsa_and_without_one_pod_identity_associates_it() -> None:
    found = documents()

    role = {"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/mail"}
    assert found["ServiceAccount", "order-mail"]["metadata"]["annotations"] == role
    assert "annotations" not in found["ServiceAccount", "billing"]["metadata"]


def test_spot_capacity_is_preferred_only_where_it_is_allowed() -> None:
    assert "affinity" in pod("order-mail")
    assert "affinity" not in pod("billing")


def test_names_are_valid_in_kubernetes_and_stay_different() -> None:
    def named(*names: str) -> list[str]:
        (one, *_) = build_workloads(services(), read_options(TABLE, ["billing", "Order_Mail"], complete=True), {})
        return list(name_workloads([one._replace(name=name) for name in names]).values())

    assert named("billing", "Order_Mail", "urn:shop/1") == ["billing", "order-mail", "urn-shop-1"]
    assert len(set(named("a_b", "a-b", "a.b"))) == 3
    assert named("1st") == ["s1st"]
    assert len(set(named("1st", "s1st"))) == 2
    assert max(map(len, named("x" * 100, "9" * 100))) <= 52


def test_texts_that_yaml_would_read_as_another_type_are_quoted() -> None:
    values = {
        "a": [
            "yes",
            "No",
            "null",
            "1",
            "1.0",
            "1e3",
            "",
            "~",
            "a: b",
            "a #b",
            "- a",
            '"',
            "ü\n",
            "{{x}}",
            "0x1f",
            "12m",
        ],
        "b": [True, 1, 0.5, None, {}, [], {"c": [{"d": [["e"]]}]}],
        "on": "2026-11-27",
        "12:30": "*x",
    }

    assert list(yaml.safe_load_all(write_documents(["h", ""], [values, {"f": "g"}]))) == [values, {"f": "g"}]


def test_kubernetes_accepts_every_document() -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")

    checked = [one for one in documents().values() if "keda" not in one["apiVersion"]]
    assert len(checked) == 9
    for one in checked:
        for version in ("1.30", "1.37"):
            kubernetes_validate.validate(one, version, strict=True)


def test_kubernetes_validate_would_notice_a_misspelt_key() -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    deployment = documents()["Deployment", "billing"]
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 5

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.37", strict=True)


@pytest.mark.parametrize("kind", ["ScaledObject", "TriggerAuthentication"])
def test_keda_knows_every_key_and_accepts_every_value(kind: str) -> None:
    keda = pytest.importorskip("cloudcoil.models.keda.v1alpha1", reason="cloudcoil-models-keda is not installed")
    one = documents()[kind, "order-mail"]

    parsed = getattr(keda, kind).model_validate(one)

    # The models ignore unknown keys, so these are missing in the dump.
    assert parsed.model_dump(mode="json", by_alias=True, exclude_unset=True) == one
