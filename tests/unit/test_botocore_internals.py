"""Everything undocumented of botocore, aiobotocore and boto3 that smartpipe uses. A new version that changes it fails
here, with a sentence that says what broke and where it is used, before it fails in production.
"""

from __future__ import annotations

import ast
import inspect
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import aiobotocore
import boto3
import botocore
import botocore.session
import pytest
from aiobotocore.awsrequest import AioAWSResponse
from aiobotocore.config import AioConfig
from aiobotocore.credentials import (
    AioAssumeRoleCredentialFetcher,
    AioDeferredRefreshableCredentials,
    AioEnvProvider,
    AioRefreshableCredentials,
)
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from botocore.awsrequest import AWSResponse
from botocore.credentials import (
    AssumeRoleCredentialFetcher,
    DeferredRefreshableCredentials,
    EnvProvider,
    ReadOnlyCredentials,
    RefreshableCredentials,
)
from botocore.exceptions import EndpointConnectionError
from botocore.httpsession import where
from botocore.signers import RequestSigner
from botocore.utils import get_environ_proxies

from tests.test_architecture import FILES, KNOW_AWS_LIBRARIES, PACKAGE, module_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

VERSIONS = f"botocore {botocore.__version__}, aiobotocore {aiobotocore.__version__}, boto3 {boto3.__version__}"
KEYS = {"aws_access_key_id": "AKID", "aws_secret_access_key": "secret"}


class Internal(NamedTuple):
    """Something undocumented.

    Args:
        name: Its name, as it is in our source.
        used_in: Our modules.
        purpose: What fails without it.
        holds: Returns whether it is there and as we use it.
    """

    name: str
    used_in: tuple[str, ...]
    purpose: str
    holds: Callable[[], object]


def refreshable(cls: type[RefreshableCredentials]) -> Any:
    """Return credentials of *cls* that a test never refreshes."""
    return cls("AKID", "secret", "token", None, lambda: None, "assume-role")  # type: ignore[arg-type]


def has_refresh(cls: type[RefreshableCredentials]) -> bool:
    refresh = inspect.signature(cls._protected_refresh)  # type: ignore[attr-defined]
    return list(refresh.parameters) == ["self", "is_mandatory"]


def keeps_cache(fetcher: type[AssumeRoleCredentialFetcher]) -> bool:
    cache: dict[str, Any] = {}
    found: Any = fetcher(None, None, "arn:aws:iam::1:role/x", cache=cache)  # type: ignore[arg-type]
    return found._cache is cache and isinstance(found._cache_key, str)


def reads_mapping(provider: type[EnvProvider]) -> bool:
    found: Any = provider(environ={"NEW": "t"}, mapping={"token": ["NEW"]})
    return "NEW" in found._mapping["token"]


def inserts_provider(session: Any, provider: Any) -> bool:
    resolver = session.get_component("credential_provider")
    resolver.insert_before("env", provider)
    return [one.METHOD for one in resolver.providers].index("env") == int(resolver.providers.index(provider))


def has_settings(session: Any) -> bool:
    return all(len(session.session_var_map[name]) == 4 for name in ("region", "profile"))


def remembers_region(session: Any) -> bool:
    before = session.instance_variables().get("region")
    session.set_config_variable("region", "eu-west-1")
    return before is None and session.instance_variables()["region"] == "eu-west-1"


def has_meta() -> bool:
    client: Any = boto3.client("sqs", region_name="cn-north-1", **KEYS)  # type: ignore[call-overload]
    meta = client.meta
    client.close()
    return (
        meta.partition == "aws-cn"
        and meta.endpoint_url.startswith("https://")
        and meta.service_model.endpoint_prefix == "sqs"
        and meta.config.proxies is None
        and meta.config.client_cert is None
    )


