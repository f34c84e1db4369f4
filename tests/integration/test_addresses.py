"""The source of the account in an ARN."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from smartpipe import Publisher, PublishError, Service
from smartpipe.settings import AwsSettings
from smartpipe.testing import provision
from smartpipe.transports.open import open_aws_transport
from tests.support.events import ADA, UserSignedUp

if TYPE_CHECKING:
    from smartpipe import EmbeddedBroker

NO_LISTENER = "http://127.0.0.1:9"


@pytest.fixture
def service(fast_broker: EmbeddedBroker) -> Service:
    service = Service("mailer")

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None: ...

    return service


async def test_an_account_in_the_settings_makes_the_call_of_sts_unnecessary(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = open_aws_transport()
    account_id = (await transport.session.addresses.naming()).account_id
    await transport.aclose()
    monkeypatch.setenv("SMARTPIPE_ACCOUNT_ID", account_id)
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", NO_LISTENER)

    await provision(service)
    async with Publisher("test") as publisher:
        assert await publisher.publish(ADA)


@pytest.mark.usefixtures("patient_calls")
async def test_without_account_and_without_sts_the_error_names_the_setting(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", NO_LISTENER)

    async with Publisher("test", deadline_seconds=0) as publisher:
        with pytest.raises(PublishError, match="SMARTPIPE_ACCOUNT_ID"):
            await publisher.publish(ADA)


async def test_the_account_is_looked_up_once(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    transport = open_aws_transport()
    first = await transport.session.addresses.naming()
    monkeypatch.setattr(transport.session.addresses, "_settings", AwsSettings.load(account_id="999999999999"))

    assert await transport.session.addresses.naming() is first
    await transport.aclose()


@pytest.mark.usefixtures("patient_calls")
async def test_a_closed_transport_refuses_to_open_again(service: Service) -> None:
    transport = open_aws_transport()
    await transport.aclose()
    await transport.aclose()

    async with Publisher("test", transport=transport, deadline_seconds=0) as publisher:
        with pytest.raises(PublishError, match="has been closed"):
            await publisher.publish(ADA)
