from __future__ import annotations

import pytest

from smartpipe import ConfigError
from smartpipe.settings import (
    AwsSettings,
    ClaimSettings,
    ConcurrencySettings,
    PayloadSettings,
    RelaySettings,
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
