"""The model behind ``smartpipe deploy export``: options in pyproject.toml, and the figures that follow from them."""

from __future__ import annotations

from typing import Any

import pytest

from smartpipe import ConfigError, Event, Queue, Service, Topic
from smartpipe.deploy.options import RELAY, read_options
from smartpipe.deploy.workloads import Workload, build_workloads

SIZES = {"image": "registry.example.com/shop:1", "cpu": 0.5, "memory": "512Mi"}
PROMISE: dict[str, Any] = {"max_wait_seconds": 60, "seconds_per_message": 0.5}


class OrderPlaced(Event, topic=Topic("deploy-orders"), type="deploy.order.placed", version="1.0"):
    order_id: str


class FilmAdded(Event, topic=Topic("deploy-films", limit_bytes=1_048_576), type="deploy.film.added", version="1.0"):
    title: str


async def handle(_: Event) -> None: ...


def billing(**options: Any) -> Service:
    service = Service("billing")
    service.subscribe(OrderPlaced, **options)(handle)
    return service


def build(service: Service | None = None, **options: Any) -> Workload:
    """Return the only workload of a service with these options."""
    service = service or billing()
    found = read_options({**SIZES, service.name: options}, [service.name], complete=True)
    return build_workloads({"shop:billing": service}, found, {})[0]