INTERNALS = [
    Internal(
        "_make_api_call",
        ("transports.aws.direct.endpoint",),
        "the direct transport lets it run up to the moment of sending, to find out where botocore sends requests",
        lambda: (
            list(inspect.signature(botocore.client.BaseClient._make_api_call).parameters)  # type: ignore[attr-defined]
            == ["self", "operation_name", "api_params"]
            and inspect.iscoroutinefunction(aiobotocore.client.AioBaseClient._make_api_call)  # type: ignore[attr-defined]
        ),
    ),
    Internal(
        "meta",
        ("transports.aws.direct.endpoint", "transports.aws.addresses", "transports.aws.blocking_session"),
        "ARNs are made of its partition, and the direct transport is chosen by its configuration",
        has_meta,
    ),
    Internal(
        "get_environ_proxies",
        ("transports.aws.direct.endpoint",),
        "the direct transport must not be used where a proxy is set",
        lambda: get_environ_proxies("https://sqs.eu-west-1.amazonaws.com") is not None,
    ),
    Internal(
        "where",
        ("transports.aws.configuration",),
        "the direct transport trusts the same authorities as botocore",
        lambda: Path(where()).is_file(),
    ),
    Internal(
        "instance_variables",
        ("transports.aws.configuration",),
        "a region that is set on a session wins over the environment",
        lambda: remembers_region(AioSession()) and remembers_region(botocore.session.Session()),
    ),
    Internal(
        "session_var_map",
        ("transports.aws.variables",),
        "AWS_REGION and AWS_PROFILE win over their older names, and all variables are checked",
        lambda: has_settings(AioSession()) and has_settings(botocore.session.Session()),
    ),
    Internal(
        "get_component",
        ("transports.aws.variables",),
        "AWS_SESSION_TOKEN wins over AWS_SECURITY_TOKEN, by a provider before botocore's own",
        lambda: (
            inserts_provider(AioSession(), AioEnvProvider())
            and inserts_provider(botocore.session.Session(), EnvProvider())
        ),
    ),
    Internal(
        "EnvProvider",
        ("transports.aws.blocking_session",),
        "its argument mapping names the variables of the session token",
        lambda: reads_mapping(EnvProvider) and reads_mapping(AioEnvProvider),
    ),
    Internal(
        "_frozen_credentials",
        ("transports.aws.credentials",),
        "refused credentials are refreshed, and this shows whether new ones came",
        lambda: (
            refreshable(RefreshableCredentials)._frozen_credentials
            and refreshable(AioRefreshableCredentials)._frozen_credentials
        ),
    ),
    Internal(
        "_access_key",
        ("transports.aws.credential_errors",),
        "it shows, without a refresh, whether a credential provider that fails has worked before",
        lambda: (
            refreshable(RefreshableCredentials)._access_key == "AKID"
            and refreshable(AioRefreshableCredentials)._access_key == "AKID"
            and DeferredRefreshableCredentials(lambda: None, "x")._access_key is None  # type: ignore[attr-defined]
            and AioDeferredRefreshableCredentials(lambda: None, "x")._access_key is None  # type: ignore[attr-defined]
        ),
    ),
    Internal(
        "_refresh_lock",
        ("transports.aws.credentials",),
        "no other refresh runs while refused credentials are refreshed",
        lambda: (
            hasattr(refreshable(RefreshableCredentials)._refresh_lock, "__enter__")
            and hasattr(refreshable(AioRefreshableCredentials)._refresh_lock, "__aenter__")
        ),
    ),
    Internal(
        "_protected_refresh",
        ("transports.aws.credentials",),
        "it refreshes credentials that have not expired; botocore has no public call for that",
        lambda: has_refresh(RefreshableCredentials) and has_refresh(AioRefreshableCredentials),
    ),
    Internal(
        "_refresh_using",
        ("transports.aws.credentials",),
        "its __self__ is the fetcher, whose cache would return the refused credentials of an assumed role",
        lambda: (
            callable(refreshable(RefreshableCredentials)._refresh_using)
            and callable(refreshable(AioRefreshableCredentials)._refresh_using)
        ),
    ),
    Internal(
        "_cache",
        ("transports.aws.credentials",),
        "the refused credentials of an assumed role are removed from it",
        lambda: keeps_cache(AssumeRoleCredentialFetcher) and keeps_cache(AioAssumeRoleCredentialFetcher),
    ),
    Internal(
        "_cache_key",
        ("transports.aws.credentials",),
        "the refused credentials of an assumed role are removed by it",
        lambda: keeps_cache(AssumeRoleCredentialFetcher) and keeps_cache(AioAssumeRoleCredentialFetcher),
    ),
    Internal(
        "_credentials",
        ("transports.aws.variables",),
        "the hook before-sign checks the credentials of a signer before they get into a header",
        lambda: "credentials" in inspect.signature(RequestSigner).parameters,
    ),
    Internal(
        "_session",
        ("transports.aws.blocking_session",),
        "the botocore session of a boto3 session, whose configuration is checked",
        lambda: isinstance(boto3.Session()._session, botocore.session.Session),
    ),
    Internal(
        "account_id",
        ("transports.aws.s3",),
        "the owner of a bucket, without a call of STS",
        lambda: "account_id" in ReadOnlyCredentials._fields,
    ),
    Internal(
        "kwargs",
        ("exhaustion",),
        "the error by which a connection failed, such as too many open files",
        lambda: EndpointConnectionError(endpoint_url="https://x", error=OSError()).kwargs["error"],
    ),
    Internal(
        "max_pool_connections",
        ("transports.aws.session",),
        "0 means that calls never wait for a connection",
        lambda: (
            AioConfig(max_pool_connections=0).max_pool_connections == 0  # type: ignore[attr-defined]
            and "limit=self._max_pool_connections" in inspect.getsource(AIOHTTPSession)
        ),
    ),
]


