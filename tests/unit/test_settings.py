from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from smartpipe import ConfigError
from smartpipe.settings import (
    AwsSettings,
    ClaimSettings,
    ConcurrencySettings,
    PayloadSettings,
    RelaySettings,
    ServerSettings,
    StoreSettings,
    TransportSettings,
    WorkerSettings,
    unknown_settings,
)


def test_settings_come_from_the_environment_and_flags_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_CONCURRENCY", "3")
    monkeypatch.setenv("SMARTPIPE_PORT", "9000")
    monkeypatch.setenv("SMARTPIPE_PREFIX", "staging-")

    settings = WorkerSettings.load(concurrency=7, port=None)

    assert (settings.concurrency, settings.port) == (7, 9000)
    assert AwsSettings.load().prefix == "staging-"


def test_an_empty_variable_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_CONCURRENCY", "")

    assert WorkerSettings.load().concurrency == 10


def test_every_faulty_setting_is_reported_together_by_the_name_its_user_gave_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SMARTPIPE_CONCURRENCY", "none")
    monkeypatch.setenv("SMARTPIPE_LOG_LEVEL", "loud")

    with pytest.raises(ConfigError) as caught:
        WorkerSettings.load(port=99_999)

    problems = sorted(caught.value.problems)
    assert len(problems) == 3
    assert problems[0].startswith("--port=99999: ")
    assert problems[1].startswith("SMARTPIPE_CONCURRENCY=none: ")
    assert problems[2].startswith("SMARTPIPE_LOG_LEVEL=loud: ")


@pytest.mark.parametrize("account", ["12", "12345678901x"])
def test_an_account_id_has_twelve_digits(monkeypatch: pytest.MonkeyPatch, account: str) -> None:
    monkeypatch.setenv("SMARTPIPE_ACCOUNT_ID", account)

    with pytest.raises(ConfigError, match="SMARTPIPE_ACCOUNT_ID"):
        AwsSettings.load()


@pytest.mark.parametrize(("drain", "expected"), [(25, 20), (120, 20), (24, 19), (10, 5), (3, 1)])
def test_a_poll_fits_into_the_drain_by_default(drain: float, expected: int) -> None:
    assert WorkerSettings.load(drain_seconds=drain).poll_seconds == expected


@pytest.mark.parametrize(("seconds", "allowed"), [(0, False), (1, True), (20, True), (21, False)])
def test_a_poll_takes_as_long_as_sqs_allows(seconds: int, allowed: bool) -> None:
    if allowed:
        assert WorkerSettings.load(wait_seconds=seconds).poll_seconds == seconds
    else:
        with pytest.raises(ConfigError, match=f"wait.seconds={seconds}"):
            WorkerSettings.load(wait_seconds=seconds)


def test_fault_03_a_poll_that_a_drain_could_not_sit_out_is_refused() -> None:
    with pytest.raises(ConfigError, match="wait_seconds=20 is too long for drain_seconds=15"):
        WorkerSettings.load(drain_seconds=15, wait_seconds=20)


