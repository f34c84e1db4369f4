"""How the tasks of a service follow its queues on Amazon ECS: expressions of metric math, steps and alarms. Pure.

Sources: Application Auto Scaling, "Create a target tracking scaling policy using metric math" and "How step scaling
works"; Amazon CloudWatch, "Use metric math" and "Create an alarm based on a metric math expression"; Amazon SQS,
"Available CloudWatch metrics"; Amazon ECS, "Container Insights metrics".
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from smartpipe.names import physical_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from smartpipe.deploy.workloads import Scaling, Workload

QUEUES = "AWS/SQS"
TASKS = "ECS/ContainerInsights"
"""The namespaces of the metrics."""
TARGET = 100
"""The value of the tracked expression at which the number of tasks is right, in percent."""
QUEUES_PER_ALARM = 4
"""An alarm takes ten metrics and ten expressions. A queue needs two metrics beside the number of tasks."""
SCALE_OUT_COOLDOWN_SECONDS = 60
WAKE_COOLDOWN_SECONDS = 300
"""Longer than the delay of the metric DesiredTaskCount, so that tasks that are starting are not started again."""
MIN_COOLDOWN_SECONDS = 300
WAKE_MINUTES = 2
"""More than one, so that a message at the moment of a measurement does not start a task beside those that run."""
MIN_IDLE_MINUTES = 5
ALARM_MINUTES = 10


class Metric(NamedTuple):
    """One metric of a queue, or of the service if *queue* is None.

    Args:
        queue: The name of the queue on AWS.
        statistic: The statistic over a minute.
    """

    id: str
    name: str
    statistic: str
    queue: str | None = None

    @property
    def namespace(self) -> str:
        """The namespace of the metric."""
        return TASKS if self.queue is None else QUEUES


class Formula(NamedTuple):
    """Metrics, and expressions of metric math over them. The last expression is the result.

    Args:
        expressions: The expressions by their ids.
    """

    metrics: tuple[Metric, ...]
    expressions: dict[str, str]

    @property
    def result(self) -> str:
        """The id of the value that is compared: the last expression, or the only metric."""
        return [*self.expressions][-1] if self.expressions else self.metrics[0].id


class Tracking(NamedTuple):
    """A target tracking policy: keeps the result of the formula at 100 percent."""

    name: str
    formula: Formula
    scale_out_cooldown_seconds: int
    scale_in_cooldown_seconds: int


class Step(NamedTuple):
    """An adjustment from *lower* to below *upper*; None: without a bound."""

    lower: int | None
    upper: int | None
    adjustment: int


class Steps(NamedTuple):
    """A step scaling policy.

    Args:
        adjustment_type: ``ChangeInCapacity`` adds tasks, ``ExactCapacity`` sets their number.
        steps: The adjustments for the distance of the alarm's value from its threshold.
    """

    name: str
    adjustment_type: str
    cooldown_seconds: int
    steps: tuple[Step, ...]


class Alarm(NamedTuple):
    """An alarm.

    Args:
        key: Its name in the template.
        above: Whether it is raised above the threshold, and not at or below it.
        minutes: In all of these minutes, one after the other.
        missing: How a missing value counts: ``breaching`` or ``notBreaching``.
        steps: The name of the step scaling policy that it starts; None if it informs people.
    """

    key: str
    name: str
    description: str
    formula: Formula
    threshold: float
    above: bool
    minutes: int
    missing: str
    steps: str | None = None

    @property
    def comparison(self) -> str:
        """The comparison operator of CloudWatch."""
        return "GreaterThanThreshold" if self.above else "LessThanOrEqualToThreshold"


class TaskScaling(NamedTuple):
    """The policies and alarms of a service. *maximum* is None if the number of its tasks is fixed."""

    minimum: int
    maximum: int | None
    trackings: tuple[Tracking, ...]
    steps: tuple[Steps, ...]
    alarms: tuple[Alarm, ...]


def build_scaling(workload: Workload, prefix: str, name: str) -> TaskScaling:
    """Return the scaling of a workload, and the alarms for people, whose names begin with *name*."""
    watching = [_watch_tasks(workload, name), *_watch_ages(workload, prefix, name)]
    if not scales(workload):
        return TaskScaling(workload.options.min, None, (), (), tuple(watching))
    groups = _split(workload.queues)
    cooldown = max(MIN_COOLDOWN_SECONDS, workload.grace_seconds)
    trackings = tuple(
        Tracking(f"backlog{_count(number)}", _track(group, prefix), SCALE_OUT_COOLDOWN_SECONDS, cooldown)
        for number, group in enumerate(groups, 1)
    )
    steps: tuple[Steps, ...] = ()
    if workload.options.min == 0:
        watching += [_watch_arrivals(workload, prefix, name), _watch_idleness(workload, prefix, name)]
        steps = (
            Steps("wake", "ChangeInCapacity", WAKE_COOLDOWN_SECONDS, _double(workload.maximum)),
            Steps("sleep", "ExactCapacity", SCALE_OUT_COOLDOWN_SECONDS, (Step(None, 0, 0),)),
        )
    return TaskScaling(workload.options.min, workload.maximum, trackings, steps, tuple(watching))


def scales(workload: Workload) -> bool:
    """Return whether the number of tasks follows the queues."""
    return workload.options.max_wait_seconds is not None and bool(workload.queues)


def _split(queues: Sequence[Scaling]) -> list[Sequence[Scaling]]:
    """Return groups of queues. If several policies track them, Application Auto Scaling takes the largest number."""
    return [queues[start : start + QUEUES_PER_ALARM] for start in range(0, len(queues), QUEUES_PER_ALARM)]


def _count(number: int) -> str:
    return "" if number == 1 else str(number)


def _track(queues: Sequence[Scaling], prefix: str) -> Formula:
    """Return the tasks that the queues need, in percent of those that run.

    The queue that needs most decides. A queue needs tasks for its backlog. Its messages in flight need the tasks that
    handle them: they never add tasks, but no task is removed while the others could not take over its work.

    Without a running task there is no value, because a division by zero has none, so nothing changes until the tasks
    that start run. A comparison takes a missing value for zero. So IF as a guard would return a number also for a
    minute whose tasks are not yet counted, which would hide a backlog. And ``needed`` adds to the backlog, so that it
    is missing whenever the backlog is.

    SQS sends the number of messages in flight only while there are any, so a missing one is zero. The other metrics
    stay missing: target tracking does not scale in then.
    """
    expressions = {
        "backlog": _highest(f"visible{number} / {queue.target}" for number, queue in enumerate(queues, 1)),
        "busy": _highest(f"FILL(flight{number}, 0) / {queue.slots}" for number, queue in enumerate(queues, 1)),
        "kept": "IF(busy > tasks, tasks, busy)",
        "needed": "backlog + IF(kept > backlog, kept - backlog, 0)",
        "load": f"{TARGET} * needed / tasks",
    }
    tasks = Metric("tasks", "RunningTaskCount", "Average")
    return Formula((*_visible(queues, prefix), *_in_flight(queues, prefix), tasks), expressions)


def _highest(expressions: Iterable[str]) -> str:
    terms = list(expressions)
    return f"MAX([{', '.join(terms)}])" if len(terms) > 1 else terms[0]


def _visible(queues: Sequence[Scaling], prefix: str) -> Iterator[Metric]:
    for number, queue in enumerate(queues, 1):
        name = physical_name(prefix, queue.queue)
        yield Metric(f"visible{number}", "ApproximateNumberOfMessagesVisible", "Maximum", name)


def _in_flight(queues: Sequence[Scaling], prefix: str) -> Iterator[Metric]:
    for number, queue in enumerate(queues, 1):
        name = physical_name(prefix, queue.queue)
        yield Metric(f"flight{number}", "ApproximateNumberOfMessagesNotVisible", "Maximum", name)


def _double(maximum: int) -> tuple[Step, ...]:
    """Return the tasks to start for the tasks that are needed: powers of two, because a policy takes 20 steps."""
    tasks = [1]
    while tasks[-1] < maximum:
        tasks.append(min(2 * tasks[-1], maximum))
    lowers = [0, *tasks[:-1]]
    return tuple(Step(*one) for one in zip(lowers, [*lowers[1:], None], tasks, strict=True))


def _watch_arrivals(workload: Workload, prefix: str, name: str) -> Alarm:
    """Return the alarm that starts tasks: messages wait, none is in flight, and no task is wanted yet.

    Its value is the number of tasks that the backlog needs. A service without tasks has no metrics. Those of a service
    with tasks may arrive later than the metrics of SQS, and therefore messages in flight count too.
    """
    queues = workload.queues
    taken = " + ".join(f"FILL(flight{number}, 0)" for number in range(1, len(queues) + 1))
    backlog = _highest(f"FILL(visible{number}, 0) / {queue.target}" for number, queue in enumerate(queues, 1))
    desired = Metric("desired", "DesiredTaskCount", "Maximum")
    return Alarm(
        "wake",
        f"{name}-has-messages",
        f"Messages wait, and {workload.name} has no task. This alarm starts tasks, and is not a fault.",
        Formula(
            (*_visible(queues, prefix), *_in_flight(queues, prefix), desired),
            {"taken": taken, "backlog": backlog, "needed": "IF(FILL(desired, 0) + taken > 0, 0, backlog)"},
        ),
        threshold=0,
        above=True,
        minutes=WAKE_MINUTES,
        missing="notBreaching",
        steps="wake",
    )


def _watch_idleness(workload: Workload, prefix: str, name: str) -> Alarm:
    """Return the alarm that ends all tasks: no message is visible or in flight in any queue, for some minutes.

    A message that waits for its next attempt is in flight. A missing number of visible messages never ends a task.
    """
    queues = workload.queues
    terms = [f"visible{number} + FILL(flight{number}, 0)" for number in range(1, len(queues) + 1)]
    return Alarm(
        "sleep",
        f"{name}-is-idle",
        f"The queues of {workload.name} are empty. This alarm ends its tasks, and is not a fault.",
        Formula((*_visible(queues, prefix), *_in_flight(queues, prefix)), {"messages": " + ".join(terms)}),
        threshold=0,
        above=False,
        minutes=max(MIN_IDLE_MINUTES, math.ceil(workload.grace_seconds / 60)),
        missing="notBreaching",
        steps="sleep",
    )


def _watch_tasks(workload: Workload, name: str) -> Alarm:
    """Return the alarm for missing tasks. Without Container Insights it is raised, unless there may be no tasks."""
    desired, running = (
        Metric(id_, metric, "Maximum")
        for id_, metric in (("desired", "DesiredTaskCount"), ("running", "RunningTaskCount"))
    )
    return Alarm(
        "tasks",
        f"{name}-tasks-missing",
        f"Fewer tasks of {workload.name} run than ECS wants to run, or Container Insights is off in the cluster. See "
        "the events of the service, and docs/runbooks/worker-down.md.",
        Formula((desired, running), {"missing": "desired - FILL(running, 0)"}),
        threshold=0,
        above=True,
        minutes=ALARM_MINUTES,
        missing="breaching" if workload.options.min else "notBreaching",
    )


def _watch_ages(workload: Workload, prefix: str, name: str) -> Iterator[Alarm]:
    """Yield an alarm for each queue whose oldest message waits for longer than the promise."""
    promise = workload.options.max_wait_seconds
    if promise is None:
        return
    for number, queue in enumerate(workload.queues, 1):
        place = physical_name(prefix, queue.queue)
        yield Alarm(
            f"age{_count(number)}",
            f"{name}-messages-wait{_count(number)}",
            f"The oldest message of queue {place} has been waiting for more than {promise + queue.delay_seconds:g} s, "
            "which is the promise of max_wait_seconds and the delay of the queue. See docs/runbooks/oldest-message.md.",
            Formula((Metric("age", "ApproximateAgeOfOldestMessage", "Maximum", place),), {}),
            threshold=promise + queue.delay_seconds,
            above=True,
            minutes=ALARM_MINUTES,
            missing="notBreaching",
        )