def refusal(service: Service | None = None, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build(service, **options)
    return str(caught.value)


def test_a_containers_grace_period_is_the_drain_and_five_seconds() -> None:
    assert build().grace_seconds == 30
    assert build(drain_seconds=50.5).grace_seconds == 56
    assert build(drain_seconds=600).environment["SMARTPIPE_DRAIN_SECONDS"] == "600"


def test_the_target_of_a_queue_is_slots_per_second_times_the_promised_wait() -> None:
    assert [one.target for one in build(**PROMISE).queues] == [1_200]  # 10 slots / 0.5 s * 60 s
    assert [one.target for one in build(**PROMISE, concurrency=20).queues] == [2_400]
    assert [one.target for one in build(max_wait_seconds=10, seconds_per_message=3).queues] == [33]
    assert [one.target for one in build().queues] == [None]


def test_each_queue_has_a_target_of_its_own_from_its_own_slots() -> None:
    service = billing()
    service.subscribe(OrderPlaced, queue=Queue("audit"), concurrency=2)(handle)

    assert [(one.queue, one.slots, one.target) for one in build(service, **PROMISE).queues] == [
        ("billing", 10, 1_200),
        ("audit", 2, 240),
    ]


def test_a_rate_limit_of_a_handler_lowers_the_target_of_its_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    service = billing(rate_per_second=5)  # 20 a second without it
    service.subscribe(FilmAdded, rate_per_second=8)(handle)
    service.subscribe(OrderPlaced, queue=Queue("audit"), rate_per_second=50)(handle)

    assert [one.target for one in build(service, **PROMISE).queues] == [300, 1_200]
    monkeypatch.setenv("SMARTPIPE_PROCESSES", "2")
    assert [one.target for one in build(service, **PROMISE, cpu=2).queues] == [600, 2_400]


def test_all_processes_of_a_container_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_PROCESSES", "4")

    workload = build(**PROMISE, cpu=4)

    assert workload.queues[0].target == 4_800
    assert workload.environment["SMARTPIPE_PROCESSES"] == "4"


def test_a_service_scales_up_to_ten_containers_by_default_and_only_with_a_promise() -> None:
    assert build(**PROMISE).maximum == 10
    assert build(**PROMISE, min=20).maximum == 20
    assert build(**PROMISE, max=3).maximum == 3
    assert build(min=4).maximum == 4


def test_settings_of_the_environment_become_variables_and_local_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PREFIX": "prod-", "PREFETCH": "false", "HOST": "127.0.0.1", "PORT": "0"}.items():
        monkeypatch.setenv(f"SMARTPIPE_{name}", value)

    assert build().environment == {
        "SMARTPIPE_DRAIN_SECONDS": "25",
        "SMARTPIPE_PORT": "8080",
        "SMARTPIPE_PREFETCH": "false",
        "SMARTPIPE_PREFIX": "prod-",
    }


@pytest.mark.parametrize(("options", "protected"), [({}, True), ({"protect_task": False}, False)])
def test_task_protection_in_the_environment_is_an_option_because_a_variable_alone_lacks_its_permission(
    options: dict[str, Any], protected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMARTPIPE_PROTECT_TASK", "true")

    workload = build(**options)

    assert workload.options.protect_task == protected
    assert "SMARTPIPE_PROTECT_TASK" not in workload.environment


def test_an_option_of_a_service_wins_over_the_environment_and_the_common_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_CONCURRENCY", "5")

    workload = build(concurrency=7, memory="1Gi")

    assert workload.environment["SMARTPIPE_CONCURRENCY"] == "7"
    assert workload.options.memory_bytes == 2**30


def test_urls_with_passwords_are_only_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_IDEMPOTENCY_URL", "redis://:hunter2@cache/0")
    monkeypatch.setenv("SMARTPIPE_OUTBOX_URL", "postgresql://me:hunter2@db/shop")
    service = billing(idempotent=True)
    found = read_options(SIZES, ["billing"], complete=True)

    worker, relay = build_workloads({"shop:billing": service}, found, {})

    assert worker.secrets == ("SMARTPIPE_IDEMPOTENCY_URL",)
    assert relay.secrets == ("SMARTPIPE_OUTBOX_URL",)
    assert relay.command == ("smartpipe", "relay")
    assert "hunter2" not in repr([worker, relay])
    assert not {*worker.environment, *relay.environment} & {*worker.secrets, *relay.secrets}


def test_a_service_without_idempotent_handlers_gets_no_url_of_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_IDEMPOTENCY_URL", "redis://:hunter2@cache/0")

    assert build().secrets == ()


def test_the_relay_has_the_image_of_the_first_service_and_neither_its_role_nor_its_scaling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SMARTPIPE_OUTBOX_URL", "postgresql://me:hunter2@db/shop")
    own = {**PROMISE, "min": 3, "max": 5, "spot": True, "role": "arn:aws:iam::123456789012:role/billing"}
    found = read_options({**SIZES, "billing": own}, ["billing"], complete=True)

    _, relay = build_workloads({"shop:billing": billing()}, found, {})

    assert relay.options == read_options(SIZES, ["relay"], complete=True)["relay"]
    assert (relay.maximum, relay.queues) == (1, ())


def test_the_relay_can_have_options_of_its_own_and_never_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_OUTBOX_URL", "postgresql://me:hunter2@db/shop")
    table = {**SIZES, **PROMISE, RELAY: {"memory": "2Gi", "min": 2}}
    found = read_options(table, ["billing", RELAY], complete=True)

    _, relay = build_workloads({"shop:billing": billing()}, found, {})

    assert (relay.options.memory, relay.options.image, relay.maximum) == ("2Gi", SIZES["image"], 2)
    assert relay.options.max_wait_seconds is None


def test_a_relay_without_the_url_of_its_outbox_is_not_left_out_in_silence() -> None:
    found = read_options({**SIZES, RELAY: {"memory": "2Gi"}}, ["billing", RELAY], complete=True)

    with pytest.raises(ConfigError, match="has options of smartpipe-relay, and SMARTPIPE_OUTBOX_URL is not set"):
        build_workloads({"shop:billing": billing()}, found, {})


def test_a_common_minimum_of_zero_does_not_stop_the_relay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_OUTBOX_URL", "postgresql://me:hunter2@db/shop")
    table = {**SIZES, **PROMISE, "min": 0, RELAY: {"memory": "2Gi"}}
    found = read_options(table, ["billing", RELAY], complete=True)

    worker, relay = build_workloads({"shop:billing": billing()}, found, {})

    assert (worker.options.min, relay.options.min, relay.maximum) == (0, 1, 1)


def test_a_relay_without_a_container_is_refused() -> None:
    with pytest.raises(ConfigError, match="min = 0 would leave all events in the outbox"):
        read_options({**SIZES, RELAY: {"min": 0}}, ["billing", RELAY], complete=True)


@pytest.mark.parametrize(
    "key", ["max_wait_seconds", "seconds_per_message", "max", "concurrency", "drain_seconds", "protect_task"]
)
def test_an_option_that_the_relay_cannot_have_is_refused(key: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"\[tool.smartpipe.deploy.smartpipe-relay\]: {key} is not an option of the relay"
    ):
        read_options({**SIZES, RELAY: {key: 5}}, ["billing", RELAY], complete=True)


def test_a_service_with_the_name_of_the_relay_is_refused_beside_an_outbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_OUTBOX_URL", "postgresql://me:hunter2@db/shop")
    service = Service(RELAY)
    service.subscribe(OrderPlaced)(handle)

    with pytest.raises(ConfigError, match="a service is called 'smartpipe-relay', and the outbox needs a relay"):
        build_workloads({"shop:one": service}, read_options(SIZES, [RELAY], complete=True), {})


def test_a_service_without_handlers_has_no_workload() -> None:
    portal = Service("portal", publishes=[OrderPlaced])
    found = read_options(SIZES, ["billing"], complete=True)

    assert [one.name for one in build_workloads({"a:portal": portal, "a:b": billing()}, found, {})] == ["billing"]


@pytest.mark.parametrize("missing", ["image", "cpu", "memory"])
def test_a_service_without_image_or_sizes_is_refused_with_the_line_to_add(missing: str) -> None:
    table = {key: value for key, value in SIZES.items() if key != missing}

    with pytest.raises(
        ConfigError, match=rf"'billing' has no {missing}: set {missing} = .* in \[tool.smartpipe.deploy"
    ):
        read_options(table, ["billing"], complete=True)


def test_all_errors_of_all_services_are_reported_together_and_a_common_one_once() -> None:
    table = {**SIZES, "cpu": 0, "mail": {"memory": "lots"}}

    with pytest.raises(ConfigError) as caught:
        read_options(table, ["billing", "mail"], complete=True)

    assert len(caught.value.problems) == 2


def test_an_unknown_option_is_refused_with_a_suggestion() -> None:
    assert "[tool.smartpipe.deploy.billing]: max_wait is not an option; did you mean max_wait_seconds?" in refusal(
        max_wait=5
    )
    assert "zzz is not an option; use one of image, cpu" in refusal(zzz=5)


def test_a_table_for_an_unknown_service_is_refused_if_all_services_are_exported() -> None:
    table = {**SIZES, "biling": {"min": 2}}

    assert read_options(table, ["billing"], complete=False).keys() == {"billing"}
    with pytest.raises(ConfigError, match=r"\[tool.smartpipe.deploy.biling\]: no service .* did you mean billing\?"):
        read_options(table, ["billing"], complete=True)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"max_wait_seconds": 1e300},
            "max_wait_seconds = 1e+300 is wrong: input should be less than or equal to 1209600",
        ),
        ({"seconds_per_message": 1e-300}, "seconds_per_message = 1e-300 is wrong: input should be greater than or"),
        ({"memory": "512MB"}, "memory = '512MB' is wrong: write a whole number of MiB or GiB"),
        ({"memory": 512}, 'memory = 512 is wrong: input should be a valid string, as in memory = "1Gi"'),
        ({"cpu": "half"}, "cpu = 'half' is wrong"),
        ({"min": 3, "max": 2} | PROMISE, "min = 3 is more than max = 2"),
        ({"min": 0}, "service 'billing': min = 0: a number of containers that changes needs a scaler"),
        ({"max": 5}, "min = 1 and max = 5: a number of containers that changes needs a scaler"),
        ({"max_wait_seconds": 5}, "has max_wait_seconds but no seconds_per_message"),
        ({"seconds_per_message": 5}, "has seconds_per_message but no max_wait_seconds"),
        ({"max_wait_seconds": 1, "seconds_per_message": 2}, "no number of containers can keep it"),
        ({"spot": True, "drain_seconds": 116}, "drain_seconds = 116 is too long for spot = true"),
        ({"drain_seconds": 1}, "drain_seconds = 1 is wrong"),
        ({"role": "billing"}, "role = 'billing' is wrong"),
    ],
)
def test_contradictory_options_are_refused(options: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal(**options)


def test_options_at_their_limits_are_accepted() -> None:
    build(spot=True, drain_seconds=115)
    build(max_wait_seconds=2, seconds_per_message=2)
    build(min=2, max=2)
    build(min=0, **PROMISE)


def test_memory_for_the_largest_message_in_every_slot_as_bytes_text_and_objects_is_required(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    films = Service("films")
    films.subscribe(FilmAdded)(handle)
    assert "memory = '29Mi' is less than the 30Mi" in refusal(films, memory="29Mi")
    build(films, memory="30Mi")
    build(memory="8Mi")  # ten slots of 256 KiB

    monkeypatch.setenv("SMARTPIPE_PROCESSES", "2")
    assert "is less than the 60Mi" in refusal(films, memory="59Mi", cpu=2)
    monkeypatch.delenv("SMARTPIPE_PROCESSES")
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_URL", "s3://payloads/shop")
    assert "is less than the 480Mi" in refusal(memory="479Mi")  # bodies in S3 can have 16 MiB


def test_memory_for_compressed_messages_is_that_of_their_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_COMPRESSION", "gzip")
    assert "is less than the 120Mi" in refusal(memory="119Mi")  # ten slots of 4 MiB
    build(memory="120Mi")

    monkeypatch.setenv("SMARTPIPE_DECOMPRESSED_LIMIT_BYTES", str(2**20))
    build(memory="30Mi")


def test_a_wrong_setting_names_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_WAIT_SECONDS", "20")

    assert refusal(drain_seconds=10).startswith("service 'billing': wait_seconds=20 is too long")


def test_several_processes_on_less_than_one_cpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_PROCESSES", "4")

    assert "'billing': 4 processes (SMARTPIPE_PROCESSES) on cpu = 0.5 are slower than one; raise cpu" in refusal()
    assert build(cpu=1, memory="2Gi").command[1] == "worker"