@pytest.mark.parametrize("value", ["s3cret\n", "s3cret\r\n", " s3cret", "s3cret ", "s3\x1bcret", "s3\u2028cret"])
@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (AwsSettings, "SMARTPIPE_PREFIX"),
        (AwsSettings, "SMARTPIPE_APPLICATION"),
        (AwsSettings, "SMARTPIPE_ACCOUNT_ID"),
        (TransportSettings, "smartpipe_transport"),
        (PayloadSettings, "SMARTPIPE_CLAIM_CHECK_URL"),
        (WorkerSettings, "SMARTPIPE_IDEMPOTENCY_URL"),
        (RelaySettings, "SMARTPIPE_OUTBOX_URL"),
        (WorkerSettings, "SMARTPIPE_HOST"),
        (WorkerSettings, "SMARTPIPE_PORT"),
    ],
)
def test_a_setting_with_a_line_break_or_white_space_around_it_is_refused_without_its_value(
    settings: type[AwsSettings | PayloadSettings | RelaySettings | WorkerSettings],
    name: str,
    value: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(ConfigError) as caught:
        settings.load()

    [problem] = caught.value.problems
    assert problem.startswith(f"{name} ")
    assert "s3" not in problem


def test_a_flag_wins_over_a_variable_that_could_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_HOST", "localhost\n")

    assert WorkerSettings.load(host="127.0.0.1").host == "127.0.0.1"


def test_a_misspelt_setting_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_CONCURENCY", "5")
    monkeypatch.setenv("SMARTPIPE_SOMETHING_OF_MY_OWN", "5")

    [sentence] = unknown_settings()

    assert "SMARTPIPE_CONCURENCY" in sentence
    assert "did you mean SMARTPIPE_CONCURRENCY?" in sentence


LINKS = {
    "SMARTPIPE_SERVICE_HOST": "10.96.12.7",
    "SMARTPIPE_SERVICE_PORT": "8080",
    "SMARTPIPE_SERVICE_PORT_HTTP": "8080",
    "SMARTPIPE_PORT": "tcp://10.96.12.7:8080",
    "SMARTPIPE_PORT_8080_TCP": "tcp://10.96.12.7:8080",
    "SMARTPIPE_PORT_8080_TCP_PROTO": "tcp",
    "SMARTPIPE_PORT_8080_TCP_PORT": "8080",
    "SMARTPIPE_PORT_8080_TCP_ADDR": "10.96.12.7",
}


def links_of(service: str) -> dict[str, str]:
    return {name.replace("SMARTPIPE", service, 1): value for name, value in LINKS.items()}


@pytest.mark.parametrize(
    "service",
    ["SMARTPIPE", "SMARTPIPE_HEALTH", "SMARTPIPE_CLAIM", "SMARTPIPE_CLAIM_CHECK", "SMARTPIPE_CONCURRENCY",
     "SMARTPIPE_OUTBOX", "SMARTPIPE_IDEMPOTENCY", "SMARTPIPE_WAIT", "SMARTPIPE_TRANSPORT"],
)  # fmt: skip
@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
def test_variables_that_kubernetes_sets_for_a_service_are_ignored_with_one_warning(
    service: str, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in links_of(service).items():
        monkeypatch.setenv(name.replace("TCP", protocol.upper()), value.replace("tcp", protocol))

    assert WorkerSettings.load().port == RelaySettings.load().port == 8080
    for settings in (TransportSettings, PayloadSettings, StoreSettings, ConcurrencySettings):
        settings.load()

    [sentence] = unknown_settings()
    assert f"a service called {service.lower().replace('_', '-')}; " in sentence
    assert all(name.replace("TCP", protocol.upper()) in sentence for name in links_of(service))
    assert "did you mean" not in sentence
    assert "enableServiceLinks" in sentence


def test_a_flag_wins_over_a_service_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_PORT", "tcp://[fd00::7]:8080")

    assert WorkerSettings.load(port=9000).port == 9000


@pytest.mark.parametrize("value", ["80a", "http://localhost:8080", "10.96.12.7:8080", "tcp:8080", "-1", "tcp"])
def test_a_port_that_is_no_service_link_is_an_error_as_before(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_PORT", value)

    with pytest.raises(ConfigError, match="SMARTPIPE_PORT="):
        WorkerSettings.load()


def test_a_misspelt_port_is_still_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_PROT", "9000")

    [sentence] = unknown_settings()

    assert "did you mean SMARTPIPE_PORT?" in sentence


@pytest.mark.parametrize("name", ["SMARTPIPE_IDEMPOTENCY_URL", "SMARTPIPE_HOST", "SMARTPIPE_CONCURRENCY"])
def test_only_a_variable_that_kubernetes_could_have_set_is_ignored(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "tcp://10.96.12.7:8080")

    assert list(unknown_settings()) == []
    if name == "SMARTPIPE_CONCURRENCY":
        with pytest.raises(ConfigError, match=name):
            WorkerSettings.load()


@pytest.mark.parametrize(
    ("settings", "variable"),
    [
        (ClaimSettings, "SMARTPIPE_WAIT_SECONDS"),
        (ClaimSettings, "SMARTPIPE_CONCURRENCY"),
        (StoreSettings, "SMARTPIPE_WAIT_SECONDS"),
        (ConcurrencySettings, "SMARTPIPE_WAIT_SECONDS"),
        (ConcurrencySettings, "SMARTPIPE_PORT"),
        (RelaySettings, "SMARTPIPE_WAIT_SECONDS"),
        (RelaySettings, "SMARTPIPE_CONCURRENCY"),
    ],
)
def test_a_command_reads_only_the_settings_that_it_uses(
    settings: type[ClaimSettings | RelaySettings], variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "soon")

    settings.load()

    with pytest.raises(ConfigError, match=variable):
        WorkerSettings.load()


def test_commands_that_move_no_messages_ignore_the_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_TRANSPORT", "carrier-pigeon")

    AwsSettings.load()

    with pytest.raises(ConfigError, match="SMARTPIPE_TRANSPORT=carrier-pigeon"):
        TransportSettings.load()


def test_a_misspelt_transport_setting_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_TRANSPROT", "botocore")

    [sentence] = unknown_settings()

    assert "did you mean SMARTPIPE_TRANSPORT?" in sentence


RANGES: list[tuple[Any, str, float | None, float | None, float]] = [
    (PayloadSettings, "claim_check_bytes", 1_024, None, 1),
    (PayloadSettings, "claim_check_days", 1, 3_650, 1),
    (PayloadSettings, "compression_bytes", 256, None, 1),
    (PayloadSettings, "payload_limit_bytes", 1_048_576, 2_147_483_647, 1),
    (PayloadSettings, "decompressed_limit_bytes", 1_048_576, 2_147_483_647, 1),
    (PayloadSettings, "payload_limit_objects", 1_024, 100_000_000, 1),
    (ConcurrencySettings, "concurrency", 1, 10_000, 1),
    (ServerSettings, "port", 0, 65_535, 1),
    (WorkerSettings, "drain_seconds", 2, 7_200, 0.1),
    (WorkerSettings, "liveness_seconds", 30, None, 0.1),
    (WorkerSettings, "processes", 1, 1_000, 1),
]


@pytest.mark.parametrize(("settings", "name", "low", "high", "step"), RANGES, ids=[one[1] for one in RANGES])
def test_a_setting_takes_every_value_of_its_range_and_no_other(
    settings: Any, name: str, low: float | None, high: float | None, step: float
) -> None:
    for end, outside in ((low, -step), (high, step)):
        if end is not None:
            assert getattr(settings.load(**{name: end}), name) == end
            with pytest.raises(ConfigError, match=name.replace("_", ".")):
                settings.load(**{name: end + outside})


@pytest.mark.parametrize("name", ["drain_seconds", "liveness_seconds"])
@pytest.mark.parametrize("value", ["inf", "nan"])
def test_a_duration_is_finite(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match="finite number"):
        WorkerSettings.load(**{name: value})


def test_each_setting_has_its_documented_default() -> None:
    worker, payloads = WorkerSettings.load(), PayloadSettings.load()

    assert (AwsSettings.load().prefix, AwsSettings.load().account_id) == ("", None)
    assert (AwsSettings.load().application, TransportSettings.load().transport) == ("smartpipe", "direct")
    assert (worker.host, worker.port, worker.log_level, worker.log_format) == ("0.0.0.0", 8080, "info", "auto")
    assert (worker.concurrency, worker.processes, worker.prefetch, worker.verify) == (10, 1, True, "missing")
    assert (worker.drain_seconds, worker.wait_seconds, worker.liveness_seconds) == (25.0, None, 300.0)
    assert (payloads.claim_check_bytes, payloads.claim_check_days) == (None, 30)
    assert (payloads.compression, payloads.compression_bytes) == (None, 16 * 1024)
    assert (payloads.payload_limit_bytes, payloads.decompressed_limit_bytes) == (16 * 2**20, 4 * 2**20)
    assert payloads.payload_limit_objects == 65_536


def test_a_setting_does_not_change_after_it_was_loaded() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        AwsSettings.load().prefix = "staging-"  # type: ignore[misc]


@pytest.mark.parametrize(("name", "value"), [
    ("SMARTPIPE_TRANSPORT", "BotoCore"), ("SMARTPIPE_COMPRESSION", "GZIP"),
    ("SMARTPIPE_LOG_LEVEL", "Warning"), ("SMARTPIPE_LOG_FORMAT", "JSON"),
])  # fmt: skip
def test_a_choice_is_read_in_any_case(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    settings = next(
        one for one in (TransportSettings, PayloadSettings, ServerSettings) if name[10:].lower() in one.model_fields
    )

    assert getattr(settings.load(), name[10:].lower()) == value.lower()


@pytest.mark.parametrize(("drain", "expected"), [(2, 0.4), (10, 2.0), (15, 3.0), (25, 3.0), (7_200, 3.0)])
def test_a_fifth_of_a_drain_is_left_for_its_end_but_at_most_three_seconds(drain: float, expected: float) -> None:
    assert WorkerSettings.load(drain_seconds=drain).flush_seconds == pytest.approx(expected)


@pytest.mark.parametrize(
    ("wait", "drain", "allowed"), [(12, 15, True), (12, 14.9, False), (8, 10, True), (9, 10, False)]
)
def test_fault_03_a_receive_call_ends_before_the_end_of_a_drain(wait: int, drain: float, allowed: bool) -> None:
    if allowed:
        assert WorkerSettings.load(wait_seconds=wait, drain_seconds=drain).poll_seconds == wait
    else:
        with pytest.raises(ConfigError, match="is too long for drain_seconds="):
            WorkerSettings.load(wait_seconds=wait, drain_seconds=drain)


@pytest.mark.parametrize(("url", "processes", "warned"), [
    (None, 2, False),
    ("memory://", 1, False),
    ("memory://", 2, True),
    ("Memory://", 3, True),
    ("redis://localhost", 2, False),
])  # fmt: skip
def test_several_processes_with_a_store_in_memory_are_warned_about(
    url: str | None, processes: int, warned: bool
) -> None:
    warnings = WorkerSettings.load(idempotency_url=url, processes=processes).warnings

    assert len(warnings) == warned
    assert all(f"each of the {processes} processes a separate store" in warning for warning in warnings)


@pytest.mark.parametrize(("name", "value", "allowed"), [
    ("prefix", "x" * 40, True), ("prefix", "x" * 41, False), ("prefix", "a_b-9", True), ("prefix", "a.b", False),
    ("application", "x" * 256, True), ("application", "x" * 257, False), ("application", "a b.c:/=+@-_", True),
    ("application", "", False), ("application", "a;b", False), ("account_id", "123456789012", True),
    ("account_id", "1234567890123", False),
])  # fmt: skip
def test_names_have_the_characters_and_lengths_that_aws_allows(name: str, value: str, allowed: bool) -> None:
    if allowed:
        assert getattr(AwsSettings.load(**{name: value}), name) == value
    else:
        with pytest.raises(ConfigError, match=name.replace("_", ".")):
            AwsSettings.load(**{name: value})


def test_each_wrong_setting_is_named_by_its_flag_or_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_DRAIN_SECONDS", "1")

    with pytest.raises(ConfigError) as caught:
        WorkerSettings.load(idempotency_url=5, host=7)

    assert sorted(problem.partition(": ")[0] for problem in caught.value.problems) == [
        "--host=7", "--idempotency-url=...", "SMARTPIPE_DRAIN_SECONDS=1",
    ]  # fmt: skip
    assert all(problem.partition(": ")[2][0].islower() for problem in caught.value.problems)


def test_each_misspelt_setting_gets_a_sentence_in_the_order_of_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SMARTPIPE_PREFIXX", "SMARTPIPE_APLICATION", "SMARTPIPE_PORT", "OTHER_PREFIX"):
        monkeypatch.setenv(name, "1")

    assert [sentence.partition(" ")[0] for sentence in unknown_settings()] == [
        "SMARTPIPE_APLICATION", "SMARTPIPE_PREFIXX",
    ]  # fmt: skip


def test_a_service_link_and_a_misspelt_setting_are_both_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in links_of("SMARTPIPE_HEALTH").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SMARTPIPE_PREFIXX", "x")

    links, misspelt = unknown_settings()

    assert "smartpipe-health" in links
    assert "SMARTPIPE_PREFIXX" in misspelt
    assert "SMARTPIPE_PREFIXX" not in links