@pytest.mark.parametrize("internal", INTERNALS, ids=lambda internal: internal.name)
def test_what_smartpipe_uses_beneath_the_documented_api_is_there(internal: Internal) -> None:
    try:
        holds = bool(internal.holds())
    except Exception as error:  # noqa: BLE001 - whatever it is, the sentence below says more
        holds, reason = False, f" ({type(error).__name__}: {error})"
    else:
        reason = ""

    where_used = " and ".join(internal.used_in)
    assert holds, (
        f"{VERSIONS}: {internal.name!r} is gone or has changed{reason}. {where_used} uses it: {internal.purpose}."
        " Adapt that, or lower the bound of aiobotocore in pyproject.toml."
    )


def private_names(path: Path) -> Iterator[str]:
    """Yield the private attributes of other objects that a module uses."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and not (
            isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}
        ):
            yield node.attr
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr":
            yield from (one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str))


def test_every_private_attribute_of_these_libraries_is_in_the_list() -> None:
    listed = {(internal.name, module) for internal in INTERNALS for module in internal.used_in}
    used = {
        (name, module_of(path))
        for path in FILES
        if f"{module_of(path)}.".startswith(tuple(f"{module}." for module in KNOW_AWS_LIBRARIES))
        for name in private_names(path)
        if name.startswith("_") and not name.endswith("__")
    } - {("_replace", module_of(path)) for path in FILES}  # of NamedTuple, and documented

    assert used == {(name, module) for name, module in listed if name.startswith("_")}


@pytest.mark.parametrize("internal", INTERNALS, ids=lambda internal: internal.name)
def test_the_list_says_where_each_is_used(internal: Internal) -> None:
    for module in internal.used_in:
        assert internal.name in (PACKAGE / (module.replace(".", "/") + ".py")).read_text()


class Raw:
    """The body of a response that no server sent."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    def stream(self, **_: Any) -> Iterator[bytes]:
        yield self.body

    async def read(self) -> bytes:
        return self.body


REFUSED = (403, b'{"__type":"ExpiredToken","message":"expired"}')
EMPTY = (200, b"{}")


