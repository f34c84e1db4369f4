"""Each rule of ``smartpipe doctor`` about declarations and settings, with a bad and a good example."""

from __future__ import annotations

from datetime import UTC, date, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

import pytest
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticSerializationError
from tenacity import wait_fixed, wait_incrementing

from smartpipe import Event, Idempotency, PublishError, Queue, RetryPolicy, Service, Topic
from smartpipe.doctor import declared
from smartpipe.doctor.declared import longest_waits
from smartpipe.doctor.examine import examine
from smartpipe.external import ExternalModel, RawContext, field
from smartpipe.filter_policy import FilterPolicy
from smartpipe.publisher.prepare import Publication, prepare
from smartpipe.settings import WorkerSettings, drain_seconds_for

if TYPE_CHECKING:
    from smartpipe.doctor.findings import Finding
    from smartpipe.doctor.report import Report

orders = Topic("orders")
sequence = Topic("sequence", fifo=True)


class Placed(Event, topic=orders, type="doctor.placed", version="1.0"):
    number: int


class Tenanted(Event, topic=orders, type="doctor.tenanted", version="1.0", tenant="customer"):
    customer: str


class Kind(StrEnum):
    ONLY = "only"


class OneGroup(Event, topic=sequence, type="doctor.one-group", version="1.0", key=("kind", "shop")):
    kind: Kind
    shop: Literal["main"]


class Unordered(Event, topic=orders, type="doctor.unordered", version="1.0", key="kind"):
    kind: Kind


class Groups(Event, topic=sequence, type="doctor.groups", version="1.0", key=("kind", "order")):
    kind: Kind
    order: str


class TwoGroups(Event, topic=sequence, type="doctor.two-groups", version="1.0", key="express"):
    express: bool


class MaybeKeyed(Event, topic=sequence, type="doctor.maybe-keyed", version="1.0", key="order"):
    order: str | None


class PartlyKeyed(Event, topic=sequence, type="doctor.partly-keyed", version="1.0", key=("order", "line")):
    order: str
    line: str | None


class Line(BaseModel):
    body: bytes
    at: datetime
    parent: Line | None = None


class Page(BaseModel):
    body: bytes
    book: Book


class Book(BaseModel):
    pages: list[Page]


class Printed(Event, topic=orders, type="doctor.printed", version="1.0"):
    book: Book


class Nesting(Event, topic=orders, type="doctor.nesting", version="1.0"):
    lines: list[Line]


class Sensitive(Event, topic=orders, type="doctor.sensitive", version="1.0"):
    iban: str = Field(json_schema_extra={"sensitive": True})


class EncryptedSensitive(
    Event, topic=Topic("encrypted-orders", kms_key="alias/shop"), type="doctor.encrypted", version="1.0"
):
    iban: str = Field(json_schema_extra={"sensitive": True})


class Unreadable(Event, topic=orders, type="doctor.unreadable", version="1.0"):
    at: datetime | None
    body: bytes


class Readable(Event, topic=orders, type="doctor.readable", version="1.0"):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    at: AwareDatetime | None
    body: bytes


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DRAIN_SECONDS", "CONCURRENCY", "PROCESSES", "IDEMPOTENCY_URL", "CLAIM_CHECK_URL", "COMPRESSION"):
        monkeypatch.delenv(f"SMARTPIPE_{name}", raising=False)


def make_service(event: Any = Placed, *, queue: Queue | None = None, publishes: Any = (), **options: Any) -> Service:
    service = Service("shop", queue=queue, publishes=publishes, timeout_seconds=20)

    @service.subscribe(event, **options)  # type: ignore[untyped-decorator] # of any event
    async def handle(event: Any) -> None: ...

    return service


def make_named(name: str) -> Service:
    service = Service(name, timeout_seconds=20)

    @service.subscribe(Placed)
    async def handle(event: Placed) -> None: ...

    return service


def diagnose(*services: Service) -> Report:
    return examine(services, (), (), date(2026, 11, 27))


def find(code: str, *services: Service) -> list[Finding]:
    return [one for one in diagnose(*services).findings if one.code == code]


