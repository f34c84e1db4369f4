"""What the direct transport writes, and what it makes of responses."""

from __future__ import annotations

import json
from hashlib import md5
from urllib.parse import parse_qsl, quote
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpipe.transports.aws.direct import sns as topics
from smartpipe.transports.aws.direct import sqs as queues
from smartpipe.transports.aws.direct.response import Response


@given(st.text(st.characters(codec="utf-8")))
def test_a_form_is_encoded_as_urllib_does_it(text: str) -> None:
    assert topics.encode_form(text) == quote(text, safe="").encode()


def test_an_encoded_form_decodes_to_the_same_text() -> None:
    text = '{"a": "b=c&d+e%20;é\n"} ~-_.'

    assert parse_qsl(f"x={topics.encode_form(text).decode()}") == [("x", text)]


def answer(successful: list[str], failed: list[tuple[str, str, bool]]) -> bytes:
    good = "".join(f"<member><Id>{id_}</Id><MessageId>m</MessageId></member>" for id_ in successful)
    bad = "".join(
        f"<member><Id>{id_}</Id><Code>{code}</Code><Message>no</Message><SenderFault>{str(fault).lower()}</SenderFault></member>"
        for id_, code, fault in failed
    )
    return (
        '<PublishBatchResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/"><PublishBatchResult>'
        f"<Successful>{good}</Successful>{f'<Failed>{bad}</Failed>' if bad else '<Failed/>'}"
        "</PublishBatchResult><ResponseMetadata><RequestId>r</RequestId></ResponseMetadata></PublishBatchResponse>\n"
    ).encode()


@pytest.mark.parametrize("none_failed", ["<Failed/>", "<Failed></Failed>", "<Failed>\n  </Failed>", ""])
def test_a_response_without_failures_is_not_parsed_as_xml(none_failed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics, "_parse", lambda _: pytest.fail("it was parsed, which takes six times as long"))
    body = answer(["0", "1"], []).replace(b"<Failed/>", none_failed.encode())

    assert topics.read_response(body) == {"Successful": [{"Id": "0"}, {"Id": "1"}], "Failed": []}


def test_a_response_lists_accepted_entries_and_the_reasons_of_failed_ones() -> None:
    assert topics.read_response(answer(["0", "1"], [])) == {"Successful": [{"Id": "0"}, {"Id": "1"}], "Failed": []}
    found = topics.read_response(answer(["1"], [("0", "InternalError", False), ("2", "InvalidParameter", True)]))
    assert found["Successful"] == [{"Id": "1"}]
    assert found["Failed"] == [
        {"Id": "0", "Code": "InternalError", "Message": "no", "SenderFault": False},
        {"Id": "2", "Code": "InvalidParameter", "Message": "no", "SenderFault": True},
    ]


@pytest.mark.parametrize("body", [b"", b"<html>proxy</html>", b"{}", answer(["0"], [])[:-30]])
def test_a_response_that_is_not_from_sns_is_an_error(body: bytes) -> None:
    with pytest.raises(ValueError, match="the response is"):
        topics.read_response(body)


@pytest.mark.parametrize("body", [b"<html>", b'{"Messages": [', b"half"])
def test_a_response_that_is_not_json_is_not_an_empty_queue(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        queues.read_messages(body, 0.0)


def test_fault_59_a_damaged_message_is_left_for_redelivery(caplog: pytest.LogCaptureFixture) -> None:
    digest = md5("é".encode(), usedforsecurity=False).hexdigest()
    good = {"MessageId": "1", "ReceiptHandle": "r1", "Body": "é", "MD5OfBody": digest}
    bad = {**good, "MessageId": "2", "Body": "e"}
    unsaid = {"MessageId": "3", "ReceiptHandle": "r3", "Body": "x"}

    found, damaged = queues.read_messages(json.dumps({"Messages": [good, bad, unsaid]}).encode(), 1.5)

    assert [message.message_id for message in found] == ["1", "3"]
    assert damaged == 1
    assert "Message 2 was damaged" in caplog.text


def response(status: int, body: str, query_error: str = "") -> Response:
    headers = [(b"x-amzn-query-error", query_error.encode())] if query_error else []
    return Response(status, headers, body.encode())


@pytest.mark.parametrize(
    ("found", "code", "message"),
    [
        (
            response(400, '{"__type":"com.amazonaws.sqs#QueueDoesNotExist","message":"gone"}'),
            "QueueDoesNotExist",
            "gone",
        ),
        (
            response(
                400,
                '{"__type":"com.amazonaws.sqs#QueueDoesNotExist","Message":"gone"}',
                "AWS.SimpleQueueService.NonExistentQueue;Sender",
            ),
            "AWS.SimpleQueueService.NonExistentQueue",
            "gone",
        ),
        (response(503, "<html>no</html>"), "503", "HTTP status 503"),
        (response(500, ""), "500", "HTTP status 500"),
        (response(502, "[1]"), "502", "HTTP status 502"),
    ],
)
def test_an_error_of_sqs_has_botocores_form(found: Response, code: str, message: str) -> None:
    assert queues.read_error(found) == {"Error": {"Code": code, "Message": message}}


def test_an_error_of_sns_has_botocores_form() -> None:
    said = "Signature expired: 1 < 2"
    body = (
        '<ErrorResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/"><Error><Type>Sender</Type>'
        f"<Code>SignatureDoesNotMatch</Code><Message>{escape(said)}</Message></Error></ErrorResponse>"
    )

    assert topics.read_error(response(403, body)) == {"Error": {"Code": "SignatureDoesNotMatch", "Message": said}}
    assert topics.read_error(response(503, "slow"))["Error"]["Code"] == "503"
