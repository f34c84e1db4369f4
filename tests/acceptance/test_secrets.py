"""No part of a secret is in any output of any command, whether its URL is right, wrong, or leads nowhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from typing import TYPE_CHECKING

import pytest

from smartpipe.blocking import Publisher
from smartpipe.errors import SmartpipeError
from tests.support.processes import ROOT, Process

if TYPE_CHECKING:
    from pathlib import Path

    from tests.acceptance.conftest import Command

TARGET = "tests.acceptance.services:effects"
SECRET = "hunter2"
TAIL = "swordfish"
# Whatever a reader takes for the end of the password, what is behind it is as secret.
PASSWORDS = [SECRET, f"{SECRET}%zz{TAIL}", *(f"{SECRET}{character}{TAIL}" for character in '/@#?:[]" ,\\&')]
NOWHERE = "127.0.0.1:9"


def forms(scheme: str, host: str = NOWHERE, path: str = "/0") -> list[str]:
    """URLs that hold the secret, rightly and wrongly."""
    return [
        *(f"{scheme}://app:{password}@{host}{path}" for password in PASSWORDS),
        f"{scheme}://:{SECRET}@{host}{path}",
        f"{scheme}://app:{SECRET}/{TAIL}",
        f"{scheme}://app:x@127.0.0.1:{SECRET}{path}",
        f"{scheme}://{host}{path}?password={SECRET}",
        f"{scheme}://{host}{path}?password={SECRET}@{TAIL}",
        f"{scheme}://{host}{path}?passwrd={SECRET}&{TAIL}",
        f"mysql://app:{SECRET}/{TAIL}@{host}{path}",
        f"app:{SECRET}@{host}://{TAIL}",
        f"app:{SECRET}@{host}",
        SECRET,
    ]


POSTGRES = [*forms("postgresql", path="/shop"), *forms("postgresql+asyncpg", path="/shop")[:4]]


def assert_nothing_is_told(*texts: str) -> None:
    for text in texts:
        assert SECRET not in text
        assert TAIL not in text


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS is out of reach, and the secret in no setting yet."""
    for name in [name for name in os.environ if name.startswith(("SMARTPIPE_", "AWS_"))]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_ENDPOINT_URL": f"http://{NOWHERE}",
        "AWS_EC2_METADATA_DISABLED": "true",
        "SMARTPIPE_ACCOUNT_ID": "123456789012",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("url", POSTGRES)
def test_of_the_outboxs_url_nothing_secret_is_told(inside: Command, url: str) -> None:
    for arguments in (("relay", "--once"), ("store", "migrate")):
        result = inside(*arguments, SMARTPIPE_OUTBOX_URL=url)

        assert result.returncode in {1, 2}
        assert result.stderr.startswith("smartpipe: ")
        assert "Traceback" not in result.stderr
        assert_nothing_is_told(result.stdout, result.stderr)


@pytest.mark.parametrize(
    "url",
    [
        *POSTGRES,
        *forms("redis"),
        *forms("valkeys")[:4],
        f"unix://app:{SECRET}@/nowhere/redis.sock?db=0",
        f"unix:///nowhere/redis.sock?db=0&password={SECRET}",
        f"dynamodb://app:{SECRET}@claims",
        f"dynamodb://{SECRET}@{TAIL}",
        f"dynamodb://claims?password={SECRET}",
    ],
)
def test_of_the_stores_url_nothing_secret_is_told(inside: Command, url: str) -> None:
    for arguments in (("store", "migrate"), ("topology", "export", "--format", "iam", TARGET)):
        result = inside(*arguments, SMARTPIPE_IDEMPOTENCY_URL=url)

        assert "Traceback" not in result.stderr
        assert_nothing_is_told(result.stdout, result.stderr)


@pytest.mark.parametrize("url", [f"postgresql://app:{SECRET}@{NOWHERE}/shop", f"redis://app:{SECRET}@{NOWHERE}/0"])
@pytest.mark.parametrize("command", ["worker", "relay"])
def test_a_process_that_goes_on_trying_tells_nothing_secret(command: str, url: str) -> None:
    if command == "relay":
        setting, target = "SMARTPIPE_OUTBOX_URL", []
        url = url.replace("redis://", "postgres://")
    else:
        setting, target = "SMARTPIPE_IDEMPOTENCY_URL", [TARGET]
    environment = {setting: url, "SMARTPIPE_VERIFY": "off", "SMARTPIPE_LOG_LEVEL": "debug"}
    process = Process(command, *target, "--host", "127.0.0.1", "--port", "0", **environment)
    try:
        process.wait_until(lambda: any("127.0.0.1:9" in line for line in process.lines))
        process.signal(signal.SIGTERM)
        process.wait()
    finally:
        process.end()

    assert_nothing_is_told(*process.lines)