def test_a_handler_that_may_outlast_the_drain_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    [found] = find("SP101", make_service(timeout_seconds=900))

    assert found.severity == "warning"
    assert found.figures == {"timeout_seconds": 900, "drain_seconds": 25, "finish_seconds": 22}
    assert found.remedy.startswith(
        "raise the drain to 903 s (drain_seconds in [tool.smartpipe.deploy], which wins, or "
    )
    assert "the grace period of the platform to 908 s;" in found.remedy
    monkeypatch.setenv("SMARTPIPE_DRAIN_SECONDS", "903")
    assert find("SP101", make_service(timeout_seconds=900)) == []
    monkeypatch.setenv("SMARTPIPE_DRAIN_SECONDS", "902")
    assert find("SP101", make_service(timeout_seconds=900)) != []


@pytest.mark.parametrize("seconds", [1.6, 2, 11.9, 12, 22, 300, 900, 7_197])
def test_the_drain_that_the_remedy_names_is_the_shortest_that_lets_the_handler_finish(seconds: float) -> None:
    drain = drain_seconds_for(seconds)

    assert WorkerSettings.load(drain_seconds=drain, wait_seconds=1).finish_seconds == pytest.approx(seconds)


def test_a_handler_that_ends_within_the_time_of_a_drain_is_no_finding() -> None:
    assert find("SP101", make_service(timeout_seconds=22)) == []
    assert find("SP101", make_service(timeout_seconds=23)) != []


def test_handlers_of_one_event_that_outlast_the_drain_only_together_are_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def add(service: Service, queue: Queue | None = None) -> Service:
        @service.subscribe(Placed, queue=queue, timeout_seconds=15)
        async def count(event: Placed) -> None: ...

        return service

    [found] = find("SP101", add(make_service(timeout_seconds=15)))

    assert (found.resource, found.severity, found.figures["timeout_seconds"]) == ("queue shop", "warning", 30)
    assert "raise the drain to 33 s" in found.remedy
    assert found.remedy.endswith(", or give each handler a queue of its own")
    assert find("SP101", add(make_service(timeout_seconds=15), Queue("counts"))) == []
    assert find("SP101", add(make_service(timeout_seconds=7))) == []
    monkeypatch.setenv("SMARTPIPE_DRAIN_SECONDS", "33")
    assert find("SP101", add(make_service(timeout_seconds=15))) == []


@pytest.mark.parametrize(("timeout", "longest"), [(7_197, False), (7_198, True), (None, True)])
def test_the_remedy_names_no_drain_that_a_worker_would_refuse(timeout: float | None, *, longest: bool) -> None:
    [found] = find("SP101", make_service(timeout_seconds=timeout))

    assert ("because the longest drain is 7,200 s" in found.remedy) == longest
    assert ("raise the drain to 7200 s" in found.remedy) != longest


@pytest.mark.parametrize(("timeout", "named"), [(112, False), (113, True), (None, True), (300, True)])
def test_a_handler_that_fargate_cannot_wait_for_has_task_protection_as_its_remedy(
    timeout: float | None, named: bool
) -> None:
    [found] = find("SP101", make_service(timeout_seconds=timeout))

    assert ("on ECS, run smartpipe worker --protect-task" in found.remedy) == named


def test_with_task_protection_a_long_handler_is_no_finding_and_the_report_says_which_stops_remain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SMARTPIPE_PROTECT_TASK", "true")

    report = diagnose(make_service(timeout_seconds=900))

    assert "SP101" not in [one.code for one in report.findings]
    assert any("Spot interruptions and StopTask" in sentence for sentence in report.not_seen)
    assert not any("StopTask" in sentence for sentence in diagnose(make_service(timeout_seconds=22)).not_seen)


