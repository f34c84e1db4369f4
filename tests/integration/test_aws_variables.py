"""The AWS variables and files: the precedence of AWS's other SDKs, and values that no header may have."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from aiobotocore.session import AioSession

from smartpipe import ConfigError, Publisher
from smartpipe.blocking import Publisher as BlockingPublisher
from smartpipe.idempotency.stores.dynamodb import DynamoStore
from smartpipe.settings import AwsSettings
from smartpipe.transports.aws.s3 import S3ObjectStore
from smartpipe.transports.aws.transport import AwsTransport
from smartpipe.transports.open import create_aws_transport, open_aws_transport
from tests.support.credentials import write_aws_files
from tests.support.events import ADA, UserLeft

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from smartpipe import EmbeddedBroker
    from tests.support.proxy import FaultProxy

SECRET = "c0ncealed"
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the two AWS files. The environment names them, and has no other AWS variable."""
    write_aws_files(tmp_path, monkeypatch)
    return tmp_path


def _by_transport(transport: str) -> str:
    os.environ["SMARTPIPE_TRANSPORT"] = transport
    found = open_aws_transport()
    assert AwsTransport(AwsSettings.load()).session.region == found.session.region
    return found.session.region


ENTRIES: dict[str, Callable[[], str]] = {
    "direct": lambda: _by_transport("direct"),
    "botocore": lambda: _by_transport("botocore"),
    "blocking": lambda: BlockingPublisher("test")._session.region,
    "s3": lambda: S3ObjectStore()._session.region,
    "dynamodb": lambda: DynamoStore("dynamodb://claims")._session.region,
}


