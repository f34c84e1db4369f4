"""``smartpipe doctor --costs``: the formulas with figures computed by hand, the options, and both formats."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import ConfigError, Event, FilterPolicy, Idempotency, Queue, Service, Topic
from smartpipe.cli.app import app
from smartpipe.doctor.costs.estimate import Estimate, Known, count_receives, estimate
from smartpipe.doctor.costs.options import CostOptions, Rate, read_cost_options
from smartpipe.doctor.costs.prices import PRICES, read_prices
from smartpipe.doctor.costs.report import LEFT_OUT, render_costs_json, render_costs_text
from smartpipe.settings import PayloadSettings, WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE = Path(__file__).parents[2] / "docs" / "costs.md"
priced = Topic("priced")
priced_fifo = Topic("priced-steps", fifo=True)
priced_large = Topic("priced-large", limit_bytes=1_048_576, kms_key="alias/priced")


class Priced(Event, topic=priced, type="priced.happened", version="1.0"):
    number: int


class PricedToo(Event, topic=priced, type="priced.happened-too", version="1.0"):
    number: int


class PricedStep(Event, topic=priced_fifo, type="priced.stepped", version="1.0", key="order"):
    order: str


class PricedNext(Event, topic=priced, type="priced.happened", version="3.0"):
    number: int


@PricedNext.upcast(from_version="2", topic=Topic("priced-old"))
def _(data: dict[str, Any]) -> dict[str, Any]:
    return data


class PricedLarge(Event, topic=priced_large, type="priced.large", version="1.0"):
    number: int


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DRAIN_SECONDS", "PROCESSES", "WAIT_SECONDS", "IDEMPOTENCY_URL", "CLAIM_CHECK_URL", "COMPRESSION"):
        monkeypatch.delenv(f"SMARTPIPE_{name}", raising=False)


def make_service(
    *events: Any, name: str = "priced", queue: Queue | None = None, publishes: Any = (), **options: Any
) -> Service:
    service = Service(name, queue=queue, publishes=publishes)
    for event in events:

        @service.subscribe(event, **options)  # type: ignore[untyped-decorator] # its type depends on the options
        async def handle(event: Any) -> None: ...

    return service


async def handle_raw(message: dict[str, Any]) -> None: ...


def price(
    *services: Service,
    a_day: float = 100_000,
    options: CostOptions | None = None,
    payloads: dict[str, Any] | None = None,
    worker: dict[str, Any] | None = None,
    uses_dynamodb: bool = False,
) -> Estimate:
    options = options or CostOptions(rate=Rate(a_day))
    known = Known(WorkerSettings.load(**worker or {}), PayloadSettings.load(**payloads or {}), uses_dynamodb)
    return estimate(services, options, known)


def lines(found: Estimate) -> dict[str, tuple[float, float]]:
    """Return quantity and dollars by the resource and the name of a line."""
    return {f"{one.resource}: {one.name}": (round(one.quantity, 3), round(one.dollars, 4)) for one in found.items}


def test_three_million_small_messages_a_month_cost_what_the_price_lists_say() -> None:
    found = lines(price(make_service(Priced, publishes=[Priced])))

    assert found["topic priced: publish requests"] == (3_000_000, 1.5)
    assert found["queue priced: receive requests with messages"] == (3_000_000, 1.2)
    # 1.157 messages a second, so 1 + 1.157 * 0.05 deletes are collected in 50 ms
    assert found["queue priced: delete requests"][0] == pytest.approx(3_000_000 / (1 + 100_000 / 86_400 * 0.05))
    # every 30 s, for the queue and its dead-letter queue
    assert found["queue priced: depth of queue and dead-letter queue"] == (172_800, 0.0691)
    assert found["alarms: CloudWatch alarms of the export"] == (3, 0.3)


def test_an_idle_worker_makes_129600_receive_requests_a_month_for_each_queue_and_process() -> None:
    one = price(make_service(Priced), a_day=0)
    four = price(make_service(Priced), options=CostOptions(tasks=2), worker={"processes": 2})

    assert lines(one)["queue priced: empty receive requests"] == (129_600, 0.0518)
    assert lines(four)["queue priced: empty receive requests"][0] == 4 * 129_600
    # only the first process of each task asks for the depth
    assert lines(four)["queue priced: depth of queue and dead-letter queue"][0] == 2 * 172_800
    assert one.idle_dollars == one.dollars == pytest.approx((129_600 + 172_800) * 0.4e-6)


def test_the_idle_cost_does_not_depend_on_rates_and_leaves_out_optional_lines() -> None:
    busy, idle = (price(make_service(Priced, publishes=[Priced]), a_day=one) for one in (1e6, 0))

    assert busy.idle_dollars == idle.dollars == idle.idle_dollars < busy.dollars


def test_short_waits_and_fewer_metrics_change_the_idle_cost() -> None:
    short = price(make_service(Priced), a_day=0, worker={"wait_seconds": 5, "queue_metrics_seconds": 0.0})

    assert lines(short)["queue priced: empty receive requests"] == (518_400, 0.2074)
    assert short.idle_dollars == pytest.approx(0.20736)


@pytest.mark.parametrize("a_day", [1, 4_320, 100_000, 1e8, 1e11])
def test_messages_replace_empty_receives_and_never_add_to_them(a_day: float) -> None:
    found = count_receives(a_day, 1, 20)

    assert 0 <= found.empty <= 129_600
    assert found.full <= a_day * 30
    assert found.full >= a_day * 3


def test_at_one_message_in_each_wait_a_third_of_the_receives_is_empty() -> None:
    found = count_receives(4_320, 1, 20)  # one in 20 s

    assert found.empty / (found.full + found.empty) == pytest.approx(math.exp(-1))


def test_fast_queues_receive_batches() -> None:
    slow, fast = (count_receives(one * 86_400, 1, 20).full / (one * 86_400 * 30) for one in (50, 500))

    assert (slow, fast) == (1, 0.1)


def test_full_batches_divide_publish_receive_and_delete_requests_by_ten() -> None:
    found = price(make_service(Priced, publishes=[Priced]))

    assert found.least_dollars == pytest.approx(300_000 * (0.5e-6 + 0.4e-6 + 0.4e-6) + 172_800 * 0.4e-6, abs=1e-4)


def test_requests_above_64_kib_count_several_times_also_as_batches() -> None:
    rate = Rate(1_000, 65_537)
    found = price(make_service(Priced, publishes=[Priced]), options=CostOptions(rate=rate, messages_per_publish=2))

    assert lines(found)["queue priced: receive requests with messages"][0] == 60_000
    assert lines(found)["topic priced: publish requests"][0] == 15_000 * 3
    small = price(make_service(Priced, publishes=[Priced]), options=CostOptions(Rate(1_000, 1_024), {}, 1, 10))
    assert lines(small)["topic priced: publish requests"][0] == 3_000


def test_a_batch_is_not_longer_than_its_topic_accepts() -> None:
    options = CostOptions(Rate(1_000, 200_000), {}, 1, 10)

    found = lines(price(make_service(Priced, publishes=[Priced]), options=options))

    fitting = 262_144 / 200_000
    assert found["topic priced: publish requests"][0] == pytest.approx(30_000 / fitting * 4, abs=1e-3)


def test_each_service_pays_for_its_queue_and_the_topic_is_paid_once() -> None:
    services = [make_service(Priced, name=name, publishes=[Priced]) for name in ("one", "two")]

    found = lines(price(*services))

    assert found["topic priced: publish requests"][0] == 3_000_000
    assert {name for name in found if "receive requests with" in name} == {
        "queue one: receive requests with messages",
        "queue two: receive requests with messages",
    }


def test_events_have_rates_of_their_own() -> None:
    options = CostOptions(Rate(1_000), {"priced.happened-too": Rate(2_000)})

    found = lines(price(make_service(Priced, PricedToo), options=options))

    assert found["topic priced: publish requests"][0] == 90_000
    assert found["queue priced: receive requests with messages"][0] == 90_000


def test_versions_of_one_type_share_its_rate() -> None:
    found = lines(price(make_service(Priced, PricedNext, publishes=[PricedNext])))

    assert found["topic priced: publish requests"][0] == 3_000_000
    assert "topic priced-old: publish requests" not in found
    assert found["queue priced: receive requests with messages"][0] == 3_000_000
    assert found["alarms: CloudWatch alarms of the export"][0] == 4


def test_fifo_topics_charge_for_gigabytes_and_deliveries() -> None:
    rate = Rate(100_000, 10_240)
    found = lines(price(make_service(PricedStep, queue=Queue("priced", fifo=True)), options=CostOptions(rate)))

    gigabytes = 3_000_000 * 10_240 / 2**30
    assert found["topic priced-steps.fifo: publish requests"] == (3_000_000, 0.9)
    assert found["topic priced-steps.fifo: published GB"] == (round(gigabytes, 3), round(gigabytes * 0.017, 4))
    assert found["queue priced.fifo: messages delivered by FIFO topics"] == (3_000_000, 0.03)
    assert found["queue priced.fifo: receive requests with messages"] == (3_000_000, 1.5)


def test_a_direct_queue_is_sent_to_without_a_topic() -> None:
    queue = Queue("priced", direct=True)

    found = lines(price(make_service(Priced, queue=queue, publishes=[Priced, queue])))

    assert found["queue priced: send requests"] == (3_000_000, 1.2)
    assert not any(name.startswith("topic") for name in found)


def test_topics_and_alarms_of_others_are_not_priced() -> None:
    other = Topic(arn="arn:aws:sns:us-east-1:999999999999:theirs")

    class Theirs(Event, topic=other, type="priced.theirs", version="1.0"):
        number: int

    queue = Queue("priced", existing=True)
    found = lines(price(make_service(Theirs, queue=queue)))

    assert {name.partition(":")[0] for name in found} == {"queue priced"}


def test_a_filter_policy_on_bodies_charges_for_each_gigabyte() -> None:
    queue = Queue("priced", filter_policy=FilterPolicy({"data": {"number": [1]}}, scope="MessageBody"))

    found = lines(price(make_service(Priced, queue=queue)))

    assert found["queue priced: GB read by its filter policy"][1] == pytest.approx(
        3_000_000 * 1_024 / 2**30 * 0.09, abs=1e-4
    )


def test_keys_cost_a_dollar_and_a_call_for_each_principal_in_five_minutes() -> None:
    found = lines(price(make_service(PricedLarge, queue=Queue("priced", kms_key="alias/priced"))))
    managed = lines(price(make_service(Priced, queue=Queue("priced", direct=True, kms_key="alias/aws/sqs"))))
    idle = lines(price(make_service(PricedLarge, queue=Queue("priced", kms_key="alias/priced")), a_day=0))

    assert found["key alias/priced: requests of KMS"] == (8_640 * (2 + 3), 0.1296)
    assert found["key alias/priced: key"] == (1, 1)
    assert "key alias/aws/sqs: key" not in managed
    assert {name: value for name, value in idle.items() if name.startswith("key")} == {"key alias/priced: key": (1, 1)}


def test_bodies_in_s3_are_written_once_and_read_by_each_queue() -> None:
    services = [make_service(Priced, name=name, publishes=[Priced]) for name in ("one", "two")]
    payloads = {"claim_check_url": "s3://bodies", "claim_check_days": 10}
    options = CostOptions(Rate(1_000, 500_000))

    found = lines(price(*services, options=options, payloads=payloads))

    assert found["topic priced: bodies written to S3"] == (30_000, 0.15)
    assert found["queue one: bodies read from S3"] == found["queue two: bodies read from S3"] == (30_000, 0.012)
    gigabytes = 1_000 * 500_000 * 10 / 2**30
    assert found["topic priced: GB in S3, kept for 10 days"] == (round(gigabytes, 3), round(gigabytes * 0.023, 4))
    # only the pointers are published and received
    assert found["topic priced: publish requests"][0] == found["queue one: receive requests with messages"][0] == 30_000


def test_bodies_of_a_direct_queue_are_written_to_s3_and_only_their_pointers_are_sent() -> None:
    service = make_service(Priced, queue=Queue("priced", direct=True))
    payloads = {"claim_check_url": "s3://bodies", "claim_check_days": 10}

    found = lines(price(service, options=CostOptions(Rate(1_000, 1_500_000)), payloads=payloads))

    assert found["queue priced: send requests"] == (30_000, 0.012)
    assert found["queue priced: bodies written to S3"] == (30_000, 0.15)
    assert found["queue priced: bodies read from S3"] == (30_000, 0.012)
    assert found["queue priced: GB in S3, kept for 10 days"][0] == round(1_000 * 1_500_000 * 10 / 2**30, 3)


def test_a_direct_queue_takes_larger_bodies_than_the_topic_of_the_event() -> None:
    service = make_service(Priced, queue=Queue("priced", direct=True))
    options = CostOptions(Rate(1_000, 500_000))  # the topic accepts 256 KiB, and the queue 1 MiB

    found = lines(price(service, options=options, payloads={"claim_check_url": "s3://bodies"}))

    assert not [name for name in found if "S3" in name]
    assert found["queue priced: send requests"][0] == 30_000 * 8  # 500,000 bytes are 8 chunks of 64 KiB
    assert found["queue priced: receive requests with messages"][0] == 30_000 * 8


def test_versions_of_a_type_share_its_rate() -> None:
    class PricedV2(Event, topic=priced_large, type="priced.happened", version="2.0"):
        number: int

    once = lines(price(make_service(Priced, queue=Queue("priced", kms_key="alias/queue")), a_day=10))
    both = lines(price(make_service(Priced, PricedV2, queue=Queue("priced", kms_key="alias/queue")), a_day=10))

    queue = {name: value for name, value in once.items() if name.startswith(("queue", "key alias/queue"))}
    assert {name: value for name, value in both.items() if name.startswith(("queue", "key alias/queue"))} == queue


def test_idempotent_handlers_write_twice_to_dynamodb_if_it_is_their_store() -> None:
    service = make_service(Priced, idempotent=Idempotency(ttl_seconds=86_400))

    found = lines(price(service, uses_dynamodb=True))

    assert found["queue priced: writes of claims in DynamoDB"] == (6_000_000, 3.75)
    assert found["queue priced: GB of claims in DynamoDB"][0] == pytest.approx(100_000 * 400 / 2**30, abs=1e-3)
    assert not any("DynamoDB" in name for name in lines(price(service)))
    assert not any("DynamoDB" in name for name in lines(price(make_service(Priced), uses_dynamodb=True)))


def read(text: str, messages_per_day: float | None = None, types: Sequence[str] = ("a.b", "a.c")) -> CostOptions:
    import tomllib

    return read_cost_options(tomllib.loads(text), types, messages_per_day)


def test_options_come_from_pyproject_toml_and_the_command_line_wins() -> None:
    text = """
    [tool.smartpipe.doctor.costs]
    messages_per_day = 1000
    message_bytes = 2048
    tasks = 3
    messages_per_publish = 4.5
    events."a.b".messages_per_day = 5
    prices.sqs_standard = 0.44
    """

    assert read(text) == CostOptions(
        Rate(1_000, 2_048), {"a.b": Rate(5, 2_048)}, 3, 4.5, replace(PRICES, sqs_standard=0.44)
    )
    assert read(text, 7).rate == Rate(7, 2_048)
    assert read("", 7) == CostOptions(Rate(7))


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        ("", "the rates of messages are unknown: pass --messages-per-day"),
        ("messages_per_day = -1", "messages_per_day = -1 is wrong: write a number from 0 to"),
        ("messages_per_day = true", "messages_per_day = True is wrong"),
        ("messages_per_day = inf", "messages_per_day = inf is wrong"),
        ("message_bytes = 1.5", "message_bytes = 1.5 is wrong: write a whole number from 1 to"),
        ("messages_per_publish = 11", "messages_per_publish = 11 is wrong: write a number from 1 to 10"),
        ("message_per_day = 1", "message_per_day is not an option; did you mean messages_per_day?"),
        ('events."a.x".messages_per_day = 1', '"a.x": no examined service has this event; did you mean a.'),
        ('events."a.b" = 1', '"a.b" is not a table'),
        ("events = 1", "events] is not a table"),
        ('events."a.b".rate = 1', "rate is not an option; use one of messages_per_day, message_bytes"),
        ("prices = 1", "prices] is not a table"),
        ("prices.sqs = 1", "sqs is not a price: use one of sqs_standard"),
        ('prices.alarm = "cheap"', "alarm = 'cheap' is not a price: write US dollars, such as 0.1"),
        ("prices.alarm = -1", "alarm = -1 is not a price"),
        ("prices.alarm = 1e308", "alarm = 1e+308 is not a price"),
        (f"prices.alarm = {10**400}", "is not a price"),
    ],
)
def test_a_wrong_option_is_an_error_that_names_it(entry: str, error: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(error)):
        read(f"[tool.smartpipe.doctor.costs]\n{entry}")


def test_all_wrong_options_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        read("[tool.smartpipe.doctor.costs]\ntasks = -1\nmessage_bytes = 0\nprices.alarm = -1\nx = 1")

    assert len(caught.value.problems) == 4
    with pytest.raises(ConfigError) as caught:
        read("[tool.smartpipe.doctor.costs]\nmessages_per_day = 1\n" + "".join(f"{one} = 1\n" for one in "zkyaxb"))
    assert [one.partition("] ")[2][0] for one in caught.value.problems] == list("abkxyz")
    with pytest.raises(ConfigError):
        read("tool.smartpipe.doctor.costs = 1")
    with pytest.raises(ConfigError):
        read_prices([], "[x]")


def test_the_text_names_the_date_of_the_prices_the_assumptions_and_the_parts_that_it_leaves_out() -> None:
    options = CostOptions(Rate(100_000), prices=replace(PRICES, sqs_standard=0.8))

    text = render_costs_text(price(make_service(Priced), options=options))

    assert "at list prices of November 2026 for us-east-1, changed by you: sqs_standard\n" in text
    assert "assumed: 100,000 messages a day of each event, 1,024 bytes each\n" in text
    assert all(f"left out: {one}\n" in text for one in LEFT_OUT)
    assert "optional: CloudWatch alarms of the export" in text


def test_messages_of_raw_handlers_have_no_rate_and_both_formats_say_so() -> None:
    service = make_service(Priced)
    uploads = Queue("arn:aws:sqs:us-east-1:210987654321:uploads", existing=True)
    service.subscribe_raw(dict, queue=uploads)(handle_raw)
    sentence = "messages that raw handlers take, because they have no event type with a rate: queue uploads"

    assert f"left out: {sentence}\n" in render_costs_text(price(service))
    assert sentence in json.loads(render_costs_json(price(service)))["left_out"]
    assert "raw handlers" not in render_costs_text(price(make_service(Priced)))


def test_the_surcharge_of_fair_queues_is_left_out_and_both_formats_say_so() -> None:
    class PricedTenant(Event, topic=priced, type="priced.tenant", version="1.0", tenant="customer"):
        customer: str

    sentence = "the surcharge of SQS for fair queues, which messages with a tenant use: queues one, two"
    found = price(*(make_service(PricedTenant, name=name) for name in ("one", "two")))

    assert f"left out: {sentence}\n" in render_costs_text(found)
    assert sentence in json.loads(render_costs_json(found))["left_out"]
    assert "fair queues" not in render_costs_text(price(make_service(Priced)))


@pytest.mark.parametrize(("rate", "text"), [(0.5, "0.5"), (1_234_567, "1,234,567"), (2e9, "2,000,000,000")])
def test_rates_of_millions_of_messages_are_written_in_full(rate: float, text: str) -> None:
    options = CostOptions(Rate(rate), {"costs.priced": Rate(rate)})

    report = render_costs_text(price(make_service(Priced), options=options))

    assert f"assumed: {text} messages a day of each event" in report
    assert f"assumed: {text} messages a day of costs.priced" in report


def test_json_has_every_line_and_the_sums() -> None:
    found = price(make_service(Priced, publishes=[Priced]))

    document = json.loads(render_costs_json(found))

    assert document["prices"] == {"date": "November 2026", "region": "us-east-1", "changed": []}
    assert document["dollars_per_month"] == pytest.approx(found.dollars, abs=1e-4)
    counted = sum(one["dollars_per_month"] for one in document["items"] if not one["optional"])
    assert counted == pytest.approx(document["dollars_per_month"], abs=1e-3)


MODULE = """
from smartpipe import Event, Service, Topic