@pytest.mark.parametrize(
    ("options", "drains"),
    [
        ({}, [25]),
        ({"drain_seconds": 100}, [100]),
        ({"drain_seconds": 903}, []),
        ({"drain_seconds": 100, "shop": {"drain_seconds": 1_000}}, []),
        ({"drain_seconds": 1_000, "shop": {"drain_seconds": 100}}, [100]),
        ({"other": {"drain_seconds": 1_000}}, [25]),
        ({"shop": {"protect_task": True}}, []),
        ({"protect_task": True, "shop": {"protect_task": False}}, [25]),
        ({"shop": {"drain_seconds": "long", "protect_task": "yes"}}, [25]),
        ({"drain_seconds": 1e300}, [25]),  # an export refuses these
        ({"drain_seconds": -5, "concurrency": 1e300}, [25]),
    ],
)
def test_the_options_of_a_service_in_pyproject_toml_win_over_the_environment(
    options: dict[str, Any], drains: list[float]
) -> None:
    pyproject = {"tool": {"smartpipe": {"deploy": options}}}

    report = examine([make_service(timeout_seconds=900)], (), (), date(2026, 11, 27), pyproject=pyproject)

    assert [one.figures["drain_seconds"] for one in report.findings if one.code == "SP101"] == drains


def test_the_concurrency_of_a_service_in_pyproject_toml_decides_how_many_messages_a_task_holds() -> None:
    pyproject = {"tool": {"smartpipe": {"deploy": {"shop": {"concurrency": 40}}}}}

    report = examine([make_service(Tenanted)], (), (), date(2026, 11, 27), pyproject=pyproject)

    assert [one.code for one in find("SP109", make_service(Tenanted))] == ["SP109"]
    assert "SP109" not in [one.code for one in report.findings]


def test_a_handler_without_a_timeout_may_run_for_twelve_hours() -> None:
    [found] = find("SP101", make_service(timeout_seconds=None))

    assert found.figures["timeout_seconds"] == 43_200


def test_handlers_with_the_default_timeout_are_one_note_for_each_service() -> None:
    service = make_service(timeout_seconds=300)

    @service.subscribe(Placed, timeout_seconds=300)
    async def other(event: Placed) -> None: ...

    [found] = find("SP101", service)
    assert (found.severity, found.resource, found.figures["handlers"]) == ("note", "service shop", 2)


def test_retries_that_outlast_the_retention_are_an_error() -> None:
    policy = RetryPolicy(attempts=4, base_seconds=1_000, max_seconds=3_000)
    bad, good = (make_service(queue=Queue("shop", retention_seconds=one), retry=policy) for one in (5_999, 6_000))

    [found] = find("SP102", bad)

    assert (found.severity, found.figures["waits_seconds"]) == ("error", 6_000)
    assert "raise Queue(retention_seconds=...)" in found.remedy
    assert find("SP102", good) == []


def test_no_retention_is_long_enough_for_retries_of_two_weeks_and_the_remedy_names_none() -> None:
    policy = RetryPolicy(attempts=1_000, base_seconds=3_600, max_seconds=3_600)

    [found] = find("SP102", make_service(retry=policy))

    assert found.remedy == "lower attempts or max_seconds of the RetryPolicy"


def test_the_sum_of_an_unknown_wait_strategy_is_not_seen() -> None:
    report = diagnose(make_service(retry=RetryPolicy(wait=wait_incrementing(increment=5))))

    assert any("wait strategy" in one for one in report.not_seen)
    assert longest_waits(RetryPolicy(attempts=3, wait=wait_fixed(7))) == 14
    assert longest_waits(RetryPolicy(attempts=1_000)) is not None


def test_a_retention_as_long_as_that_of_the_dead_letter_queue_is_a_warning() -> None:
    [found] = find("SP102", make_service(queue=Queue("shop", retention_seconds=1_209_600)))

    assert found.severity == "warning"
    assert "dead-letter" in found.message


def test_a_receive_count_near_the_attempts_is_a_warning() -> None:
    policy = RetryPolicy(attempts=8)
    bad, good = (make_service(queue=Queue("shop", max_receive_count=one), retry=policy) for one in (23, 24))

    [found] = find("SP103", bad)

    assert found.figures == {"max_receive_count": 23, "attempts": 8, "least": 24}
    assert find("SP103", good) == []


def test_settings_of_an_external_queue_are_not_judged() -> None:
    queue = Queue("theirs", existing=True, retention_seconds=60, max_receive_count=9)
    report = diagnose(make_service(queue=queue))

    assert [one for one in report.findings if one.code in {"SP102", "SP103"}] == []
    assert any("theirs" in one for one in report.not_seen)


