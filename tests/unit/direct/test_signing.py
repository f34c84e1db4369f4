"""Signatures as AWS publishes them, and as botocore makes them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple
from unittest.mock import patch

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotoCredentials
from hypothesis import given
from hypothesis import strategies as st

from smartpipe.transports.aws.direct.signing import Signer

if TYPE_CHECKING:
    import pytest


class Keys(NamedTuple):
    access_key: str
    secret_key: str
    token: str | None = None


# AWS's Signature Version 4 test suite: credentials, moment and scope of all its cases.
EXAMPLE = Keys("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
MOMENT = datetime(2015, 8, 30, 12, 36, tzinfo=UTC).timestamp()


def test_the_suites_post_vanilla_has_its_published_signature() -> None:
    lines = Signer("example.amazonaws.com", "us-east-1", "service").sign(EXAMPLE, MOMENT, "", b"")

    assert lines == (
        "X-Amz-Date: 20150830T123600Z\r\n"
        "Authorization: AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, "
        "SignedHeaders=host;x-amz-date, Signature=5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b\r\n"
    )


def test_the_suites_post_sts_header_before_has_its_published_signature() -> None:
    token = (
        "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwthA"
        "x7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9"
        "q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA=="
    )

    lines = Signer("example.amazonaws.com", "us-east-1", "service").sign(EXAMPLE._replace(token=token), MOMENT, "", b"")

    assert "SignedHeaders=host;x-amz-date;x-amz-security-token" in lines
    assert "Signature=85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead" in lines


text = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)


@given(
    keys=st.builds(Keys, text, text, st.none() | text),
    moments=st.lists(st.integers(0, 4_000_000_000), min_size=1, max_size=4),
    target=st.sampled_from(["", "AmazonSQS.ReceiveMessage"]),
    body=st.binary(max_size=100),
    repeats=st.booleans(),
)
def test_any_request_is_signed_as_botocore_signs_it(
    keys: Keys, moments: list[int], target: str, body: bytes, repeats: bool
) -> None:
    ours = Signer("sqs.eu-west-1.amazonaws.com", "eu-west-1", "sqs")

    for moment in moments:  # the same signer goes on to another second, or day
        request = AWSRequest("POST", "https://sqs.eu-west-1.amazonaws.com/", data=body)
        if target:
            request.headers["X-Amz-Target"] = target
        with patch("botocore.auth.get_current_datetime", lambda at=moment: datetime.fromtimestamp(at, UTC)):
            SigV4Auth(BotoCredentials(*keys), "sqs", "eu-west-1").add_auth(request)

        lines = ours.sign(keys, moment, target, body, repeats=repeats)

        assert f"Authorization: {request.headers['Authorization']}\r\n" in lines
        assert f"X-Amz-Date: {request.headers['X-Amz-Date']}\r\n" in lines


def test_new_credentials_sign_the_next_request() -> None:
    signer = Signer("example.amazonaws.com", "us-east-1", "service")

    first = signer.sign(EXAMPLE, MOMENT, "", b"")
    second = signer.sign(EXAMPLE._replace(secret_key="another"), MOMENT, "", b"")

    assert first != second
    assert signer.sign(EXAMPLE, MOMENT, "", b"") == first


def test_a_request_that_repeats_is_signed_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    signer, signed = Signer("example.amazonaws.com", "us-east-1", "service"), list[bytes]()

    def sign(keys: Keys, target: str, body: bytes) -> str:
        signed.append(body)
        return f"{keys.access_key} {target} {body!r} {len(signed)}"

    monkeypatch.setattr(signer, "_compute_lines", sign)

    def lines(after: float, body: bytes, keys: Keys = EXAMPLE) -> str:
        return signer.sign(keys, MOMENT + after, "Receive", body, repeats=True)

    assert lines(0.1, b"a") == lines(0.9, b"a") != lines(0.9, b"b")
    assert signed == [b"a", b"b"]
    assert lines(1, b"a") != lines(0.9, b"a")
    assert lines(1, b"a") != lines(1, b"a", EXAMPLE._replace(access_key="another"))
