from __future__ import annotations

from dataclasses import fields

import pytest

from smartpipe.counters import Counters, TransportCounters
from smartpipe.worker.metrics import (
    NOT_OUTCOMES,
    OF_TRANSPORT,
    Family,
    QueueState,
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
def test_a_family_is_written_as_prometheus_reads_it(family: Family, text: str) -> None:
    assert render([family]) == text


def test_every_count_is_shown_even_when_it_is_0() -> None:
    text = render(families_of([QueueState("mailer", "mailer-audit", Counters(handled=2), 3, 0.5)]))

    for name in {field.name for field in fields(Counters)} - set(NOT_OUTCOMES):
        value = 2 if name == "handled" else 0
        assert f'smartpipe_messages_total{{service="mailer",queue="mailer-audit",outcome="{name}"}} {value}\n' in text
    for name, _ in NOT_OUTCOMES.values():
        assert f'{name}{{service="mailer",queue="mailer-audit"}} 0\n' in text
    assert 'smartpipe_messages_in_flight{service="mailer",queue="mailer-audit"} 3\n' in text
    assert 'smartpipe_poll_age_seconds{service="mailer",queue="mailer-audit"} 0.5\n' in text


def test_what_a_transport_counts_is_shown_by_the_labels_of_its_process() -> None:
    text = render(families_of_transport(TransportCounters(damaged=3), {"service": "mailer"}))

    assert {field.name for field in fields(TransportCounters)} == set(OF_TRANSPORT)
    assert 'smartpipe_messages_damaged_total{service="mailer"} 3\n' in text
    assert 'smartpipe_requests_resent_total{service="mailer"} 0\n' in text
    assert "smartpipe_requests_resent_total 2\n" in render(families_of_transport(TransportCounters(resent=2), {}))


def test_what_several_processes_answer_becomes_one_text_with_each_family_once() -> None:
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


def test_no_answers_are_no_text() -> None:
    assert merge({}, "process") == ""


def test_a_label_commands_no_terminal_and_adds_no_line() -> None:
    text = render([Family("up", "gauge", "Up.", [Sample({"queue": "a\x1b[2J\u2028\r\nb 1"}, 1)])])

    assert text.splitlines()[2:] == ['up{queue="a\\\\x1b[2J\\\\u2028\\\\r\\nb 1"} 1']
    assert merge({"1": text}, "process").splitlines()[2:] == [
        'up{process="1",queue="a\\\\x1b[2J\\\\u2028\\\\r\\nb 1"} 1'
    ]
