"""Bodies in S3: whose bucket it has to be, how much is read, and which errors are those of the message."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, UnsupportedS3ArnError

from smartpipe import TransportError
from smartpipe.errors import PayloadError
from smartpipe.message import Payload
from smartpipe.transports.aws.s3 import CHUNK_BYTES, S3ObjectStore

if TYPE_CHECKING:
    from collections.abc import Callable

PAYLOAD = Payload("bucket", "key", "text")


def answer(code: str, status: int = 403, message: str = "said") -> ClientError:
    response: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "Op")


class Stream:
    """The body of a response, which records how much of it was read, and whether it was closed."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked: list[int] = []
        self.closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.closed = True

    async def read(self, size: int) -> bytes:
        self.asked.append(size)
        part, self.data = self.data[:size], self.data[size:]
        return part


class Session:
    """A session whose clients return or raise the test's answers."""

    def __init__(self, account_of_credentials: str | None = None) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.answers: deque[Any] = deque()
        self.account_of_credentials = account_of_credentials
        self.closed = 0

    async def client(self, service: str) -> Any:
        async def call(operation: str, arguments: dict[str, Any]) -> Any:
            self.calls.append((f"{service}.{operation}", arguments))
            if service == "sts":
                return {"Account": "333333333333"}
            answer = self.answers.popleft() if self.answers else {}
            if isinstance(answer, Exception):
                raise answer
            return answer

        return SimpleNamespace(
            put_object=lambda **arguments: call("put_object", arguments),
            get_object=lambda **arguments: call("get_object", arguments),
            get_caller_identity=lambda: call("get_caller_identity", {}),
        )

    async def find_credentials(self) -> Any:
        return SimpleNamespace(frozen=SimpleNamespace(account_id=self.account_of_credentials))

    async def aclose(self) -> None:
        self.closed += 1


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[S3ObjectStore, Session]]:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")

    def open_store(account: str = "", of_credentials: str | None = None) -> tuple[S3ObjectStore, Session]:
        monkeypatch.setenv("SMARTPIPE_ACCOUNT_ID", account)
        store, session = S3ObjectStore(), Session(of_credentials)
        monkeypatch.setattr(store, "_session", session)
        return store, session

    return open_store


@pytest.mark.parametrize(("account", "of_credentials", "owner", "expected", "calls"), [
    ("111111111111", "222222222222", None, "111111111111", 0),
    ("", "222222222222", None, "222222222222", 0),
    ("", None, None, "333333333333", 1),
    ("111111111111", None, "444444444444", "444444444444", 0),
])  # fmt: skip
async def test_every_call_names_the_owner_of_the_bucket(
    account: str, of_credentials: str | None, owner: str | None, expected: str, calls: int, opened: Any
) -> None:
    store, session = opened(account, of_credentials)
    session.answers.extend([{}, {"Body": Stream(b"text")}, {}])
    payload = PAYLOAD._replace(owner=owner)

    await store.put(payload)
    assert await store.get(payload, 10) == "text"
    await store.put(payload)

    owners = [arguments["ExpectedBucketOwner"] for name, arguments in session.calls if name.startswith("s3.")]
    assert owners == [expected] * 3
    assert sum(name.startswith("sts.") for name, _ in session.calls) == calls
    await store.aclose()
    assert session.closed == 1


@pytest.mark.parametrize(("size", "length", "accepted", "reads"), [
    (10, 10, True, [11, 1]), (10, None, True, [11, 1]), (11, 11, False, []), (11, None, False, [11]),
    (11, 5, False, [11]), (0, 0, True, [11]),
])  # fmt: skip
async def test_a_body_is_read_to_its_limit_and_one_byte_further(
    size: int, length: int | None, accepted: bool, reads: list[int], opened: Any
) -> None:
    store, session = opened("111111111111")
    stream = Stream(b"x" * size)
    session.answers.append({"Body": stream} if length is None else {"Body": stream, "ContentLength": length})

    if accepted:
        assert await store.get(PAYLOAD, 10) == "x" * size
    else:
        with pytest.raises(PayloadError, match="longer than 10 bytes"):
            await store.get(PAYLOAD, 10)
    assert (stream.asked, stream.closed) == (reads, True)


async def test_a_long_body_is_read_in_parts(opened: Any) -> None:
    store, session = opened("111111111111")
    stream = Stream(b"x" * (CHUNK_BYTES + 5))
    session.answers.append({"Body": stream})

    assert len(await store.get(PAYLOAD, 10 * CHUNK_BYTES)) == CHUNK_BYTES + 5
    assert stream.asked == [CHUNK_BYTES] * 3


async def test_a_body_that_is_not_text_is_the_failure_of_the_message(opened: Any) -> None:
    store, session = opened("111111111111")
    session.answers.append({"Body": Stream(b"\xff")})

    with pytest.raises(PayloadError, match="it is not text in UTF-8: invalid start byte"):
        await store.get(PAYLOAD, 10)


@pytest.mark.parametrize(("error", "kind", "text"), [
    (answer("NoSuchKey", 404), PayloadError, "s3://bucket/key cannot be read"),
    (answer("AccessDenied"), PayloadError, "the bucket must belong to account 111111111111"),
    (answer("PermanentRedirect", 301), PayloadError, "cannot be read"),
    (UnsupportedS3ArnError(arn="x", msg="wrong"), PayloadError, "cannot be read: "),
    (answer("SlowDown", 503), TransportError, "s3:GetObject on s3://bucket/key"),
    (answer("InvalidAccessKeyId"), TransportError, "said"),
    (answer("AccountProblem"), TransportError, "said"),
    (answer("NotSignedUp"), TransportError, "said"),
    (answer("RequestTimeTooSkewed"), TransportError, "clock"),
    (answer("SignatureDoesNotMatch", message="Signature expired"), TransportError, "clock"),
    (EndpointConnectionError(endpoint_url="http://x"), TransportError, "Could not connect"),
], ids=repr)  # fmt: skip
async def test_only_a_refusal_that_s3_repeats_is_the_failure_of_the_message(
    error: Exception, kind: type[Exception], text: str, opened: Any
) -> None:
    store, session = opened("111111111111")
    session.answers.append(error)

    with pytest.raises((PayloadError, TransportError), match=text) as caught:
        await store.get(PAYLOAD, 10)
    assert type(caught.value) is kind
    if isinstance(caught.value, PayloadError):
        assert caught.value.kind == "payload-missing"


async def test_an_error_of_a_write_names_the_object(opened: Any) -> None:
    store, session = opened("111111111111")
    session.answers.append(answer("NoSuchBucket", 404))

    with pytest.raises(TransportError, match="s3://bucket/key does not exist") as caught:
        await store.put(PAYLOAD)
    assert not caught.value.retryable
