from __future__ import annotations

from dataclasses import fields

import pytest

from smartpipe.counters import Counters, TransportCounters
from smartpipe.worker.metrics import (
    OTHER_COUNTERS,
    TRANSPORT_COUNTERS,
    Family,
    QueueMetrics,
    Sample,
    families_of,
    families_of_transport,
    merge,
    render,
)


@pytest.mark.parametrize(
    ("family", "text"),
    [
        (Family("up", "gauge", "Whether.", [Sample({}, 1)]), "# HELP up Whether.\n# TYPE up gauge\nup 1\n"),
        (Family("up", "gauge", "Whether.", []), "# HELP up Whether.\n# TYPE up gauge\n"),
        (
            Family("seen_total", "counter", "Seen.", [Sample({"a": "1", "b": "2"}, 3), Sample({"a": "4"}, 0.5)]),
            '# HELP seen_total Seen.\n# TYPE seen_total counter\nseen_total{a="1",b="2"} 3\nseen_total{a="4"} 0.5\n',
        ),
        (
            Family("odd", "gauge", 'A "\\\n', [Sample({"path": 'C:\\"x"\n'}, 1)]),
            '# HELP odd A "\\\\\\n\n# TYPE odd gauge\nodd{path="C:\\\\\\"x\\"\\n"} 1\n',
        ),
    ],
    ids=["without labels", "without samples", "with labels", "escaped"],
)
def test_a_family_is_formatted_for_prometheus(family: Family, text: str) -> None:
    assert render([family]) == text


def test_every_counter_is_shown_even_if_it_is_0() -> None:
    text = render(families_of([QueueMetrics("mailer", "mailer-audit", Counters(handled=2), 3, 0.5)]))

    for name in {field.name for field in fields(Counters)} - set(OTHER_COUNTERS):
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


def test_texts_of_several_processes_are_merged_with_each_family_once() -> None:
    first = '# HELP a_total A.\n# TYPE a_total counter\na_total{q="x{y"} 1\n# HELP b B.\n# TYPE b gauge\nb 2\n'
    second = '# HELP a_total A.\n# TYPE a_total counter\na_total{q="z"} 3\n# HELP b B.\n# TYPE b gauge\n'

    assert merge({"1": first, 'two"': second}, "process") == (
        "# HELP a_total A.\n"
        "# TYPE a_total counter\n"
        'a_total{process="1",q="x{y"} 1\n'
        'a_total{process="two\\"",q="z"} 3\n'
        "# HELP b B.\n"
        "# TYPE b gauge\n"
        'b{process="1"} 2\n'
    )


def test_no_texts_merge_to_an_empty_text() -> None:
    assert merge({}, "process") == ""


def test_a_label_cannot_control_the_terminal_or_add_a_line() -> None:
    text = render([Family("up", "gauge", "Up.", [Sample({"queue": "a\x1b[2J\u2028\r\nb 1"}, 1)])])

    assert text.splitlines()[2:] == ['up{queue="a\\\\x1b[2J\\\\u2028\\\\r\\nb 1"} 1']
    assert merge({"1": text}, "process").splitlines()[2:] == [
        'up{process="1",queue="a\\\\x1b[2J\\\\u2028\\\\r\\nb 1"} 1'
    ]


def test_counts_begin_at_zero_and_only_those_above_are_reported() -> None:
    for counters in (Counters(), TransportCounters()):
        assert counters.as_dict() == {}
        for field in fields(counters):
            setattr(counters, field.name, 1)
        assert counters.as_dict() == {field.name: 1 for field in fields(counters)}
