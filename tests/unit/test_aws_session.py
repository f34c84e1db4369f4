"""The session of a process: its clients, its event loop and its credentials."""

from __future__ import annotations

import asyncio
import logging
import ssl
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import ConfigError, TransportError
from smartpipe.settings import AwsSettings, TransportSettings
from smartpipe.transports.aws.session import AwsSession
from smartpipe.transports.open import create_aws_transport, open_aws_transport, open_transport, use_transport
from tests.support.fakes import FakeTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, Any]]:
    """Let each session create fake clients, and record them. A client that was closed has no service."""
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    found: list[tuple[str, str, Any]] = []

    @asynccontextmanager
    async def create_client(_: Any, service: str, *, region_name: str, config: Any) -> AsyncIterator[Any]:
        events = SimpleNamespace(register=lambda *_, **__: None)
        client = SimpleNamespace(service=service, meta=SimpleNamespace(endpoint_url="http://localhost", events=events))
        found.append((service, region_name, config))
        yield client
        client.service = ""

    monkeypatch.setattr("aiobotocore.session.AioSession.create_client", create_client)
    return found


async def test_a_client_is_opened_once_for_each_service_purpose_and_region(
    opened: list[tuple[str, str, Any]],
) -> None:
    session = AwsSession(AwsSettings())
    first = await session.client("sqs")
    for arguments in (("sqs",), ("sqs", "call"), ("sqs", "poll"), ("sqs", "poll"), ("sns",)):
        await session.client(*arguments)
    assert await session.client("sqs", region="eu-west-1") is first
    together = await asyncio.gather(*(session.client("sns", region="us-west-2") for _ in range(3)))

    assert len({id(one) for one in together}) == 1
    assert [(service, region) for service, region, _ in opened] == [
        ("sqs", "eu-west-1"), ("sqs", "eu-west-1"), ("sns", "eu-west-1"), ("sns", "us-west-2"),
    ]  # fmt: skip
    assert [config.read_timeout for _, _, config in opened] == [15, 30, 15, 15]
    assert {config.max_pool_connections for _, _, config in opened} == {0}

    for _ in range(2):
        await session.aclose()
    assert first.service == ""
    with pytest.raises(TransportError, match="this transport has been closed") as caught:
        await session.client("sqs")
    assert (caught.value.code, caught.value.retryable) == ("TransportClosed", False)


async def test_a_session_may_have_a_shorter_timeout_for_its_calls(opened: list[tuple[str, str, Any]]) -> None:
    session = AwsSession(AwsSettings(), call_timeout_seconds=5)
    await session.client("dynamodb")
    await session.client("sqs", "poll")

    assert [config.read_timeout for _, _, config in opened] == [5, 30]


@pytest.mark.usefixtures("opened")
def test_a_session_belongs_to_the_loop_and_process_that_used_it_first(monkeypatch: pytest.MonkeyPatch) -> None:
    session = AwsSession(AwsSettings())

    async def use() -> None:
        session.check_usable()
        await session.client("sqs")

    async def use_in_a_fork() -> None:
        inherited = AwsSession(AwsSettings())
        inherited.check_usable()
        inherited.check_usable()
        monkeypatch.setattr("os.getpid", lambda: -1)
        with pytest.raises(ConfigError, match="first used in another event loop or process"):
            inherited.check_usable()

    asyncio.run(use())
    with pytest.raises(ConfigError, match="first used in another event loop or process"):
        asyncio.run(use())
    asyncio.run(use_in_a_fork())


@pytest.mark.parametrize(("token", "error"), [("good", None), ("b\nad", "the session token contains a line break")])
async def test_credentials_are_checked_before_the_first_call(
    token: str, error: str | None, opened: list[tuple[str, str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = AwsSession(AwsSettings())
    frozen = SimpleNamespace(access_key="a", secret_key="b", token=token)

    async def freeze() -> Any:
        return frozen

    async def get_credentials() -> Any:
        return SimpleNamespace(get_frozen_credentials=freeze, method="iam-role")

    monkeypatch.setattr(session.botocore_session, "get_credentials", get_credentials)
    if error is None:
        await session.check_credentials()
    else:
        with pytest.raises(ConfigError, match=error):
            await session.check_credentials()
    assert await session.find_credentials() == (frozen, "iam-role")
    assert opened == []


@pytest.mark.usefixtures("opened")
async def test_credentials_that_cannot_be_fetched_for_now_are_no_error_at_the_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    session = AwsSession(AwsSettings())
    answers: list[Any] = [OSError("no endpoint"), None, ConfigError("never")]

    async def get_credentials() -> Any:
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    monkeypatch.setattr(session.botocore_session, "get_credentials", get_credentials)
    with caplog.at_level(logging.DEBUG, "smartpipe.aws"):
        await session.check_credentials()
    assert caplog.messages == ["Cannot fetch the credentials: no endpoint"]
    await session.check_credentials()
    with pytest.raises(ConfigError, match="never"):
        await session.check_credentials()


@pytest.mark.usefixtures("opened")
def test_each_connection_gets_a_context_of_its_own() -> None:
    session = AwsSession(AwsSettings())

    assert isinstance(session.tls_context(), ssl.SSLContext)
    assert session.tls_context() is not session.tls_context()


@pytest.mark.usefixtures("opened")
def test_the_transport_is_the_one_that_the_settings_name() -> None:
    names = [
        create_aws_transport(settings).name
        for settings in (TransportSettings(), TransportSettings(transport="botocore"), AwsSettings())
    ]

    assert names == ["AwsTransport (direct)", "AwsTransport (botocore)", "AwsTransport (direct)"]


@pytest.mark.usefixtures("opened")
def test_a_misspelt_setting_is_warned_about_when_a_transport_is_opened(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SMARTPIPE_PREFIXX", "x")
    monkeypatch.setenv("SMARTPIPE_TRANSPORT", "botocore")

    assert open_aws_transport().name == "AwsTransport (botocore)"
    assert ["did you mean SMARTPIPE_PREFIX?" in message for message in caplog.messages] == [True]


def test_the_innermost_replacement_is_opened_until_its_block_ends() -> None:
    outer, inner = FakeTransport(), FakeTransport()
    found = []
    with use_transport(outer):
        with suppress(KeyError), use_transport(inner):
            found.append(open_transport())
            raise KeyError
        found.append(open_transport())

    assert found == [inner, outer]
