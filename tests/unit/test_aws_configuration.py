"""The configuration of AWS clients: regions, endpoints, proxies, timeouts, and what each error names."""

from __future__ import annotations

import ssl
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import boto3
import botocore.session
import pytest
from botocore.credentials import ContainerProvider, EnvProvider, ProcessProvider, RefreshableCredentials
from botocore.exceptions import (
    ClientError,
    ConfigNotFound,
    ConfigParseError,
    CredentialRetrievalError,
    InvalidRegionError,
    NoRegionError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
)

from smartpipe import ConfigError, TransportError
from smartpipe.errors import THROTTLES, StoreError
from smartpipe.settings import AwsSettings
from smartpipe.transports.aws import credential_errors
from smartpipe.transports.aws.blocking_session import BlockingAwsSession
from smartpipe.transports.aws.botocore_calls import reject_non_json
from smartpipe.transports.aws.configuration import (
    check_urls,
    client_options,
    configuration_errors,
    create_tls_context,
    endpoint_error,
    find_region,
)
from smartpipe.transports.aws.credentials import REFRESH_EVERY_SECONDS, _is_refusal
from smartpipe.transports.aws.errors import (
    DENIED,
    EXPIRED,
    INVALID,
    MISSING,
    STALE,
    UNAVAILABLE,
    classify,
    code_of,
    is_skew,
    normalise,
)
from smartpipe.transports.aws.own_attributes import mark_own, remove_added
from smartpipe.transports.aws.session import AwsSession
from smartpipe.transports.aws.variables import check_credentials, check_region

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_DEFAULT_PROFILE")


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Leave out the AWS configuration of this machine, and return the path of the configuration file."""
    for name in (*REGIONS, "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    return tmp_path / "config"


@pytest.mark.parametrize(("environment", "profile", "expected"), [
    ({"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-2"}, "", "eu-west-1"),
    ({"AWS_REGION": "", "AWS_DEFAULT_REGION": "eu-west-2"}, "eu-west-3", "eu-west-2"),
    ({}, "eu-west-3", "eu-west-3"),
])  # fmt: skip
def test_the_region_is_that_of_a_variable_or_else_of_the_profile(
    environment: dict[str, str], profile: str, expected: str, unset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    unset.write_text(f"[default]\nregion = {profile}\n" if profile else "")

    assert find_region(botocore.session.Session()) == expected


def test_a_missing_region_and_a_missing_profile_are_errors(unset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no AWS region: set AWS_REGION"):
        find_region(botocore.session.Session())
    monkeypatch.setenv("AWS_PROFILE", "none")
    with pytest.raises(ConfigError, match=r"AWS configuration: .*none"):
        find_region(botocore.session.Session())
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu west")
    with pytest.raises(ConfigError, match="AWS_DEFAULT_REGION='eu west' is not an AWS region"):
        find_region(botocore.session.Session())


@pytest.mark.parametrize(("region", "valid"), [
    ("a", True), ("eu-west-1", True), ("x" * 63, True), ("x" * 64, False), ("-a", False), ("a-", False), ("", False),
    ("a.b", False), ("a\n", False),
])  # fmt: skip
def test_a_region_is_a_part_of_a_host_name(region: str, valid: bool) -> None:
    if valid:
        assert check_region(region, "AWS_REGION") == region
    else:
        with pytest.raises(ConfigError, match="is not an AWS region: set AWS_REGION to one"):
            check_region(region, "AWS_REGION")


@pytest.mark.parametrize(("url", "error"), [
    (None, ""), ("", ""), ("http://localhost:4566", ""), ("https://a.example/path", ""), ("HTTPS://a.example", ""),
    ("localhost:4566", "must begin with http"), ("ftp://a.example", "must begin with http"),
    ("http://a.example?x=y", "cannot be read"), ("http://a.example#x", "cannot be read"),
    ("http://a.example:port", "cannot be read"), ("http://ada:pw@a.example", "has a user or a password"),
])  # fmt: skip
def test_an_endpoint_is_a_url_without_a_user(url: str | None, error: str) -> None:
    found = endpoint_error(url)

    assert found.startswith(error)
    assert bool(found) == bool(error)
    assert "pw" not in found


@pytest.mark.parametrize(("environment", "names"), [
    ({}, []),
    ({"AWS_ENDPOINT_URL": "http://a", "AWS_ENDPOINT_URL_SNS": "http://b", "AWS_ENDPOINT_URL_SQS": "c"}, []),
    ({"AWS_ENDPOINT_URL": "a", "AWS_ENDPOINT_URL_SNS": "b"}, ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_SNS"]),
    ({"AWS_ENDPOINT_URL": "a", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "TRUE"}, []),
    ({"AWS_ENDPOINT_URL": "a", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "no"}, ["AWS_ENDPOINT_URL"]),
    ({"HTTP_PROXY": "proxy:80", "https_proxy": "http://ada:p@w@proxy", "ALL_PROXY": "socks5://proxy:1080"}, []),
    ({"HTTP_PROXY": "", "NO_PROXY": "a:b"}, []),
    ({"HTTP_PROXY": "proxy:x", "https_proxy": "http://a/b@c", "All_Proxy": "proxy\\x"}, [
        "HTTP_PROXY", "https_proxy", "All_Proxy",
    ]),
    ({"HTTP_PROXY": "http://proxy:x"}, ["HTTP_PROXY"]),
], ids=str)  # fmt: skip
def test_endpoints_and_proxies_are_checked_by_their_names(environment: dict[str, str], names: list[str]) -> None:
    try:
        check_urls("sns", environment)
        found: list[str] = []
    except ConfigError as error:
        found = [problem.partition(" ")[0] for problem in error.problems]

    assert found == names


def test_clients_make_one_attempt_and_have_short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    options = client_options()

    assert (options["connect_timeout"], options["read_timeout"]) == (5, 15)
    assert client_options(read_timeout_seconds=30)["read_timeout"] == 30
    assert options["retries"] == {"total_max_attempts": 1, "mode": "standard"}
    assert (options["tcp_keepalive"], options["parameter_validation"], options["s3"]) == (True, False, None)
    assert options["user_agent_extra"].startswith("smartpipe/")
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "http://localhost:4566")
            assert client_options()["s3"] == {"addressing_style": "path"}


def test_certificates_are_checked_as_botocore_checks_them(unset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = create_tls_context(botocore.session.Session())
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)

    monkeypatch.setenv("AWS_CA_BUNDLE", str(unset))
    unset.write_text("no certificate")
    with pytest.raises(ConfigError, match=r"the CA bundle .*config .AWS_CA_BUNDLE.*cannot be read"):
        create_tls_context(botocore.session.Session())
    for make in (lambda: AwsSession(AwsSettings()), lambda: BlockingAwsSession(AwsSettings())):
        monkeypatch.setenv("AWS_REGION", "eu-west-1")
        with pytest.raises(ConfigError, match="the CA bundle"):
            make()


@pytest.mark.parametrize(("error", "message"), [
    (ValueError("Invalid endpoint: secret"), "endpoint_url must begin with http"),
    (ValueError("bad http://ada:pw@host key"), "AWS configuration: bad http://host key"),
    (InvalidRegionError(region_name="a b"), "AWS configuration: .*'a b'"),
    (ConfigNotFound(path="here"), "AWS configuration: .*here"),
    (ConfigParseError(path="here"), "AWS configuration: .*here"),
    (ProfileNotFound(profile="none"), "AWS configuration: .*none"),
])  # fmt: skip
def test_an_error_of_botocore_is_shown_without_secrets(error: Exception, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught, configuration_errors():
        raise error
    assert "pw" not in str(caught.value)
    assert "secret" not in str(caught.value)
    with pytest.raises(KeyError), configuration_errors():
        raise KeyError("another")


CODES = [(code, True) for code in sorted(THROTTLES | UNAVAILABLE | EXPIRED)] + [
    (code, False) for code in sorted(MISSING | INVALID | DENIED)
]


def answer(code: str, status: int = 400, message: str = "said") -> ClientError:
    response: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "Op")


@pytest.mark.parametrize(("code", "retryable"), CODES)
def test_each_known_code_is_temporary_or_not(code: str, retryable: bool) -> None:
    found = classify(answer(code), action="sqs:SendMessage", target="queue 'q'")

    assert (found.code, found.retryable) == (code, retryable)
    assert classify(answer(code, 500), action="a", target="t").retryable is (code not in INVALID)


@pytest.mark.parametrize(("status", "retryable"), [(400, False), (428, False), (429, True), (430, False), (499, False),
                                                   (500, True), (503, True)])  # fmt: skip
def test_an_unknown_code_is_temporary_by_its_status(status: int, retryable: bool) -> None:
    assert classify(answer("New", status), action="a", target="t").retryable is retryable


@pytest.mark.parametrize(("code", "advice"), [
    ("ExpiredToken", "said; the credentials have expired, waiting for new ones"),
    ("AccessDenied", "said; the credentials in use need the action sqs:X on queue 'q'"),
    ("RequestTimeTooSkewed", "said; check this machine's clock, it says 20"),
    ("QueueDoesNotExist", "queue 'q' does not exist in this account, region and prefix; run `smartpipe topology"),
    ("New", "sqs:X on queue 'q': said"),
])  # fmt: skip
def test_an_error_says_what_to_do(code: str, advice: str) -> None:
    assert advice in classify(answer(code), action="sqs:X", target="queue 'q'").detail


@pytest.mark.parametrize(("message", "skewed"), [
    ("Signature expired: 20260101T000000Z is now earlier", True), ("Signature not yet current: x", True),
    ("The signature does not match", False),
])  # fmt: skip
def test_a_wrong_clock_is_recognized_by_the_message(message: str, skewed: bool) -> None:
    error = answer("SignatureDoesNotMatch", 403, message)

    assert is_skew(error.response) is skewed
    assert ("clock" in classify(error, action="a", target="t").detail) is skewed


@pytest.mark.parametrize(("code", "expected"), [
    ("com.amazonaws.sqs#QueueDoesNotExist", "QueueDoesNotExist"), ("NotFoundException", "NotFound"),
    ("AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist"), ("NoSuchBucket", "NotFound"),
    ("ResourceNotFoundException", "NotFound"), ("InvalidToken", "InvalidClientTokenId"), ("New", "New"),
    ("InvalidAccessKeyId", "InvalidClientTokenId"), ("InvalidSignature", "InvalidSignatureException"),
    ("ExpiredTokenException", "ExpiredToken"), ("AccessDeniedException", "AccessDenied"),
])  # fmt: skip
def test_a_code_has_one_spelling(code: str, expected: str) -> None:
    assert normalise(code) == code_of({"Error": {"Code": code}}) == expected
    assert code_of({"Error": {"Code": "x", "QueryErrorCode": code}}) == expected
    assert code_of({}) == code_of({"Error": {}}) == "Unknown"


@pytest.mark.parametrize(("text", "retryable", "advice"), [
    ("CERTIFICATE_VERIFY_FAILED: Hostname mismatch", False, "the certificate is for another name"),
    ("CERTIFICATE_VERIFY_FAILED: certificate has expired", False, "set this machine's clock, which says 20"),
    ("CERTIFICATE_VERIFY_FAILED: certificate is not yet valid", False, "set this machine's clock, which says 20"),
    ("CERTIFICATE_VERIFY_FAILED: self-signed", False, "name a file with it in AWS_CA_BUNDLE"),
    ("WRONG_VERSION_NUMBER", True, "does the server at AWS_ENDPOINT_URL speak TLS?"),
])  # fmt: skip
def test_a_tls_error_has_its_own_advice(text: str, retryable: bool, advice: str) -> None:
    found = classify(SSLError(endpoint_url="https://x", error=OSError(text)), action="a", target="t")

    assert (found.code, found.retryable) == ("SSLError", retryable)
    assert advice in found.detail


@pytest.mark.parametrize(
    ("limits", "text"), [((1_024, 1_024), "1,024 (ulimit"), ((1_024, 4_096), "1,024, at most 4,096 (")]
)
def test_the_limit_of_file_descriptors_is_named(
    limits: tuple[int, int], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: limits)

    found = classify(OSError(24, "Too many open files"), action="a", target="t")

    assert (found.code, found.retryable) == ("EMFILE", True)
    assert f"its limit is {text}" in found.detail


def test_errors_of_ours_and_of_the_configuration_pass_the_classifier() -> None:
    ours = StoreError("down")
    with pytest.raises(StoreError) as caught:
        classify(ours, action="a", target="t")
    assert caught.value is ours
    for error, code in ((NoRegionError(), "NoRegion"), (ParamValidationError(report="x"), "InvalidParameter")):
        found = classify(error, action="a", target="t")
        assert (found.code, found.retryable) == (code, False)
    unread = classify(LookupError(), action="a", target="t")
    assert (unread.detail, unread.retryable) == ("a on t: LookupError (the response could not be read)", True)


def raised_in(owner: Any, error: Exception) -> Exception:
    """Return *error* as raised in a method of *owner*."""

    def load(self: Any) -> None:
        raise error

    try:
        load(owner)
    except Exception as caught:  # noqa: BLE001 - it is the error of the test
        return caught
    raise AssertionError


def credentials(*, worked: bool) -> RefreshableCredentials:
    key: Any = "key" if worked else None
    never: Any = None
    return RefreshableCredentials(key, key, key, never, lambda: never, "container-role")


WRONG_OUTPUT = CredentialRetrievalError(provider="custom-process", error_msg="Missing required key 'Version'")


@pytest.mark.parametrize(("owner", "error", "permanent", "text"), [
    (ProcessProvider("p", dict), ValueError("secret"), True, "the output is not the JSON object that AWS specifies"),
    (ProcessProvider("p", dict), WRONG_OUTPUT, True, "credential_process: Error when retrieving credentials"),
    (ProcessProvider("p", dict), CredentialRetrievalError(provider="p", error_msg="exit 1"), False, "exit 1; run the"),
    (ContainerProvider(), KeyError("Token"), True, "the response has no field 'Token'; check AWS_CONTAINER"),
    (ContainerProvider(), ConnectionRefusedError("http://ada:pw@host"), False, "endpoint: http://host; check"),
    (ContainerProvider(), TimeoutError(), False, "endpoint: TimeoutError; check"),
    (ContainerProvider(), FileNotFoundError("no token"), True, "endpoint: no token; check"),
    (EnvProvider(), PartialCredentialsError(provider="env", cred_var="x"), True, "credentials from the environment: "),
    (ContainerProvider(), OSError(24, "Too many open files"), False, "Too many open files"),
    (credentials(worked=False), ValueError("bad"), True, "the container's credentials endpoint: bad"),
    (credentials(worked=True), ValueError("bad"), False, "the container's credentials endpoint: bad"),
    (ContainerProvider(), answer("ExpiredToken"), False, "said"),
])  # fmt: skip
def test_an_error_of_a_credential_provider_names_it_and_is_permanent_only_if_it_cannot_pass(
    owner: Any, error: Exception, permanent: bool, text: str
) -> None:
    found = credential_errors.find_credential_failure(raised_in(owner, error))

    assert isinstance(found, ConfigError if permanent else TransportError)
    assert text in str(found)
    assert "secret" not in str(found)
    assert "pw" not in str(found)
    if isinstance(found, TransportError):
        assert (found.code, found.retryable) == ("CredentialRetrievalError", True)
    with pytest.raises(ConfigError if permanent else TransportError), credential_errors.credential_errors():
        raise error.with_traceback(raised_in(owner, error).__traceback__)


def test_an_error_that_no_provider_raised_stays_as_it_is() -> None:
    for error in (ValueError("x"), StoreError("x")):
        assert credential_errors.find_credential_failure(raised_in(object(), error)) is None
        with pytest.raises(type(error)), credential_errors.credential_errors():
            raise error
    assert credential_errors.find_credential_failure(raised_in(ContainerProvider(), StoreError("x"))) is None


@pytest.mark.parametrize(("part", "name"), [
    ("access_key", "the access key id"), ("secret_key", "the secret access key"), ("token", "the session token"),
])  # fmt: skip
def test_credentials_that_no_header_may_have_are_refused_by_their_source(part: str, name: str) -> None:
    good: dict[str, Any] = {"access_key": "a", "secret_key": "b", "token": None}
    check_credentials(SimpleNamespace(**good), "env")

    for method, source in (("iam-role", "the instance's metadata service"), ("mine", "mine")):
        with pytest.raises(ConfigError, match=f"AWS credentials from {source}: {name} ") as caught:
            check_credentials(SimpleNamespace(**{**good, part: "s3cret\n"}), method)
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(("status", "code", "attempts", "refused"), [
    (403, "ExpiredToken", 1, True), (300, "ExpiredToken", 1, True), (299, "ExpiredToken", 1, False),
    (403, "ExpiredToken", 2, False), (403, "AccessDenied", 1, False), (403, "InvalidClientTokenId", 1, True),
])  # fmt: skip
def test_only_the_first_response_that_refuses_the_credentials_leads_to_a_refresh(
    status: int, code: str, attempts: int, refused: bool
) -> None:
    response: Any = (SimpleNamespace(status_code=status), {"Error": {"Code": code}})

    assert _is_refusal(response, attempts) is refused
    assert not _is_refusal(None, attempts)
    assert (code in STALE) or not refused
    assert REFRESH_EVERY_SECONDS == 10


@pytest.mark.parametrize(("status", "parsed", "text", "refused"), [
    (200, {}, b"{}", False), (200, {}, b"<html>", True), (299, {}, b"", True), (300, {}, b"<html>", False),
    (200, {"Messages": []}, b"<html>", False),
])  # fmt: skip
async def test_a_response_without_messages_is_json(status: int, parsed: Any, text: bytes, refused: bool) -> None:
    async def content() -> bytes:
        return text

    response = SimpleNamespace(status_code=status, content=content())
    try:
        if refused:
            with pytest.raises(ValueError, match=r"."):
                await reject_non_json(http_response=response, parsed=parsed)
        else:
            await reject_non_json(http_response=response, parsed=parsed)
    finally:
        response.content.close()


OURS = {"type": {"DataType": "String", "StringValue": "a"}}
ADDED = {"DataType": "String", "StringValue": "b"}


@pytest.mark.parametrize("name", ["PublishBatchRequestEntries", "Entries"])
@pytest.mark.parametrize(("own", "added", "kept"), [
    (OURS, {}, list(OURS)),
    (OURS, {"traceparent": ADDED, "TraceState": ADDED, "baggage": ADDED}, ["type"]),
    (OURS, {"x-datadog": ADDED}, ["type", "x-datadog"]),
    (OURS, {f"x{number}": ADDED for number in range(9)}, ["type", *(f"x{number}" for number in range(9))]),
    (OURS, {f"x{number}": ADDED for number in range(10)}, ["type"]),
    ({"traceparent": ADDED}, {"traceparent": OURS["type"]}, ["traceparent"]),
    ({}, {"traceparent": ADDED}, None),
    ({}, {}, None),
], ids=str)  # fmt: skip
def test_attributes_that_others_add_stay_only_while_there_is_room(
    name: str, own: dict[str, Any], added: dict[str, Any], kept: list[str] | None
) -> None:
    [entry] = mark_own([{"Id": "0", **({"MessageAttributes": own} if own else {})}])
    if added:
        entry["MessageAttributes"] = {**own, **added}
    theirs = {"Id": "1", "MessageAttributes": {"traceparent": ADDED}}

    remove_added(params={name: [theirs, entry]})
    remove_added(params={})

    assert theirs["MessageAttributes"] == {"traceparent": ADDED}
    found = entry.get("MessageAttributes")
    assert (None if found is None else sorted(found)) == (None if kept is None else sorted(kept))
    assert all(found[one] == value for one, value in own.items()) if found else not own


def test_a_blocking_session_has_one_client_for_each_service_and_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    session = BlockingAwsSession(AwsSettings(prefix="staging-"))

    assert session.client("sns") is session.client("sns", region="eu-west-1")
    assert session.client("sns", region="us-west-2").meta.region_name == "us-west-2"
    assert session.client("sns").meta.config.max_pool_connections >= 10
    calls: list[str] = []

    def identify() -> dict[str, int]:
        calls.append("sts")
        return {"Account": 123456789012}

    session._clients["sts", "eu-west-1"] = SimpleNamespace(get_caller_identity=identify)
    assert [session.account_id(), session.account_id()] == ["123456789012"] * 2
    assert session.naming() == ("aws", "eu-west-1", "123456789012", "staging-", "smartpipe")
    assert calls == ["sts"]


@pytest.mark.usefixtures("unset")
@pytest.mark.parametrize(("make", "url", "error"), [
    (lambda: boto3.Session(region_name="eu-west-1"), "http://ada:pw@localhost", "has a user or a password"),
    (lambda: boto3.Session(region_name="eu-west-1"), "localhost:4566", "must begin with http"),
])  # fmt: skip
def test_an_endpoint_of_a_profile_is_checked_too(
    make: Callable[[], boto3.Session], url: str, error: str, unset: Path
) -> None:
    unset.write_text(f"[default]\nendpoint_url = {url}\n")
    session = BlockingAwsSession(AwsSettings(), session=make())

    with pytest.raises(ConfigError, match=error) as caught:
        session.client("sns")
    assert "pw" not in str(caught.value)