class Events:
    """Handlers of the undocumented events, which answer requests instead of a server."""

    def __init__(self, response: type[AWSResponse], *answers: tuple[int, bytes]) -> None:
        self.answers = list(answers)
        self.response = response
        self.passed: dict[str, set[str]] = {}
        self.retried: list[Any] = []

    def before_send(self, request: Any, **passed: Any) -> Any:
        self.passed["before-send"] = {"request", *passed}
        assert request.url.startswith("https://sqs.")
        assert request.headers["Authorization"].startswith(b"AWS4-HMAC-SHA256 Credential=AKID/")
        assert request.headers["User-Agent"]
        status, body = self.answers.pop(0)
        return self.response(request.url, status, {"Content-Type": "application/x-amz-json-1.0"}, Raw(body))  # type: ignore[arg-type]

    def needs_retry(self, response: Any, attempts: int, **_: Any) -> int | None:
        self.retried.append((response[0].status_code, attempts))
        return 0 if response[0].status_code == 403 and attempts == 1 else None

    def before_sign(self, request_signer: Any, **_: Any) -> None:
        self.passed["before-sign"] = {type(request_signer._credentials).__name__}

    def after_call(self, http_response: Any, parsed: Any, **_: Any) -> None:
        self.passed["after-call"] = {str(http_response.status_code), *parsed}

    def register(self, session: Any) -> None:
        session.register("before-send.sqs.ReceiveMessage", self.before_send)
        session.register("needs-retry", self.needs_retry)
        session.register("before-sign", self.before_sign)
        session.register("after-call.sqs.ReceiveMessage", self.after_call)


def assert_events(events: Events, credentials: str) -> None:
    why = f"{VERSIONS}: an event of botocore is not as smartpipe uses it. "
    assert events.answers == [], (
        f"{why}transports.aws.credentials lets needs-retry repeat a refused call by returning 0"
    )
    assert events.retried == [(403, 1), (200, 2)], f"{why}transports.aws.credentials reads response and attempts"
    assert "request" in events.passed["before-send"], f"{why}transports.aws.direct.endpoint reads the request"
    assert events.passed["before-sign"] == {credentials}, (
        f"{why}transports.aws.variables reads the signer's credentials"
    )
    assert {"200", "ResponseMetadata"} <= events.passed["after-call"], f"{why}transports.aws.botocore_calls reads both"


def test_the_events_of_botocore_are_as_smartpipe_uses_them() -> None:
    session, events = botocore.session.Session(), Events(AWSResponse, REFUSED, EMPTY)
    events.register(session)
    create: Any = session.create_client
    client = create("sqs", region_name="eu-west-1", **KEYS)

    client.receive_message(QueueUrl="https://sqs.eu-west-1.amazonaws.com/1/q")

    client.close()
    assert_events(events, "Credentials")


async def test_the_events_of_aiobotocore_are_as_smartpipe_uses_them() -> None:
    session, events = AioSession(), Events(AioAWSResponse, REFUSED, EMPTY)
    events.register(session)
    create: Any = session.create_client

    async with create("sqs", region_name="eu-west-1", **KEYS) as client:
        await client.receive_message(QueueUrl="https://sqs.eu-west-1.amazonaws.com/1/q")

    assert_events(events, "AioCredentials")


async def test_a_handler_that_is_registered_first_keeps_a_request_from_being_sent() -> None:
    class Stop(Exception):
        pass

    async def stop(**_: Any) -> None:
        raise Stop

    create: Any = AioSession().create_client
    async with create("sqs", region_name="eu-west-1", **KEYS) as client:
        name = f"before-send.{client.meta.service_model.endpoint_prefix}.ListQueues"
        client.meta.events.register_first(name, stop)
        was_sent = False
        with suppress(Stop):
            await client._make_api_call("ListQueues", {})
            was_sent = True
        client.meta.events.unregister(name, stop)

    assert not was_sent, f"{VERSIONS}: transports.aws.direct.endpoint needs before-send to stop a request"
