"""Metrics as text: Prometheus 0.0.4 and OpenMetrics 1.0.0, of one process and of several."""

from __future__ import annotations

from threading import Thread

import pytest

from smartpipe.telemetry.families import Family, Sample
from smartpipe.telemetry.histograms import FOLD_AT, Exemplar, Histogram
from smartpipe.telemetry.prometheus import OPENMETRICS, TEXT, choose_content_type, join, merge, render


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


def histogram_of(*values: float) -> Histogram:
    histogram = Histogram((0.1, 1.0))
    for value in values:
        histogram.record(value)
    return histogram


def test_a_histogram_has_cumulative_buckets_a_sum_and_a_count() -> None:
    family = Family("wait_seconds", "histogram", "Wait.", [Sample({"queue": "a"}, histogram_of(0.05, 0.1, 0.5, 5))])

    assert render([family]) == (
        "# HELP wait_seconds Wait.\n"
        "# TYPE wait_seconds histogram\n"
        'wait_seconds_bucket{queue="a",le="0.1"} 2\n'
        'wait_seconds_bucket{queue="a",le="1.0"} 3\n'
        'wait_seconds_bucket{queue="a",le="+Inf"} 4\n'
        'wait_seconds_sum{queue="a"} 5.65\n'
        'wait_seconds_count{queue="a"} 4\n'
    )
    assert 'wait_seconds_bucket{le="0.1"} 0\n' in render([family._replace(samples=[Sample({}, histogram_of())])])
    assert "wait_seconds_count 0\n" in render([family._replace(samples=[Sample({}, histogram_of())])])


def test_openmetrics_names_the_family_of_a_counter_without_its_suffix_and_ends_with_eof() -> None:
    family = Family("seen_total", "counter", 'Say "hi".', [Sample({}, 1)])

    assert render([family], OPENMETRICS) == ('# HELP seen Say \\"hi\\".\n# TYPE seen counter\nseen_total 1\n# EOF\n')


def test_openmetrics_shows_one_exemplar_of_a_bucket_and_the_older_text_none() -> None:
    histogram = histogram_of(0.5)
    histogram.exemplars[1] = Exemplar("4bf92f3577b34da6a3ce929d0e0e4736", 0.5, 1_700_000_000.25)
    family = Family("wait_seconds", "histogram", "Wait.", [Sample({}, histogram)])

    line = 'wait_seconds_bucket{le="1.0"} 1'
    exemplar = ' # {trace_id="4bf92f3577b34da6a3ce929d0e0e4736"} 0.5 1700000000.250'
    assert f"{line}{exemplar}\n" in render([family], OPENMETRICS)
    assert f"{line}\n" in render([family])


def test_an_exemplar_is_in_the_bucket_of_its_value_and_a_later_one_replaces_it() -> None:
    histogram = histogram_of(0.5, 0.6, 7)
    for value, trace in ((0.5, "a"), (0.6, "b"), (7, "c")):
        histogram.add_exemplar(value, trace)

    assert [(index, one.trace_id, one.value) for index, one in histogram.exemplars.items()] == [
        (1, "b", 0.6),
        (2, "c", 7),
    ]


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", TEXT),
        ("application/openmetrics-text", OPENMETRICS),
        ("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5", OPENMETRICS),
        ("text/plain, Application/OpenMetrics-Text; version=1.0.0; q=0.2", OPENMETRICS),
        ("application/openmetrics-text;q=0", TEXT),
        ("application/openmetrics-text;q=0.000", TEXT),
        ("application/openmetrics-text2", TEXT),
    ],
)
def test_a_scraper_gets_openmetrics_if_it_asks_for_it(accept: str, content_type: str) -> None:
    assert choose_content_type(accept) == content_type


def test_merged_openmetrics_ends_once_and_keeps_exemplars() -> None:
    histogram = histogram_of(0.5)
    histogram.add_exemplar(0.5, "abc")
    families = [Family("wait_seconds", "histogram", "Wait.", [Sample({}, histogram)]), Family("up", "gauge", "Up.", [])]
    one = render(families, OPENMETRICS)

    merged = merge({"1": one, "2": one}, "process")

    assert merged.count("# EOF") == 1
    assert merged.endswith("# EOF\n")
    assert 'wait_seconds_bucket{process="2",le="1.0"} 1 # {trace_id="abc"} 0.5 ' in merged
    assert 'wait_seconds_count{process="1"} 1\n' in merged


def test_joined_texts_end_once() -> None:
    first, second = (render([Family(name, "gauge", "Help.", [Sample({}, 1)])], OPENMETRICS) for name in "ab")

    assert join(first, second) == "# HELP a Help.\n# TYPE a gauge\na 1\n# HELP b Help.\n# TYPE b gauge\nb 1\n# EOF\n"
    assert join("a 1\n", "b 1\n") == "a 1\nb 1\n"


def test_waiting_values_are_folded_when_there_are_many_and_a_reader_counts_the_rest() -> None:
    histogram = Histogram((0.1, 1.0))
    for _ in range(FOLD_AT - 1):
        histogram.record(0.5)
    assert histogram.counts == [0, 0, 0]
    assert histogram.count == FOLD_AT - 1

    histogram.record(3)
    assert histogram.counts == [0, FOLD_AT - 1, 1]

    histogram.record(0.1)
    histogram.fold()
    histogram.fold()  # nothing is left
    assert histogram.counts == [1, FOLD_AT - 1, 1]
    assert histogram.sum == pytest.approx(0.5 * (FOLD_AT - 1) + 3.1)


def test_values_of_several_threads_are_all_counted() -> None:
    histogram = Histogram((0.1, 1.0))

    def record() -> None:
        for _ in range(20_000):
            histogram.record(0.5)

    threads = [Thread(target=record) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    histogram.fold()
    assert histogram.counts == [0, 80_000, 0]
