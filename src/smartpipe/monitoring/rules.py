"""Define the alert rules of services. Pure.

Conventions of the Prometheus community's mixins: annotations ``summary``, ``description`` and ``runbook_url``, and the
label ``severity``: ``critical`` pages a person at once, ``warning`` can wait until the morning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from smartpipe.errors import ConfigError
from smartpipe.monitoring.promql import (
    add_up,
    any_of,
    backlog,
    equals,
    highest,
    increase,
    matches,
    matches_process,
    quantile,
    rate,
    select,
)
from smartpipe.names import shorten_names
from smartpipe.telemetry.histograms import AGE_BOUNDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from smartpipe.topology.derive import Declares

PER_QUEUE = "service, queue"
MAX_RETRY_RATIO = 0.2
MAX_DEAD_LETTERS = 10
"""Dead-lettered messages of a queue in five minutes, above which somebody has to look now."""
MAX_POLL_AGE_SECONDS = 120
MAX_RESTARTS = 2
RUNBOOKS = "docs/runbooks"
"""The folder in the repository of smartpipe."""


class AlertOptions(NamedTuple):
    """The options of alert rules.

    Args:
        promise_seconds: The time in which events are to be handled.
        slow_handler_seconds: The duration that at most 5 % of the calls of a handler may exceed.
        runbooks: The URL or path of the folder with the runbooks.
        labels: Labels that all samples of these services have, such as ``env``. The alerts have them too.
    """

    promise_seconds: float = 300
    slow_handler_seconds: float = 30
    runbooks: str = RUNBOOKS
    labels: Mapping[str, str] = {}

    def url_of(self, page: str) -> str:
        """Return the URL of a runbook."""
        return f"{self.runbooks.rstrip('/')}/{page}.md"


class Rule(NamedTuple):
    """An alert rule.

    Args:
        wait: For how long the expression must hold, as in ``5m``; empty: the alert fires at once.
        description: The sentence with the measured value.
        page: The name of the runbook, without its suffix.
    """

    name: str
    expression: str
    wait: str
    severity: str
    summary: str
    description: str
    page: str


class _Scope(NamedTuple):
    """The samples that the rules look at.

    Args:
        services: The matchers of samples with the labels ``service`` and ``queue``.
        processes: The matchers of samples of a process, whose label ``service`` may list several.
        others: The matchers of samples without the label ``service``.
        queues: The matchers of each queue.
    """

    services: tuple[str, ...]
    processes: tuple[str, ...]
    others: tuple[str, ...]
    queues: tuple[tuple[str, ...], ...]


def build_rules(services: Sequence[Declares], options: AlertOptions) -> list[Rule]:
    """Return the alert rules of *services*, without those of ``explain_left_out``.

    Raises:
        ConfigError: No service has a handler, so no worker runs that could be watched.
    """
    handling = sorted({one.name: one for one in services if one.bindings}.values(), key=lambda one: one.name)
    if not handling:
        names = ", ".join(sorted({one.name for one in services}))
        msg = f"no service has handlers ({names}), and the alerts watch workers; name a TARGET with handlers"
        raise ConfigError(msg)
    others = tuple(equals(*item) for item in sorted(options.labels.items()))
    pattern = any_of(sorted({one.name for one in services}))
    scope = _Scope(
        (matches("service", pattern), *others),
        (matches_process(pattern), *others),
        others,
        tuple(
            (equals("service", one.name), equals("queue", short), *others)
            for one in handling
            for _, short in sorted(shorten_names(binding.queue.name for binding in one.bindings).items())
        ),
    )
    rules = [
        *_rules_of_workers(scope),
        *_rules_of_processes(scope),
        *_rules_of_delays(scope, options),
        *_rules_of_failures(scope),
        *_rules_of_handlers(scope, options),
        *_rules_of_publishing(scope, options),
    ]
    left_out = explain_left_out(options)
    return [rule for rule in rules if rule.name not in left_out]


def explain_left_out(options: AlertOptions) -> dict[str, str]:
    """Return the rules that could never fire with these options, by name, each with the reason."""
    longest = AGE_BOUNDS[-1]
    if options.promise_seconds < longest:
        return {}
    reason = f"smartpipe_critical_time_seconds does not distinguish times above {longest:g} s"
    return {"SmartpipeCriticalTime": reason}


def _rules_of_workers(scope: _Scope) -> list[Rule]:
    poll_age = "smartpipe_poll_age_seconds"
    absent = "\nor\n".join(f"absent({select(poll_age, *queue)})" for queue in scope.queues)
    reported = select(poll_age, *scope.services)
    relays = select("smartpipe_outbox_published_total", *scope.others)
    return [
        Rule(
            "SmartpipeWorkerDown",
            absent,
            "5m",
            "critical",
            "No worker of a queue reports.",
            "Prometheus has no sample of a worker of queue {{ $labels.queue }} (service {{ $labels.service }}). "
            "Messages wait in the queue.",
            "worker-down",
        ),
        Rule(
            "SmartpipeInstanceDown",
            "up == 0\nand on (job, instance)\n"
            f"group by (job, instance) (last_over_time({reported}[1h]) or last_over_time({relays}[1h]))",
            "5m",
            "warning",
            "A worker or a relay does not answer Prometheus.",
            "Prometheus cannot scrape {{ $labels.instance }} of job {{ $labels.job }}, which has reported as a worker "
            "or a relay within the last hour.",
            "instance-down",
        ),
        Rule(
            "SmartpipeNotReceiving",
            f"{highest(PER_QUEUE, reported)} > {MAX_POLL_AGE_SECONDS}",
            "1m",
            "critical",
            "A worker receives nothing from its queue, although it has free slots.",
            "The last successful receive call of a worker for queue {{ $labels.queue }} (service "
            "{{ $labels.service }}) was {{ $value | humanizeDuration }} ago.",
            "not-receiving",
        ),
    ]


def _rules_of_processes(scope: _Scope) -> list[Rule]:
    restarts = increase("job, instance, process", select("smartpipe_process_restarts_total", *scope.others), "15m")
    # A process that was just restarted reports nothing yet, so its instance is known by the samples of the last hour.
    workers = f"last_over_time({select('smartpipe_poll_age_seconds', *scope.services)}[1h])"
    return [
        Rule(
            "SmartpipeProcessRestarts",
            f"{restarts} > {MAX_RESTARTS}\nand on (job, instance)\ngroup by (job, instance) ({workers})",
            "",
            "warning",
            "A worker process ends unexpectedly again and again.",
            "Process {{ $labels.process }} of {{ $labels.instance }} was restarted "
            '{{ $value | printf "%.0f" }} times in 15 minutes.',
            "process-restarts",
        ),
        Rule(
            "SmartpipeCircuitOpen",
            f"{highest('service, queue, circuit', select('smartpipe_circuit_open', *scope.services))} > 0",
            "5m",
            "warning",
            "A circuit breaker keeps a handler from being called.",
            "Circuit breaker {{ $labels.circuit }} of queue {{ $labels.queue }} (service {{ $labels.service }}) has "
            "not closed for 5 minutes. Messages wait in the queue.",
            "circuit-open",
        ),
    ]


def _rules_of_delays(scope: _Scope, options: AlertOptions) -> list[Rule]:
    promise = f"{options.promise_seconds:g}"
    critical_time = select("smartpipe_critical_time_seconds", *scope.services)
    return [
        Rule(
            "SmartpipeBacklog",
            f"{backlog(PER_QUEUE, scope.services, '5m')} > {promise}",
            "10m",
            "warning",
            "A queue has more messages than its workers can handle in time.",
            "At the current rate, the workers of queue {{ $labels.queue }} (service {{ $labels.service }}) need "
            f"{{{{ $value | humanizeDuration }}}} for the waiting messages. The promise is {promise} s.",
            "backlog",
        ),
        Rule(
            "SmartpipeCriticalTime",
            f"{quantile(0.99, PER_QUEUE, critical_time, '10m')} > {promise}",
            "10m",
            "warning",
            "Events are handled too late.",
            "1 % of the events of queue {{ $labels.queue }} (service {{ $labels.service }}) took longer than "
            f"{{{{ $value | humanizeDuration }}}} from their own time until they were handled. The promise is "
            f"{promise} s.",
            "critical-time",
        ),
        Rule(
            "SmartpipeOldestMessage",
            f"{highest(PER_QUEUE, select('smartpipe_oldest_message_age_seconds', *scope.services))} > {promise}",
            "10m",
            "warning",
            "A message waits for too long.",
            "The oldest message of queue {{ $labels.queue }} (service {{ $labels.service }}) is "
            f"{{{{ $value | humanizeDuration }}}} old. The promise is {promise} s. On a standard queue, SQS leaves out "
            "messages that were received three times or more, so failing messages may be older.",
            "oldest-message",
        ),
    ]


def _rules_of_failures(scope: _Scope) -> list[Rule]:
    deliveries = "smartpipe_messages_total"
    retried = select(deliveries, *scope.services, equals("outcome", "retried"))
    # Unlike smartpipe_dead_letters_total, this counter has a sample before the first dead letter.
    dead_lettered = select(deliveries, *scope.services, equals("outcome", "dead_lettered"))
    lost = select("smartpipe_leases_lost_total", *scope.services)
    return [
        Rule(
            "SmartpipeDeadLetterMessages",
            f"{highest(PER_QUEUE, select('smartpipe_dead_letter_messages', *scope.services))} > 0",
            "5m",
            "warning",
            "A dead-letter queue is not empty.",
            '{{ $value | printf "%.0f" }} messages are in the dead-letter queue of {{ $labels.queue }} (service '
            "{{ $labels.service }}). SQS deletes them after 14 days.",
            "dead-letter-messages",
        ),
        Rule(
            "SmartpipeDeadLetterStorm",
            f"{increase(PER_QUEUE, dead_lettered, '5m')} > {MAX_DEAD_LETTERS}",
            "",
            "critical",
            "Many messages are being dead-lettered.",
            "The workers of queue {{ $labels.queue }} (service {{ $labels.service }}) dead-lettered "
            '{{ $value | printf "%.0f" }} messages in 5 minutes.',
            "dead-letter-storm",
        ),
        Rule(
            "SmartpipeRetryRatio",
            f"{rate(PER_QUEUE, retried, '5m')}\n/\n{rate(PER_QUEUE, select(deliveries, *scope.services), '5m')}\n"
            f"> {MAX_RETRY_RATIO:g}\nand\n{increase(PER_QUEUE, retried, '5m')} > 5",
            "10m",
            "warning",
            "Many deliveries fail and are retried.",
            "{{ $value | humanizePercentage }} of the deliveries from queue {{ $labels.queue }} (service "
            "{{ $labels.service }}) failed and will be retried.",
            "retry-ratio",
        ),
        Rule(
            "SmartpipeLeasesLost",
            f"{increase(PER_QUEUE, lost, '5m')} > 0",
            "10m",
            "warning",
            "Workers lose messages to other workers while they handle them.",
            "The workers of queue {{ $labels.queue }} (service {{ $labels.service }}) lost the leases of "
            '{{ $value | printf "%.0f" }} messages in 5 minutes. SQS delivers these again, so they may be handled '
            "twice.",
            "leases-lost",
        ),
    ]


def _rules_of_handlers(scope: _Scope, options: AlertOptions) -> list[Rule]:
    slow = f"{options.slow_handler_seconds:g}"
    seconds = select("smartpipe_handler_seconds", *scope.services)
    return [
        Rule(
            "SmartpipeHandlersOverdue",
            f"{add_up('service', select('smartpipe_handlers_overdue', *scope.processes))} > 0",
            "5m",
            "warning",
            "Handler calls do not end although their timeout is over.",
            '{{ $value | printf "%.0f" }} handler calls of service {{ $labels.service }} have exceeded their timeout '
            "and still run. When they take all slots, the worker stops receiving.",
            "handlers-overdue",
        ),
        Rule(
            "SmartpipeSlowHandler",
            f"{quantile(0.95, 'service, queue, handler', seconds, '10m')} > {slow}",
            "10m",
            "warning",
            "A handler is slow.",
            "5 % of the calls of {{ $labels.handler }} (service {{ $labels.service }}) take longer than "
            f"{{{{ $value | humanizeDuration }}}}. The limit is {slow} s.",
            "slow-handler",
        ),
    ]


def _rules_of_publishing(scope: _Scope, options: AlertOptions) -> list[Rule]:
    failed = select("smartpipe_published_total", *scope.processes, 'result!="published"')
    lag, age = (select(f"smartpipe_outbox_{name}_seconds", *scope.others) for name in ("lag", "backlog_age"))
    parked = select("smartpipe_outbox_parked", *scope.others)
    return [
        Rule(
            "SmartpipePublishFailures",
            # A code has no sample before its first failure, so the increase misses that one.
            f"{increase('service, destination', failed, '10m')} > 0\nor\n"
            f"{add_up('service, destination', f'{failed} unless {failed} offset 10m')} > 0",
            "",
            "critical",
            "Events could not be published.",
            '{{ $value | printf "%.0f" }} events of service {{ $labels.service }} could not be published to '
            "{{ $labels.destination }} in 10 minutes.",
            "publish-failures",
        ),
        Rule(
            "SmartpipeOutboxLag",
            # While the database does not answer, the lag is as old as the last answer. Before the first, there is none.
            f"{highest('job', f'{lag} + {age} or {age}')} > {options.promise_seconds:g}",
            "5m",
            "critical",
            "Events wait in the outbox for too long.",
            "The oldest event in the outbox (job {{ $labels.job }}) has waited for {{ $value | humanizeDuration }}, or "
            "its database does not answer the relay.",
            "outbox-lag",
        ),
        Rule(
            "SmartpipeOutboxParked",
            f"{highest('job', parked)} > 0",
            "5m",
            "warning",
            "The outbox has events that were refused permanently.",
            '{{ $value | printf "%.0f" }} events in the outbox (job {{ $labels.job }}) were refused permanently. The '
            "relay will not publish them.",
            "outbox-parked",
        ),
    ]
