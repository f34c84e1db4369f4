"""Single calls of AWS for the topology: refused ones, repeated ones, and the ages of messages from CloudWatch."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe.errors import TransportError
from smartpipe.topology.aws import operations
from smartpipe.topology.aws.calls import Denied, Reading, call_for, call_with_retries
from smartpipe.topology.aws.cloudwatch import oldest_ages
from smartpipe.topology.aws.operations import OPERATIONS, carry_out
from smartpipe.topology.changes import Change
from smartpipe.topology.kinds import KINDS
from smartpipe.topology.resources import Denial
from tests.support.scripted_aws import ScriptedAws, refusal
from tests.support.virtual_time import put_retries_on_virtual_time, run_virtually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

QUEUE, TOPIC = "arn:aws:sqs:eu-west-1:123456789012:q", "arn:aws:sns:eu-west-1:123456789012:t"
CHANGE = Change("create", "subscription", (TOPIC, QUEUE), {}, {})


def raising(*errors: Exception) -> Callable[[], Awaitable[Any]]:
    """Return a call that raises each of *errors*, and then returns its number."""
    left, made = list(errors), [0]

    async def call() -> int:
        made[0] += 1
        if left:
            raise left.pop(0)
        return made[0]

    return call


def reading() -> Reading:
    session: Any = ScriptedAws()
    return Reading(session)


def test_tags_are_read_unless_they_are_not_wanted() -> None:
    session: Any = ScriptedAws()

    assert (Reading(session).with_tags, Reading(session, with_tags=False).with_tags) == (True, False)
    assert Reading(session).session is session


@pytest.mark.parametrize("code", ["QueueDoesNotExist", "NotFound"])
async def test_a_resource_that_does_not_exist_is_none(code: str) -> None:
    one = reading()

    assert await one.call(raising(refusal(code)), "sqs:Get", QUEUE) is None
    assert (one.denials, one.notes) == ([], [])
    one.raise_if_denied()


async def test_an_invalid_parameter_means_a_missing_resource_only_if_the_caller_says_so() -> None:
    one = reading()

    assert await one.call(raising(refusal("InvalidParameter")), "sns:Get", TOPIC, invalid_is_missing=True) is None
    with pytest.raises(TransportError) as raised:
        await one.call(raising(refusal("InvalidParameter")), "sns:Get", TOPIC)
    assert raised.value.code == "InvalidParameter"
    with pytest.raises(TransportError):
        await one.call(raising(refusal("InvalidAddress")), "sns:Get", TOPIC, invalid_is_missing=True)


async def test_refused_calls_are_collected_and_reported_together() -> None:
    one = reading()
    await one.call(raising(refusal("AccessDenied", "you may not")), "sqs:Get", QUEUE)
    await one.call(raising(refusal("AccessDenied", "you may not")), "sns:Get", TOPIC)

    assert [(denial.action, denial.resource) for denial in one.denials] == [("sqs:Get", QUEUE), ("sns:Get", TOPIC)]
    assert "you may not" in one.denials[0].message
    with pytest.raises(Denied) as raised:
        one.raise_if_denied()
    assert raised.value.denials == tuple(one.denials)
    assert (raised.value.code, raised.value.retryable) == ("AccessDenied", False)
    assert f"your credentials may not call sqs:Get on {QUEUE}" in str(raised.value)


async def test_refused_calls_for_one_resource_become_a_note() -> None:
    one = reading()
    one.denials = [Denial("sqs:A", QUEUE), Denial("sns:B", TOPIC), Denial("sqs:C", QUEUE)]

    assert one.turn_denials_into_note(QUEUE, "is kept")
    assert not one.turn_denials_into_note(QUEUE, "is kept")

    assert one.denials == [Denial("sns:B", TOPIC)]
    assert one.notes == [f"{QUEUE} is kept (sqs:A)"]


async def test_each_key_is_read_once_and_missing_resources_are_left_out() -> None:
    read: list[str] = []

    async def read_one(key: str) -> int | None:
        read.append(key)
        return None if key == "missing" else len(key)

    assert await reading().each(["a", "missing", "bb", "a"], read_one) == {"a": 1, "bb": 2}
    assert read == ["a", "missing", "bb"]


async def test_at_most_eight_calls_run_at_the_same_time() -> None:
    one = reading()
    running, highest = 0, 0

    async def call() -> None:
        nonlocal running, highest
        running += 1
        highest = max(highest, running)
        await asyncio.sleep(0)
        running -= 1

    await asyncio.gather(*(one.call(call, "sqs:Get", QUEUE) for _ in range(20)))

    assert highest == 8


def test_a_throttled_call_is_repeated_for_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    put_retries_on_virtual_time(monkeypatch)

    async def main() -> float:
        loop = asyncio.get_running_loop()
        assert await call_with_retries(raising(refusal("Throttling"), refusal("Throttling")), "sqs:Get", "q") == 3
        began = loop.time()
        with pytest.raises(TransportError) as raised:
            await call_with_retries(raising(*[refusal("Throttling")] * 1_000), "sqs:Get", "q")
        assert raised.value.retryable
        return loop.time() - began

    assert 10 <= run_virtually(main()) <= 15


async def test_other_errors_are_not_repeated() -> None:
    with pytest.raises(TransportError) as raised:
        await call_with_retries(raising(refusal("InvalidParameter", "wrong")), "sqs:Get", "q")

    assert raised.value.code == "InvalidParameter"


@pytest.mark.parametrize(
    ("message", "action", "resource"),
    [
        ("you may not", "sns:Subscribe", TOPIC),
        ("User x is not authorized to perform: sns:GetTopicAttributes on resource: y", "sns:GetTopicAttributes", TOPIC),
        ("User x is not authorized to perform: sns:SetSubscriptionAttributes", "sns:SetSubscriptionAttributes", "*"),
        ("User x is not authorized to perform: sns:GetSubscriptionAttributes", "sns:GetSubscriptionAttributes", "*"),
        ("User x is not authorized to perform: sns:Unsubscribe on resource: z", "sns:Unsubscribe", "*"),
    ],
)
async def test_a_refused_change_names_the_action_of_awss_error_and_its_resource(
    message: str, action: str, resource: str
) -> None:
    with pytest.raises(Denied) as raised:
        await call_for(CHANGE, raising(refusal("AccessDenied", message))(), "sns:Subscribe")

    [denial] = raised.value.denials
    assert (denial.action, denial.resource) == (action, resource)
    assert message in denial.message


async def test_a_change_that_fails_is_not_repeated_and_names_its_resource() -> None:
    call = raising(refusal("Throttling", "slow"))

    with pytest.raises(TransportError) as raised:
        await call_for(CHANGE, call(), "sns:Subscribe")

    assert (raised.value.code, raised.value.retryable) == ("Throttling", True)
    assert await call_for(CHANGE, call(), "sns:Subscribe") == 2


def test_every_kind_has_its_calls_and_none_deletes_what_is_always_kept() -> None:
    assert list(OPERATIONS) == list(KINDS)
    for name, row in OPERATIONS.items():
        assert (row.read is None) != (row.find is None)
        assert (row.delete is None) == bool(KINDS[name].kept_because)


@pytest.mark.parametrize("action", ["create", "update", "delete"])
async def test_a_change_is_carried_out_by_the_call_of_its_action(action: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def write(name: str) -> Any:
        async def call(session: str, change: Change) -> None:
            assert (session, change.action) == ("session", action)
            made.append(name)

        return call

    row = operations.Operations(create=write("create"), update=write("update"), delete=write("delete"))
    monkeypatch.setitem(OPERATIONS, "queue", row)
    session: Any = "session"

    await carry_out(session, Change(action, "queue", (QUEUE,), {}, {}))

    assert made == [action]


async def test_a_table_is_never_deleted() -> None:
    session: Any = ScriptedAws()

    with pytest.raises(NotImplementedError, match="table resources are never deleted"):
        await carry_out(session, Change("delete", "table", ("arn",), {}, {}))


@pytest.mark.parametrize(
    ("action", "code", "fails"),
    [
        ("delete", "NotFound", False),
        ("delete", "QueueDoesNotExist", False),
        ("delete", "InvalidParameter", True),
        ("update", "NotFound", True),
    ],
)
async def test_a_resource_that_is_gone_is_deleted_already(
    action: Any, code: str, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise TransportError(code, "gone", retryable=False)

    monkeypatch.setitem(OPERATIONS, "queue", operations.Operations(create=fail, update=fail, delete=fail))
    session: Any = ScriptedAws()
    failed = False
    try:
        await carry_out(session, Change(action, "queue", (QUEUE,), {}, {}))
    except TransportError:
        failed = True

    assert failed == fails


def metric(number: int, *values: float) -> dict[str, Any]:
    """Return the values of a query, the latest in the middle."""
    moments = [datetime(2026, 11, 27, 9, minute, tzinfo=UTC) for minute in (2, 3, 1)]
    return {"Id": f"q{number}", "Timestamps": moments[: len(values)], "Values": list(values)}


async def test_the_age_of_a_queues_oldest_message_is_the_latest_value() -> None:
    aws: Any = ScriptedAws(get_metric_data={"MetricDataResults": [metric(0, 9, 5, 7), metric(1), metric(2, 60)]})

    assert await oldest_ages(aws, ["a", "b", "c"]) == {"a": 5.0, "c": 60.0}

    [call] = aws.made("get_metric_data")
    assert call["EndTime"] - call["StartTime"] == timedelta(minutes=10)
    assert abs(datetime.now(UTC) - call["EndTime"]) < timedelta(minutes=1)
    assert call["MetricDataQueries"][1] == {
        "Id": "q1",
        "MetricStat": {
            "Metric": {
                "Namespace": "AWS/SQS",
                "MetricName": "ApproximateAgeOfOldestMessage",
                "Dimensions": [{"Name": "QueueName", "Value": "b"}],
            },
            "Period": 60,
            "Stat": "Maximum",
        },
        "ReturnData": True,
    }
    assert aws.clients == [("cloudwatch", None)]


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (500, [500]), (501, [500, 1]), (1_001, [500, 500, 1])])
async def test_one_call_asks_for_at_most_500_queues(count: int, sizes: list[int]) -> None:
    aws: Any = ScriptedAws(get_metric_data={"MetricDataResults": [metric(0, 3)]})
    names = [f"queue-{number}" for number in range(count)]

    found = await oldest_ages(aws, names)

    assert [len(call["MetricDataQueries"]) for call in aws.made("get_metric_data")] == sizes
    assert found == dict.fromkeys(names[::500], 3.0)


async def test_a_response_without_results_has_no_ages() -> None:
    aws: Any = ScriptedAws()

    assert await oldest_ages(aws, ["a"]) == {}