@pytest.mark.parametrize("url", [*forms("s3", "bucket", "/folder")])
def test_of_the_claim_checks_url_nothing_secret_is_told(inside: Command, url: str) -> None:
    result = inside("topology", "export", "--format", "iam", TARGET, SMARTPIPE_CLAIM_CHECK_URL=url)

    assert "Traceback" not in result.stderr
    if "password=" not in url and "passwrd=" not in url:  # these are names of folders
        assert_nothing_is_told(result.stdout, result.stderr)


@pytest.mark.parametrize("url", forms("http"))
@pytest.mark.parametrize("setting", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_SQS"])
def test_of_endpoints_nothing_secret_is_told(
    inside: Command, monkeypatch: pytest.MonkeyPatch, setting: str, url: str
) -> None:
    monkeypatch.setenv(setting, url)
    result = inside("topology", "plan", TARGET)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"smartpipe: {setting} ")
    assert_nothing_is_told(result.stderr, failure_of_the_blocking_publisher())


@pytest.mark.parametrize("url", forms("http")[:-1])  # the last is a host
@pytest.mark.parametrize("setting", ["HTTP_PROXY", "http_proxy"])
def test_of_proxies_nothing_secret_is_told(monkeypatch: pytest.MonkeyPatch, setting: str, url: str) -> None:
    monkeypatch.setenv(setting, url)

    assert_nothing_is_told(failure_of_the_blocking_publisher())


def test_of_a_proxy_that_is_down_a_command_tells_nothing_secret(inside: Command) -> None:
    result = inside("topology", "plan", TARGET, HTTP_PROXY=f"http://app:{SECRET}@{TAIL}@{NOWHERE}")

    assert result.returncode == 2
    assert_nothing_is_told(result.stdout, result.stderr)


def failure_of_the_blocking_publisher() -> str:
    """What it raises, with all its causes."""
    from tests.acceptance.services import EffectWanted

    def publish() -> None:
        with Publisher("test", deadline_seconds=0) as publisher:
            publisher.publish(EffectWanted(name="x"))

    with pytest.raises(SmartpipeError) as caught:
        publish()
    return "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("url", forms("http", path=""))
def test_of_the_endpoint_of_a_benchmark_nothing_secret_is_told(inside: Command, url: str) -> None:
    result = inside("bench", "--endpoint", url, "--events", "1", "--yes")

    assert result.returncode in {1, 2}
    assert "Traceback" not in result.stderr
    assert_nothing_is_told(result.stdout, result.stderr)


@pytest.mark.parametrize("url", forms("http"))
def test_of_the_endpoint_in_a_profile_nothing_secret_is_told(
    inside: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str
) -> None:
    config = tmp_path / "config"
    config.write_text(f"[default]\nendpoint_url = {url}\n")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))

    result = inside("topology", "plan", TARGET)

    assert_nothing_is_told(result.stdout, result.stderr, failure_of_the_blocking_publisher())


@pytest.mark.parametrize(
    ("setting", "url"),
    [
        ("SMARTPIPE_OUTBOX_URL", f"postgresql://app:{SECRET}/{TAIL}@{NOWHERE}/shop"),
        ("SMARTPIPE_OUTBOX_URL", f"postgresql://app:{SECRET}@{NOWHERE}/shop?sslmode={TAIL}"),
        ("SMARTPIPE_IDEMPOTENCY_URL", f"postgresql://app:{SECRET}/{TAIL}@{NOWHERE}/shop"),
        ("SMARTPIPE_IDEMPOTENCY_URL", f"redis://app:{SECRET}@{NOWHERE}/0?{TAIL}=1"),
    ],
)
def test_what_a_program_of_its_own_raises_tells_nothing_secret_with_all_its_causes(setting: str, url: str) -> None:
    program = """
import asyncio, os
from smartpipe.idempotency.open_store import open_store
from smartpipe.outbox import Relay

async def main():
    if "SMARTPIPE_OUTBOX_URL" in os.environ:
        await Relay(os.environ["SMARTPIPE_OUTBOX_URL"], None).drain()
    else:
        await open_store(os.environ["SMARTPIPE_IDEMPOTENCY_URL"]).open()

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, setting: url},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert_nothing_is_told(done.stdout, done.stderr)