@pytest.fixture(params=ENTRIES)
def region_of_entry(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Return the region of each session."""
    monkeypatch.setenv("SMARTPIPE_TRANSPORT", "direct")
    return ENTRIES[request.param]


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "eu-central-1"),
        ({"AWS_REGION": "us-west-2"}, "us-west-2"),
        ({"AWS_DEFAULT_REGION": "us-west-1"}, "us-west-1"),
        ({"AWS_REGION": "us-west-2", "AWS_DEFAULT_REGION": "us-west-1"}, "us-west-2"),
        ({"AWS_REGION": "", "AWS_DEFAULT_REGION": "us-west-1"}, "us-west-1"),
        ({"AWS_REGION": "", "AWS_DEFAULT_REGION": ""}, "eu-central-1"),
        ({"AWS_PROFILE": "new"}, "eu-west-2"),
        ({"AWS_PROFILE": "new", "AWS_REGION": "us-west-2"}, "us-west-2"),
        ({"AWS_DEFAULT_PROFILE": "old"}, "eu-west-3"),
        ({"AWS_PROFILE": "new", "AWS_DEFAULT_PROFILE": "old"}, "eu-west-2"),
        ({"AWS_PROFILE": "", "AWS_DEFAULT_PROFILE": "old"}, "eu-west-3"),
        ({"AWS_PROFILE": ""}, "eu-central-1"),
    ],
)
def test_variables_win_over_files_and_new_names_over_old_ones(
    region_of_entry: Callable[[], str],
    variables: dict[str, str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert region_of_entry() == expected


@pytest.mark.usefixtures("files")
def test_a_region_that_is_passed_in_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    session = AioSession()
    session.set_config_variable("region", "sa-east-1")

    assert AwsTransport(AwsSettings.load(), session=session).session.region == "sa-east-1"
    assert BlockingPublisher("test", session=boto3.Session(region_name="sa-east-1"))._session.region == "sa-east-1"
    assert BlockingPublisher("test", session=boto3.Session(profile_name="old"))._session.region == "us-west-2"


@pytest.mark.usefixtures("files")
async def test_clients_that_botocore_creates_have_the_region_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    transport = open_aws_transport()
    blocking = BlockingPublisher("test")

    assert transport.session.botocore_session.get_config_variable("region") == "us-west-2"
    assert blocking._session.boto3_session.region_name == "us-west-2"
    async with transport.session.botocore_session.create_client("sts") as client:
        assert client.meta.region_name == "us-west-2"


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"AWS_PROFILE": "new", "AWS_DEFAULT_PROFILE": "old"}, ("key-new", None)),
        ({"AWS_DEFAULT_PROFILE": "old"}, ("key-old", None)),
        ({"AWS_SESSION_TOKEN": "new", "AWS_SECURITY_TOKEN": "old"}, ("key", "new")),
        ({"AWS_SESSION_TOKEN": "", "AWS_SECURITY_TOKEN": "old"}, ("key", "old")),
        ({"AWS_SECURITY_TOKEN": "old"}, ("key", "old")),
        ({"AWS_SESSION_TOKEN": "new", "AWS_SECURITY_TOKEN": ""}, ("key", "new")),
    ],
)
async def test_credentials_are_the_same_as_those_of_other_sdks(
    variables: dict[str, str], expected: tuple[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not any("PROFILE" in name for name in variables):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    found: Any = await open_aws_transport().session.botocore_session.get_credentials()
    blocking: Any = BlockingPublisher("test")._session.boto3_session.get_credentials()

    assert (found.access_key, found.token or None) == expected
    assert (blocking.access_key, blocking.token or None) == expected


BROKEN = {
    "key\n": "ends with a line break",
    "key\r\n": "ends with a line break",
    "ke\ny": "contains a line break",
    "ke\ry": "contains a line break",
    "ke\x00y": "",
    "ke\x1by": "contains a control character",
    "ke\x7fy": "contains a control character",
    "key\t": "ends with a control character",
    " key": "begins or ends with white space",
    "key ": "begins or ends with white space",
    "kéy": "contains a character that is not printable ASCII",
}


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    "variable",
    [*CREDENTIALS, "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_SQS",
     "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_EXECUTION_ENV", "AWS_ROLE_ARN",
     "AWS_CA_BUNDLE", "AWS_SDK_UA_APP_ID"],
)  # fmt: skip
@pytest.mark.parametrize(("tail", "what"), [("\n", "ends with a line break"), (" ", "white space"), ("\nX: y", "line")])
def test_a_variable_that_no_header_may_have_is_refused_by_name_and_without_its_value(
    region_of_entry: Callable[[], str], variable: str, tail: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv(variable, SECRET + tail)

    with pytest.raises(ConfigError) as caught:
        region_of_entry()

    [problem] = caught.value.problems
    assert problem.startswith(f"{variable} ")
    assert what in problem
    assert SECRET not in problem


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("port", ["1", "1x"], ids=["closed", "no port"])
def test_a_failing_credentials_endpoint_is_reported_without_its_password(
    port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "1")
    monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.SLEEP_TIME", 0)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://user:{SECRET}@127.0.0.1:{port}/role")

    with pytest.raises(ConfigError, match=r"AWS configuration: .*127\.0\.0\.1") as caught:
        BlockingPublisher("test")

    assert SECRET not in str(caught.value)


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(("value", "what"), [one for one in BROKEN.items() if one[1]])
def test_each_kind_of_character_is_named(value: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", value)

    with pytest.raises(ConfigError, match=f"AWS_SECRET_ACCESS_KEY {what}"):
        create_aws_transport(AwsSettings.load())


@pytest.mark.parametrize("proxy", ["HTTPS_PROXY", "http_proxy", "ALL_PROXY"])
@pytest.mark.usefixtures("files")
def test_a_proxy_with_a_line_break_is_refused_without_its_password(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv(proxy, f"http://me:{SECRET}@proxy:3128\n")

    with pytest.raises(ConfigError, match=f"^{proxy} ") as caught:
        create_aws_transport(AwsSettings.load())

    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("region", ["eu west-1", "eu-west-1/", "eu-west-1.evil.example", "-eu", "é"])
@pytest.mark.usefixtures("files")
def test_a_region_that_cannot_be_part_of_a_host_name_is_refused(
    region_of_entry: Callable[[], str], region: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REGION", region)

    with pytest.raises(ConfigError, match="AWS_REGION=.* is not an AWS region"):
        region_of_entry()


def test_an_invalid_region_in_a_profile_is_refused(region_of_entry: Callable[[], str], files: Path) -> None:
    (files / "config").write_text("[default]\nregion = eu west\n")

    with pytest.raises(ConfigError, match="region of the AWS profile='eu west' is not an AWS region"):
        region_of_entry()


@pytest.mark.usefixtures("files")
def test_a_missing_profile_is_a_configuration_error_everywhere(
    region_of_entry: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_PROFILE", "nowhere")
    monkeypatch.setenv("AWS_DEFAULT_PROFILE", "old")

    with pytest.raises(ConfigError, match="nowhere"):
        region_of_entry()


@pytest.fixture(params=["direct", "botocore", "blocking"])
def publish(request: pytest.FixtureRequest, fast_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Publish by each session; assert that no request was made."""

    async def by_asyncio() -> None:
        async with Publisher("test", deadline_seconds=5) as publisher:
            await publisher.publish(ADA)

    def by_blocking() -> None:
        with BlockingPublisher("test", deadline_seconds=5) as publisher:
            publisher.publish(ADA)

    async def in_a_thread() -> None:
        await asyncio.to_thread(by_blocking)

    monkeypatch.setenv("SMARTPIPE_TRANSPORT", "direct" if request.param == "blocking" else request.param)
    yield in_a_thread if request.param == "blocking" else by_asyncio
    assert fast_proxy.operations() == []


def _without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*CREDENTIALS, "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


async def test_a_token_with_two_lines_in_a_file_is_refused_by_the_files_name(
    publish: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _without_keys(monkeypatch)
    path = tmp_path / "credentials"
    path.write_text(
        f"[default]\naws_access_key_id = k\naws_secret_access_key = s\naws_session_token = {SECRET}\n  X-Evil: y\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))

    with pytest.raises(
        ConfigError, match="from the shared credentials file: the session token contains a line"
    ) as caught:
        await publish()

    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("key", ["AccessKeyId", "SecretAccessKey", "SessionToken"])
async def test_keys_of_a_process_that_no_header_may_have_are_refused_by_its_name(
    publish: Any, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _without_keys(monkeypatch)
    made = {"Version": 1, "AccessKeyId": "k", "SecretAccessKey": "s", "SessionToken": "t", key: f"{SECRET}\n"}
    (tmp_path / "made.json").write_text(json.dumps(made))
    script = tmp_path / "credentials.py"
    script.write_text(f"print(open({str(tmp_path / 'made.json')!r}).read())")
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {sys.executable} {script}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))

    with pytest.raises(ConfigError, match="AWS credentials from credential_process: the .* ends with a line") as caught:
        await publish()

    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("service", ["", "_SNS", "_SQS", "_S3", "_STS"])
def test_an_endpoint_without_a_scheme_is_a_configuration_error_of_the_blocking_publisher_too(
    fast_broker: EmbeddedBroker, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"AWS_ENDPOINT_URL{service}", "localhost")
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_URL", "s3://payloads")

    with pytest.raises(ConfigError, match="must begin with http:// or https://"):  # noqa: SIM117
        with BlockingPublisher("test", deadline_seconds=5) as publisher:
            publisher.publish(UserLeft(name="x" * 300_000), queue="jobs" if service == "_SQS" else None)


async def test_invalid_keys_of_an_external_session_are_refused(fast_broker: EmbeddedBroker) -> None:
    session = boto3.Session(aws_access_key_id="k\n", aws_secret_access_key="s", region_name="us-east-1")

    with (
        BlockingPublisher("test", session=session) as publisher,
        pytest.raises(
            ConfigError, match="from the session that was passed in: the access key id ends with a line break"
        ),
    ):
        publisher.publish(ADA)