def test_a_key_with_one_value_makes_one_group_of_all_events() -> None:
    [found] = find("SP104", make_service(publishes=[OneGroup, Groups, Unordered]))

    assert found.resource == "event doctor.one-group"


def test_a_key_with_few_values_makes_few_groups() -> None:
    [found] = find("SP104", make_service(publishes=[TwoGroups, Groups]))

    assert (found.severity, found.resource, found.figures) == ("note", "event doctor.two-groups", {"groups": 2})


def test_a_key_that_may_be_none_makes_publishing_fail() -> None:
    [found] = find("SP104", make_service(publishes=[MaybeKeyed, Groups]))

    assert (found.severity, found.resource) == ("warning", "event doctor.maybe-keyed")


def test_a_key_of_which_one_field_may_be_none_makes_publishing_fail() -> None:
    [found] = find("SP104", make_service(publishes=[PartlyKeyed, Groups]))

    assert found.message.startswith(
        "line of its key order, line may be None, and publishing to a FIFO topic then fails"
    )


@pytest.mark.parametrize("event", [MaybeKeyed(order=None), PartlyKeyed(order="o-1", line=None)])
def test_the_publisher_refuses_an_event_whose_key_is_none(event: Event) -> None:
    with pytest.raises(PublishError, match="MissingKey"):
        prepare(Publication(event), source="shop")


def test_the_fields_of_nested_models_are_examined_once() -> None:
    found = find("SP106", make_service(publishes=[Nesting]))

    assert [(one.resource, one.severity) for one in found] == [
        ("event doctor.nesting, field lines.body", "warning"),
        ("event doctor.nesting, field lines.at", "note"),
    ]


def test_models_that_contain_each_other_are_examined_once() -> None:
    found = find("SP106", make_service(publishes=[Printed]))

    assert [one.resource for one in found] == ["event doctor.printed, field book.pages.body"]


def test_a_sensitive_field_needs_a_key_for_its_topic_and_its_queues() -> None:
    [found] = find("SP106", make_service(Sensitive, publishes=[Sensitive]))
    assert found.resource == "event doctor.sensitive, field iban"
    assert "topic orders, queue shop has no KMS key" in found.message

    encrypted = Queue("shop", kms_key="alias/shop")
    [half] = find("SP106", make_service(EncryptedSensitive, publishes=[EncryptedSensitive]))
    assert "topic" not in half.message
    theirs = Queue("theirs", existing=True)
    for queue in (encrypted, theirs):
        assert find("SP106", make_service(EncryptedSensitive, queue=queue, publishes=[EncryptedSensitive])) == []


def test_a_store_in_memory_forgets_claims_when_the_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_IDEMPOTENCY_URL", "memory://")
    [found] = find("SP105", make_service(idempotent=True))
    assert found.resource == "service shop"
    assert find("SP105", make_service()) == []

    monkeypatch.setenv("SMARTPIPE_IDEMPOTENCY_URL", "dynamodb://claims")
    assert find("SP105", make_service(idempotent=True)) == []


def test_an_idempotent_raw_handler_needs_a_key_or_a_model_that_knows_the_id() -> None:
    class Row(BaseModel):
        number: int

    class Numbered(ExternalModel):
        number: int

        def get_context(self) -> RawContext:
            return RawContext(id=str(self.number))

    service = Service("inbox")
    handlers: dict[str, Any] = {
        "row": service.subscribe_raw(Row, match=field("number"), idempotent=True),
        "text": service.subscribe_raw(str, match=field("text"), idempotent=True),
        "keyed": service.subscribe_raw(Row, idempotent=Idempotency(key="number")),
        "numbered": service.subscribe_raw(Numbered, idempotent=True),
        "often": service.subscribe_raw(dict),
    }
    for name, subscribe in handlers.items():

        async def handle(message: Any) -> None: ...

        handle.__qualname__ = name
        subscribe(handle)

    row, text = find("SP105", service)

    assert (row.resource, text.resource) == (f"handler {__name__}.row", f"handler {__name__}.text")
    assert row.remedy.startswith('give it idempotent=Idempotency(key="FIELD"), or a model derived from ExternalModel')
    assert text.remedy.startswith("give it a model with the field that identifies a message, and idempotent=")


