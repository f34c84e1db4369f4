"""Credential providers that fail: each is named. Faults that only a new configuration repairs end the process."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import ConfigError, Publisher, PublishError, StoreError, TransportError
from smartpipe.blocking import Publisher as BlockingPublisher
from smartpipe.cli.topology import with_session
from smartpipe.idempotency.stores.dynamodb import DynamoStore
from smartpipe.message import Payload
from smartpipe.settings import AwsSettings
from smartpipe.transports.aws.s3 import S3ObjectStore
from smartpipe.transports.open import create_aws_transport, open_aws_transport
from tests.support.credentials import leave_no_credentials, let_process_print
from tests.support.events import ADA, OrderPlaced
from tests.support.shop import Shop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from tests.support.proxy import FaultProxy

KEYS = {"Version": 1, "AccessKeyId": "k", "SecretAccessKey": "s3cret"}
PROCESS = "credentials from credential_process: "
CONTAINER = "credentials from the container's credentials endpoint: "


@pytest.fixture
def no_other_credentials(fast_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    leave_no_credentials(tmp_path, monkeypatch)


async def _publish(transport: str) -> None:
    async with Publisher("test", transport=open_aws_transport(), deadline_seconds=5) as publisher:
        await publisher.publish(ADA)


async def _publish_blocking(_: str) -> None:
    def publish() -> None:
        with BlockingPublisher("test", deadline_seconds=5) as publisher:
            publisher.publish(ADA)

    await asyncio.to_thread(publish)


async def _put(_: str) -> None:
    store = S3ObjectStore()
    try:
        await store.put(Payload("bucket", "key", "text"))
    finally:
        await store.aclose()


async def _open_store(_: str) -> None:
    store = DynamoStore("dynamodb://claims")
    try:
        await store.open()
    finally:
        await store.aclose()


async def _name_topics(_: str) -> None:
    await asyncio.to_thread(with_session, lambda session: session.addresses.naming())


async def _check(_: str) -> None:
    transport = create_aws_transport(AwsSettings.load())
    try:
        await transport.session.check_credentials()
    finally:
        await transport.aclose()


ENTRIES: dict[str, Callable[[str], Awaitable[None]]] = {
    "direct": _publish,
    "botocore": _publish,
    "blocking": _publish_blocking,
    "s3": _put,
    "dynamodb": _open_store,
    "topology": _name_topics,
    "start of a worker": _check,
}


@pytest.fixture(params=ENTRIES)
def call_aws(
    request: pytest.FixtureRequest,
    fast_proxy: FaultProxy,
    no_other_credentials: None,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Any]:
    """Make a first call of AWS by each entry point. No request is sent."""
    monkeypatch.setenv("SMARTPIPE_TRANSPORT", "botocore" if request.param == "botocore" else "direct")
    yield lambda: ENTRIES[request.param](request.param)
    assert fast_proxy.operations() == []


@pytest.mark.usefixtures("no_other_credentials")
@pytest.mark.parametrize(
    "output",
    [
        "",
        "not JSON: s3cret",
        "[]",
        "null",
        '"s3cret"',
        json.dumps({**KEYS, "Version": 2}),
        json.dumps({"AccessKeyId": "k", "SecretAccessKey": "s3cret"}),
        json.dumps({"Version": 1, "AccessKeyId": "k"}),
        json.dumps({**KEYS, "Expiration": "s3cret tomorrow"}),
    ],
)
async def test_a_credential_process_with_wrong_output_is_a_configuration_error_that_names_it(
    call_aws: Any, output: str, tmp_path: Path
) -> None:
    let_process_print(tmp_path, output)

    with pytest.raises(ConfigError) as caught:
        await call_aws()

    assert PROCESS in str(caught.value)
    assert "ENDPOINT_URL" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.usefixtures("no_other_credentials")
async def test_a_credential_process_that_does_not_exist_is_a_configuration_error(call_aws: Any, tmp_path: Path) -> None:
    (tmp_path / "config").write_text("[default]\ncredential_process = /nowhere/credentials\n")

    with pytest.raises(ConfigError, match=f"{PROCESS}.*/nowhere/credentials"):
        await call_aws()


@pytest.mark.usefixtures("no_other_credentials")
@pytest.mark.parametrize(
    "uri", ["http://192.0.2.1/role", "localhost:8080/role", "http:///role", "http://[::1/role", "role"]
)
async def test_a_bad_uri_of_container_credentials_is_a_configuration_error_that_names_its_variable(
    call_aws: Any, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri)

    with pytest.raises(ConfigError) as caught:
        await call_aws()

    assert CONTAINER in str(caught.value)
    assert "AWS_CONTAINER_CREDENTIALS_FULL_URI" in str(caught.value)
    assert "AWS_ENDPOINT_URL" not in str(caught.value)


@pytest.mark.usefixtures("no_other_credentials")
async def test_a_missing_token_file_of_the_container_is_a_configuration_error(
    call_aws: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:1/role")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "/nowhere/token")

    with pytest.raises(ConfigError, match=f"{CONTAINER}.*/nowhere/token"):
        await call_aws()


@pytest.mark.usefixtures("no_other_credentials")
async def test_a_profile_that_refers_to_nothing_is_a_configuration_error(call_aws: Any, tmp_path: Path) -> None:
    (tmp_path / "config").write_text("[default]\nrole_arn = arn:aws:iam::1:role/x\nsource_profile = gone\n")

    with pytest.raises(ConfigError, match="the role of the AWS profile: .*gone"):
        await call_aws()


@pytest.mark.usefixtures("no_other_credentials")
@pytest.mark.parametrize("entry", [one for one in ENTRIES if one not in ("blocking", "start of a worker")])
async def test_a_provider_that_fails_for_now_is_a_temporary_error_that_names_it(
    fast_proxy: FaultProxy, entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMARTPIPE_TRANSPORT", "botocore" if entry == "botocore" else "direct")
    let_process_print(tmp_path, "", before="raise SystemExit('no network')")

    with pytest.raises((PublishError, StoreError, TransportError)) as caught:
        await ENTRIES[entry](entry)

    assert PROCESS in str(caught.value)
    assert "no network" in str(caught.value)


@pytest.mark.parametrize("entry", ["direct", "botocore"])
async def test_a_publisher_waits_for_a_provider_that_fails_for_a_while(
    fast_proxy: FaultProxy, entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = await Shop.provisioned(fast_proxy)
    no_keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")
    for name in no_keys:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SMARTPIPE_TRANSPORT", entry)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    once = tmp_path / "asked"
    fail_once = f"import os\nif not os.path.exists({str(once)!r}): open({str(once)!r}, 'w'); raise SystemExit(1)"
    let_process_print(tmp_path, json.dumps({**KEYS, "AccessKeyId": "test"}), before=fail_once)

    async with Publisher("test") as publisher:
        await publisher.publish(OrderPlaced(order_id="7"), queue="shop")

    assert once.exists()
    assert shop.queues.depth("shop") == (1, 0)


@pytest.mark.parametrize("entry", ["direct", "botocore", "blocking"])
@pytest.mark.parametrize("output", ["not JSON", "", "[]", json.dumps({**KEYS, "Version": 2})])
async def test_wrong_output_of_a_process_that_has_worked_before_is_waited_for(
    fast_proxy: FaultProxy, entry: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = await Shop.provisioned(fast_proxy)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SMARTPIPE_TRANSPORT", "botocore" if entry == "botocore" else "direct")
    monkeypatch.setattr("smartpipe.transports.aws.direct.endpoint.ASK_EVERY_SECONDS", 0)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    soon = f"{datetime.now(UTC) + timedelta(seconds=300):%Y-%m-%dT%H:%M:%SZ}"  # so each call wants others
    let_process_print(tmp_path, json.dumps({**KEYS, "AccessKeyId": "test", "Expiration": soon}))
    asked = tmp_path / "asked"
    right = json.dumps({**KEYS, "AccessKeyId": "test", "Expiration": soon})

    def fail_a_while() -> None:
        count = f"open({str(asked)!r}, 'a').write('x')\nimport os\nif os.path.getsize({str(asked)!r}) > 2: "
        let_process_print(tmp_path, output, before=f"{count}print({right!r}); raise SystemExit")

    def publish() -> None:
        with BlockingPublisher("test") as publisher:
            publisher.publish(OrderPlaced(order_id="1"), queue="shop")
            fail_a_while()
            publisher.publish(OrderPlaced(order_id="2"), queue="shop")

    if entry == "blocking":
        await asyncio.to_thread(publish)
    else:
        async with Publisher("test") as publisher:
            await publisher.publish(OrderPlaced(order_id="1"), queue="shop")
            fail_a_while()
            await publisher.publish(OrderPlaced(order_id="2"), queue="shop")

    assert asked.read_text() >= "xxx"
    assert shop.queues.depth("shop") == (2, 0)
