"""How tasks of Amazon ECS follow their queues: the expressions of the template, evaluated on numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest

from smartpipe import Queue, Service
from tests.support.ecs import PROMISE, SIZES, metrics_of, properties, subscribe, template_of
from tests.support.metric_math import evaluate

TARGET = 1_200  # 10 slots / 0.5 s * 60 s


def template(*queues: Queue | None, **options: Any) -> dict[str, Any]:
    """Return the template of a service with ten slots in each queue and a target of 1,200 messages for each task."""
    return template_of([subscribe(Service("parcels"), *queues)], {**SIZES, **PROMISE, **options})


def load(*queues: Queue | None, **points: float) -> float | None:
    """Return the value that target tracking keeps at 100."""
    return evaluate(metrics_of(template(*queues), "ParcelsBacklogPolicy"), points)


def needed(*queues: Queue | None, **points: float) -> float | None:
    """Return the value of the alarm that starts tasks."""
    return evaluate(metrics_of(template(*queues, min=0), "ParcelsWakeAlarm"), points)


def waiting(*queues: Queue | None, **points: float) -> float | None:
    """Return the value of the alarm that ends the tasks."""
    return evaluate(metrics_of(template(*queues, min=0), "ParcelsSleepAlarm"), points)


def test_a_backlog_of_the_target_for_each_task_is_a_load_of_100_percent() -> None:
    assert load(visible1=TARGET, tasks=1) == 100
    assert load(visible1=4 * TARGET, tasks=4) == 100
    assert load(visible1=3 * TARGET, tasks=1) == 300  # 3 tasks are needed
    assert load(visible1=0, flight1=0, tasks=3) == 0


def test_without_a_running_task_nothing_changes_however_many_messages_wait() -> None:
    assert load(visible1=10**6, tasks=0) is None
    assert load(visible1=0, tasks=0) is None
    assert load(visible1=10**6, flight1=5) is None  # a service without tasks has no metrics


def test_a_minute_whose_tasks_are_not_counted_yet_has_no_value_that_could_hide_a_backlog() -> None:
    assert load(visible1=10 * TARGET, flight1=10) is None
    assert load(None, Queue("express"), visible1=10 * TARGET, visible2=0, flight1=10) is None


def test_messages_in_flight_keep_the_tasks_that_handle_them_and_never_add_one() -> None:
    assert load(visible1=0, flight1=30, tasks=3) == 100  # all 30 slots are taken
    assert load(visible1=0, flight1=15, tasks=3) == 50  # half of them: 2 tasks suffice
    assert load(visible1=0, flight1=5_000, tasks=3) == 100  # waiting for their next attempt


def test_a_missing_number_of_messages_removes_no_task() -> None:
    assert load(flight1=0, tasks=3) is None
    assert load(flight1=5, tasks=3) is None
    assert load(visible1=0, flight1=0) is None
    assert load(visible1=0, tasks=3) == 0  # SQS sends the messages in flight only while there are any


def test_the_queue_that_needs_most_decides_with_its_own_target() -> None:
    queues = (None, Queue("express"))

    assert load(*queues, visible1=0, visible2=2 * TARGET, tasks=1) == 200
    assert load(*queues, visible1=3 * TARGET, visible2=TARGET, tasks=1) == 300
    assert load(*queues, visible1=0, visible2=0, flight2=10, tasks=1) == 100


def test_more_queues_than_an_alarm_can_read_are_tracked_by_several_policies() -> None:
    found = template(*(Queue(f"parcels-{number}") for number in range(9)))

    sizes = [len(metrics_of(found, f"ParcelsBacklog{number}Policy")) for number in ("", 2, 3)]
    assert sizes == [2 * 4 + 1 + 5, 2 * 4 + 1 + 5, 2 + 1 + 5]
    points = {f"visible{number}": 0.0 for number in range(1, 5)}
    assert evaluate(metrics_of(found, "ParcelsBacklog2Policy"), {**points, "visible4": TARGET, "tasks": 1}) == 100


def test_messages_start_tasks_only_while_none_is_wanted() -> None:
    assert needed(visible1=1, desired=0) == pytest.approx(1 / TARGET)
    assert needed(visible1=5 * TARGET, desired=0) == 5
    assert needed(visible1=5 * TARGET) == 5  # a service without tasks may have no metrics
    assert needed(visible1=5 * TARGET, desired=1) == 0
    assert needed(visible1=5 * TARGET, flight1=1) == 0  # a task works, and its metrics are late
    assert needed(None, Queue("express"), visible1=TARGET, flight2=1) == 0
    assert needed(visible1=0, desired=0) == 0
    assert needed(None, Queue("express"), visible2=2 * TARGET, desired=0) == 2  # the other queue is inactive

    alarm = properties(template(min=0), "ParcelsWakeAlarm")
    assert (alarm["ComparisonOperator"], alarm["Threshold"]) == ("GreaterThanThreshold", 0)
    assert (alarm["TreatMissingData"], alarm["EvaluationPeriods"], alarm["DatapointsToAlarm"]) == ("notBreaching", 2, 2)
    policy = properties(template(min=0), "ParcelsWakePolicy")["StepScalingPolicyConfiguration"]
    assert (policy["AdjustmentType"], policy["Cooldown"]) == ("ChangeInCapacity", 300)


@pytest.mark.parametrize("maximum", [1, 2, 3, 8, 10, 10_000])
def test_a_backlog_without_tasks_starts_enough_tasks_and_never_more_than_the_maximum(maximum: int) -> None:
    policy = properties(template(min=0, max=maximum), "ParcelsWakePolicy")["StepScalingPolicyConfiguration"]
    steps = policy["StepAdjustments"]

    assert len(steps) <= 20
    for wanted in (0.001, 0.5, 1.5, 2.5, 7.9, 99.0, 9_999.5):
        [adjustment] = [
            one["ScalingAdjustment"]
            for one in steps
            if one["MetricIntervalLowerBound"] <= wanted < one.get("MetricIntervalUpperBound", math.inf)
        ]
        assert min(math.ceil(wanted), maximum) <= adjustment <= min(2 * math.ceil(wanted), maximum)


def test_tasks_end_only_if_nothing_waits_and_nothing_is_in_flight_for_at_least_the_grace_period() -> None:
    assert waiting(visible1=0) == 0
    assert waiting(visible1=0, flight1=0) == 0
    assert waiting(visible1=0, flight1=1) == 1
    assert waiting(visible1=1) == 1
    assert waiting(flight1=0) is None  # no data ends no task
    assert waiting(None, Queue("express"), visible1=0) is None
    assert waiting(None, Queue("express"), visible1=0, visible2=0, flight2=3) == 3

    alarm = properties(template(min=0), "ParcelsSleepAlarm")
    assert (alarm["ComparisonOperator"], alarm["Threshold"]) == ("LessThanOrEqualToThreshold", 0)
    assert (alarm["TreatMissingData"], alarm["EvaluationPeriods"], alarm["DatapointsToAlarm"]) == ("notBreaching", 5, 5)
    slow = properties(template(min=0, platform="ec2", drain_seconds=900), "ParcelsSleepAlarm")
    assert slow["EvaluationPeriods"] * 60 >= 905


def test_the_policies_end_all_tasks_by_steps_and_only_with_a_minimum_of_zero() -> None:
    sleep = properties(template(min=0), "ParcelsSleepPolicy")["StepScalingPolicyConfiguration"]

    assert sleep["AdjustmentType"] == "ExactCapacity"
    assert sleep["StepAdjustments"] == [{"MetricIntervalUpperBound": 0, "ScalingAdjustment": 0}]
    names = template(min=1)["Resources"]
    assert "ParcelsBacklogPolicy" in names
    assert not {"ParcelsWakePolicy", "ParcelsWakeAlarm", "ParcelsSleepPolicy", "ParcelsSleepAlarm"} & names.keys()


def test_scaling_in_waits_for_at_least_the_grace_period() -> None:
    def cooldowns(**options: Any) -> tuple[int, int]:
        policy = properties(template(**options), "ParcelsBacklogPolicy")["TargetTrackingScalingPolicyConfiguration"]
        return policy["ScaleOutCooldown"], policy["ScaleInCooldown"]

    assert cooldowns() == (60, 300)
    assert cooldowns(platform="ec2", drain_seconds=900) == (60, 905)


def test_the_alarm_for_missing_tasks_is_also_raised_without_container_insights_unless_zero_is_allowed() -> None:
    alarm = properties(template(), "ParcelsTasksAlarm")

    assert evaluate(alarm["Metrics"], {"desired": 3, "running": 2}) == 1
    assert evaluate(alarm["Metrics"], {"desired": 3, "running": 3}) == 0
    assert evaluate(alarm["Metrics"], {"desired": 3}) == 3
    assert alarm["TreatMissingData"] == "breaching"
    assert properties(template(min=0), "ParcelsTasksAlarm")["TreatMissingData"] == "notBreaching"


def test_the_alarm_for_the_promise_allows_for_the_delay_of_the_queue() -> None:
    assert properties(template(), "ParcelsAgeAlarm")["Threshold"] == 60
    assert properties(template(Queue("late", delay_seconds=900)), "ParcelsAgeAlarm")["Threshold"] == 960


def test_each_queue_has_two_metrics_with_its_name_on_aws() -> None:
    queues = [one["MetricStat"]["Metric"] for one in metrics_of(template(), "ParcelsBacklogPolicy")[:2]]

    assert [(one["Namespace"], one["MetricName"], one["Dimensions"]) for one in queues] == [
        ("AWS/SQS", f"ApproximateNumberOfMessages{kind}", [{"Name": "QueueName", "Value": "prod-parcels"}])
        for kind in ("Visible", "NotVisible")
    ]


def run_minutes(arrivals: list[int], minutes: int) -> list[tuple[int, int]]:
    """Return tasks and visible messages after each minute, if scaling acts on the values of the minute before.

    A task handles 1,200 messages a minute, and runs a minute after it is wanted. A service without running tasks has no
    metrics. Target tracking scales out after three minutes above 100, and in after fifteen below 90, as AWS documents.
    """
    found = template(min=0, max=10)
    steps = properties(found, "ParcelsWakePolicy")["StepScalingPolicyConfiguration"]["StepAdjustments"]
    desired = running = visible = flight = above = below = idle = waking = cooled = 0
    history = []
    for minute in range(minutes):
        points = {"visible1": float(visible), "flight1": float(flight)}
        load = evaluate(
            metrics_of(found, "ParcelsBacklogPolicy"), {**points, **({"tasks": running} if running else {})}
        )
        asked = {"desired": float(desired)} if running else {}
        wanted = evaluate(metrics_of(found, "ParcelsWakeAlarm"), {**points, **asked}) or 0
        idle = idle + 1 if evaluate(metrics_of(found, "ParcelsSleepAlarm"), points) == 0 else 0
        waking = waking + 1 if wanted > 0 else 0
        above = above + 1 if load is not None and load > 100 else 0
        below = below + 1 if load is not None and load < 90 else 0
        before = desired
        if waking >= 2 and minute >= cooled:
            desired += [one for one in steps if one["MetricIntervalLowerBound"] <= wanted][-1]["ScalingAdjustment"]
            cooled = minute + 5
        elif idle >= 5:
            assert flight == 0
            desired = 0
        elif load is not None and (above >= 3 or below >= 15):
            desired = max(0, math.ceil(running * load / 100))
        desired = min(10, desired)
        visible += arrivals[minute] if minute < len(arrivals) else 0
        running = min(before, desired)
        handled = min(visible, running * TARGET)
        visible -= handled
        flight = math.ceil(handled * 0.5 / 60)  # Little's law
        history.append((desired, visible))
    return history


def test_a_burst_into_an_idle_service_is_handled_and_the_service_is_idle_again() -> None:
    history = run_minutes([12_000], 30)

    assert max(tasks for tasks, _ in history) == 10
    assert next(minute for minute, (_, visible) in enumerate(history) if not visible) <= 5
    assert history[-1] == (0, 0)


def test_a_steady_rate_keeps_as_many_tasks_as_it_needs() -> None:
    history = run_minutes([3_000] * 120, 120)

    assert {tasks for tasks, _ in history[60:]} == {3}  # 2.5 are busy
    assert all(visible == 0 for _, visible in history[60:])