def test_an_idempotent_handler_that_forgets_before_a_redrive_is_a_warning() -> None:
    [found] = find("SP105", make_service(idempotent=Idempotency(ttl_seconds=86_400)))

    assert found.resource == "queue shop"
    assert find("SP105", make_service(idempotent=Idempotency(ttl_seconds=1_555_200))) == []


def test_fields_that_other_languages_cannot_read_are_found() -> None:
    found = find("SP106", make_service(publishes=[Unreadable, Readable]))

    assert [(one.resource, one.severity) for one in found] == [
        ("event doctor.unreadable, field body", "warning"),
        ("event doctor.unreadable, field at", "note"),
    ]


def test_the_fields_that_it_finds_do_have_these_faults() -> None:
    with pytest.raises(PydanticSerializationError):
        Unreadable(at=None, body=b"\xff").model_dump_json()
    naive = Unreadable(at=datetime(2026, 1, 2), body=b"").model_dump_json()  # noqa: DTZ001 - the fault
    assert '"2026-01-02T00:00:00"' in naive

    Readable(at=datetime(2026, 1, 2, tzinfo=UTC), body=b"\xff").model_dump_json()
    with pytest.raises(ValidationError):
        Readable(at=datetime(2026, 1, 2), body=b"")  # noqa: DTZ001 - the fault


def test_events_without_a_subscriber_or_a_publisher_are_notes() -> None:
    found = find("SP107", make_service(Placed, publishes=[Tenanted]))

    assert [(one.resource, one.severity) for one in found] == [
        ("event doctor.placed", "note"),
        ("event doctor.tenanted", "note"),
    ]
    assert find("SP107", make_service(Placed, publishes=[Placed])) == []


def test_without_any_declared_publisher_missing_publishers_are_not_guessed() -> None:
    report = diagnose(make_service())

    assert [one for one in report.findings if one.code == "SP107"] == []
    assert any("publishes=[...]" in one for one in report.not_seen)


def test_more_messages_in_flight_than_sqs_allows_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_CONCURRENCY", "10000")
    monkeypatch.setenv("SMARTPIPE_PROCESSES", "13")
    [found] = find("SP109", make_service())
    assert (found.severity, found.figures["in_flight"]) == ("error", 130_000)

    monkeypatch.setenv("SMARTPIPE_PROCESSES", "12")
    assert find("SP109", make_service()) == []


def test_too_few_slots_for_fair_queues_are_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    [found] = find("SP109", make_service(Tenanted))
    assert found.severity == "note"
    assert find("SP109", make_service()) == []

    monkeypatch.setenv("SMARTPIPE_CONCURRENCY", "30")
    assert find("SP109", make_service(Tenanted)) == []


def test_the_remedy_for_slots_names_the_concurrency_that_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    [found] = find("SP109", make_service(Tenanted))
    assert "[tool.smartpipe.deploy], which wins, or SMARTPIPE_CONCURRENCY" in found.remedy

    monkeypatch.setenv("SMARTPIPE_CONCURRENCY", "1000")
    [few] = find("SP109", make_service(Tenanted, concurrency=3))
    monkeypatch.setenv("SMARTPIPE_PROCESSES", "100")
    [many] = find("SP109", make_service(Tenanted, concurrency=5_000))

    for found in (few, many):
        assert "the concurrency of the handlers of this queue, which wins over SMARTPIPE_CONCURRENCY" in found.remedy
    assert find("SP109", make_service(Tenanted, concurrency=30)) == []


@pytest.mark.parametrize(("spec", "count"), [(None, 1), ("found", 0)])
def test_a_missing_uvloop_is_a_note(spec: str | None, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declared, "find_spec", lambda _: spec)

    assert len(find("SP110", make_service())) == count


def test_the_statement_for_a_kms_key_is_a_note() -> None:
    [found] = find("SP111", make_service(queue=Queue("shop", kms_key="alias/shop")))

    assert found.severity == "note"
    assert "kms:GenerateDataKey" in found.message