class OrderPlaced(Event, topic=Topic("orders"), type="order.placed", version="1.0"):
    number: int

billing = Service("billing", publishes=[OrderPlaced])

@billing.subscribe(OrderPlaced)
async def charge(event: OrderPlaced) -> None: ...
"""


@pytest.fixture
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "costly_shop.py").write_text(MODULE.replace("order.placed", "costly.placed"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def run(*arguments: str) -> int:
    result = app(["doctor", *arguments], standalone_mode=False)
    return result or 0


@pytest.mark.usefixtures("_project")
def test_the_example_on_the_page_is_the_output_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--costs", "--messages-per-day", "100000", "costly_shop:billing") == 0

    [example] = re.findall(r"```text\n(Estimated cost.*?)```", PAGE.read_text(), re.DOTALL)
    assert capsys.readouterr().out == example


@pytest.mark.usefixtures("_project")
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--messages-per-day", "5"), "add --costs"),
        (("--costs", "--live", "--messages-per-day", "5"), "run doctor again for --live"),
        (("--costs", "--manifest", "Dockerfile", "--messages-per-day", "5"), "run doctor again for --manifest"),
        (
            ("--costs", "--format", "sarif", "--messages-per-day", "5"),
            "--format 'sarif' is unknown: use one of text, json",
        ),
        (("--costs",), "the rates of messages are unknown"),
    ],
)
def test_options_that_contradict_each_other_are_errors(arguments: tuple[str, ...], error: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(error)):
        run(*arguments, "costly_shop:billing")


def test_the_page_has_each_price() -> None:
    page = PAGE.read_text()

    for name, value in vars(PRICES).items():
        assert re.search(rf"^\| `{name}` \| .* \| ({value:g}|{value:.2f}) \|$", page, re.MULTILINE), name
