from __future__ import annotations

from dataclasses import fields

from smartpipe.counters import Counters, TransportCounters, counts_of
from smartpipe.telemetry.prometheus import render
from smartpipe.telemetry.queue_histograms import CALL_OUTCOMES, OTHER, QueueHistograms
from smartpipe.worker.metrics import (
    OTHER_COUNTERS,
    TRANSPORT_COUNTERS,
    QueueMetrics,
    families_of,
    families_of_transport,
)


def test_every_counter_is_shown_even_if_it_is_0() -> None:
    text = render(families_of([QueueMetrics("mailer", "mailer-audit", Counters(handled=2), 3, 0.5)]))

    for name in set(counts_of(Counters())) - set(OTHER_COUNTERS):
        value = 2 if name == "handled" else 0
        assert f'smartpipe_messages_total{{service="mailer",queue="mailer-audit",outcome="{name}"}} {value}\n' in text
    for name, _ in OTHER_COUNTERS.values():
        assert f'{name}{{service="mailer",queue="mailer-audit"}} 0\n' in text
    assert 'smartpipe_messages_in_flight{service="mailer",queue="mailer-audit"} 3\n' in text
    assert 'smartpipe_poll_age_seconds{service="mailer",queue="mailer-audit"} 0.5\n' in text


def test_the_counters_of_a_transport_have_the_labels_of_the_process() -> None:
    text = render(families_of_transport(TransportCounters(damaged=3), {"service": "mailer"}))

    assert {field.name for field in fields(TransportCounters)} == set(TRANSPORT_COUNTERS)
    assert 'smartpipe_messages_damaged_total{service="mailer"} 3\n' in text
    assert 'smartpipe_requests_resent_total{service="mailer"} 0\n' in text
    assert "smartpipe_requests_resent_total 2\n" in render(families_of_transport(TransportCounters(resent=2), {}))


def test_counts_begin_at_zero_and_only_those_above_are_reported() -> None:
    for counters in (Counters(), TransportCounters()):
        assert counters.as_dict() == {}
        for name in counts_of(counters):
            setattr(counters, name, 1)
        assert counters.as_dict() == dict.fromkeys(counts_of(counters), 1)


def test_each_histogram_of_a_queue_has_its_labels() -> None:
    histograms = QueueHistograms(["user.signed_up"])
    histograms.types["user.signed_up"].critical_time.record(0.2)
    histograms.types["user.signed_up"].queue_time.record(0.05)
    histograms.add_handler("welcome")["timed_out"].record(2)
    histograms.receive_counts.record(3)
    histograms.dead_letters["rejected"] = 4
    histograms.future_events = 5
    text = render(families_of([QueueMetrics("mailer", "mail", Counters(histograms=histograms), 0, 0)]))

    queue = 'service="mailer",queue="mail"'
    for line in (
        f'smartpipe_critical_time_seconds_bucket{{{queue},type="user.signed_up",le="0.1"}} 0',
        f'smartpipe_critical_time_seconds_bucket{{{queue},type="user.signed_up",le="0.25"}} 1',
        f'smartpipe_critical_time_seconds_sum{{{queue},type="user.signed_up"}} 0.2',
        f'smartpipe_queue_time_seconds_bucket{{{queue},type="user.signed_up",le="0.05"}} 1',
        f'smartpipe_handler_seconds_count{{{queue},handler="welcome",outcome="timed_out"}} 1',
        f'smartpipe_receive_count_bucket{{{queue},le="2.0"}} 0',
        f'smartpipe_receive_count_bucket{{{queue},le="3.0"}} 1',
        f'smartpipe_dead_letters_total{{{queue},reason="rejected"}} 4',
        f"smartpipe_events_from_the_future_total{{{queue}}} 5",
    ):
        assert f"{line}\n" in text
    for outcome in CALL_OUTCOMES:  # also those that have not happened: a rate needs the sample before the first one
        assert f'handler="welcome",outcome="{outcome}",le="+Inf"' in text


def test_a_declared_type_that_is_called_other_has_one_series_with_the_types_that_are_not_declared() -> None:
    histograms = QueueHistograms([OTHER])
    histograms.settled += [(name, None, 1.0, 1, 3.0, 0.0, True) for name in (OTHER, "unknown")]

    text = render(families_of([QueueMetrics("mailer", "mail", Counters(histograms=histograms), 0, 0.0)]))

    counts = [line for line in text.splitlines() if line.startswith("smartpipe_queue_time_seconds_count")]
    assert counts == [f'smartpipe_queue_time_seconds_count{{service="mailer",queue="mail",type="{OTHER}"}} 2']


def test_other_types_have_samples_when_one_has_come() -> None:
    histograms = QueueHistograms(["user.signed_up"])
    queues = [QueueMetrics("mailer", "mail", Counters(histograms=histograms), 0, 0)]
    assert f'type="{OTHER}"' not in render(families_of(queues))

    histograms.other.queue_time.record(1)

    assert f'smartpipe_queue_time_seconds_count{{service="mailer",queue="mail",type="{OTHER}"}} 1\n' in render(
        families_of(queues)
    )


def test_without_histograms_there_are_counters_only() -> None:
    text = render(families_of([QueueMetrics("mailer", "mail", Counters(handled=2), 0, 0)]))

    assert "_bucket" not in text
    assert 'smartpipe_messages_total{service="mailer",queue="mail",outcome="handled"} 2\n' in text