def test_the_statement_for_a_kms_key_has_the_topics_of_this_environment_or_the_variables_that_it_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = make_service(queue=Queue("shop", kms_key="alias/shop"))
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "SMARTPIPE_ACCOUNT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SMARTPIPE_PREFIX", "prod-")

    [found] = find("SP111", service)
    assert found.remedy.startswith("set AWS_REGION and SMARTPIPE_ACCOUNT_ID, so that the statement has your topics")

    monkeypatch.setenv("AWS_DEFAULT_REGION", "cn-north-1")
    monkeypatch.setenv("SMARTPIPE_ACCOUNT_ID", "123456789012")
    [found] = find("SP111", service)
    assert found.remedy == "add the statement to the policy of the key"
    assert f'"arn:aws-cn:sns:cn-north-1:123456789012:prod-{orders.name}"' in found.message


def test_a_name_that_is_too_long_only_with_the_prefix_of_this_environment_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = make_service(queue=Queue("q" * 60))
    assert find("SP100", service) == []

    monkeypatch.setenv("SMARTPIPE_PREFIX", "production-of-the-shop-")
    [found] = find("SP100", service)
    assert "AWS allows at most 80" in found.message


@pytest.mark.parametrize(
    ("variable", "value"),
    [("SMARTPIPE_PREFIX", "prod."), ("SMARTPIPE_TRANSPORT", "carrier-pigeon"), ("SMARTPIPE_ACCOUNT_ID", "12")],
)
def test_wrong_names_and_transports_are_findings_too(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)

    [found] = find("SP113", make_service())

    assert found.message.startswith(f"{variable}={value}: ")


def test_a_policy_that_had_to_allow_more_topics_is_a_warning() -> None:
    topics = [Topic(f"a-topic-with-a-name-of-some-length-{number}-{'x' * 150}") for number in range(60)]
    service = Service("shop", timeout_seconds=20)
    for number, topic in enumerate(topics):
        event = type(
            f"Many{number}", (Event,), {"__module__": __name__}, topic=topic, type=f"doctor.many{number}", version="1.0"
        )

        @service.subscribe(event)
        async def handle(event: Any) -> None: ...

    assert [one.resource for one in find("SP112", service)] == ["queue shop", "queue shop-dlq"]


def test_a_topology_that_cannot_be_derived_is_an_error_and_the_rest_is_examined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SMARTPIPE_COMPRESSION", "gzip")
    queue = Queue("shop", filter_policy=FilterPolicy({"data": {"number": [1]}}, scope="MessageBody"))

    report = diagnose(make_service(queue=queue, timeout_seconds=900))

    assert [one.code for one in report.findings if one.severity != "note"] == ["SP108", "SP101"]


def test_two_services_that_claim_one_queue_are_an_error() -> None:
    found = find("SP100", make_service(), make_service(Tenanted))

    assert any("two services are called 'shop'" in one.message for one in found)


def test_a_filter_on_bodies_that_publishers_encode_is_an_error_and_otherwise_a_note(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue = Queue("shop", filter_policy=FilterPolicy({"data": {"number": [1]}}, scope="MessageBody"))
    plain = Queue("shop", filter_policy=FilterPolicy({"shop": ["main"]}))

    assert [one.severity for one in find("SP108", make_service(queue=queue))] == ["note"]
    assert find("SP108", make_service(queue=plain)) == []
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_URL", "s3://bodies")
    assert [one.severity for one in find("SP108", make_service(queue=queue))] == ["error"]
    assert find("SP108", make_service(queue=plain)) == []


def test_more_filter_policies_than_sns_accepts_for_a_topic_are_an_error() -> None:
    many = [make_named(f"s{number}") for number in range(201)]

    [found] = find("SP108", *many)

    assert (found.resource, found.figures["policies"]) == ("topic orders", 201)
    assert find("SP108", *many[1:]) == []


def test_wrong_and_misspelt_settings_are_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_DRAIN_SECONDS", "soon")
    monkeypatch.setenv("SMARTPIPE_PROCESES", "2")

    report = diagnose(make_service(timeout_seconds=900))

    assert [one.code for one in report.findings if one.severity != "note"] == ["SP113", "SP101", "SP114"]
