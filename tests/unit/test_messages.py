"""Received and outgoing messages, and the sizes that AWS counts."""

from __future__ import annotations

import pytest

from smartpipe.message import Attribute, Message, OutgoingMessage, Payload, received_message, size_bytes


@pytest.mark.parametrize(("body", "attributes", "expected"), [
    ("", {}, 0),
    ("abc", {}, 3),
    ("\u00e4\U0001f600", {}, 6),
    ("a", {"bc": Attribute("String", "def")}, 1 + 2 + 6 + 3),
    ("a", {"\u00e4": Attribute("Binary", b"\x00\xff")}, 1 + 2 + 6 + 2),
    ("a", {"b": Attribute("Number.int", "\u00e4"), "c": Attribute("String", "")}, 1 + 1 + 10 + 2 + 1 + 6),
])  # fmt: skip
def test_a_size_is_that_of_the_body_and_of_every_part_of_an_attribute(
    body: str, attributes: dict[str, Attribute], expected: int
) -> None:
    assert size_bytes(body, attributes) == expected


def test_times_and_counts_are_read_from_the_system_attributes() -> None:
    system = {
        "SentTimestamp": "1500", "ApproximateFirstReceiveTimestamp": "2500", "ApproximateReceiveCount": "3",
        "MessageGroupId": "g", "DeadLetterQueueSourceArn": "arn",
    }  # fmt: skip
    attributes = {"a": Attribute("String", "b")}

    message = received_message(("id", "receipt"), "body", system, attributes, 7.0)

    assert message == Message("id", "receipt", "body", 3, attributes, "g", 1.5, 2.5, 7.0, "arn")
    assert received_message(("id", "receipt"), "body", {}, {}, 7.0) == Message("id", "receipt", "body", received_at=7.0)


def test_a_message_has_no_more_than_it_is_given() -> None:
    assert Message("id", "receipt", "body") == ("id", "receipt", "body", 1, {}, None, None, None, 0.0, None, None, None)
    assert OutgoingMessage("body", 4) == ("body", 4, {}, None, None, 0, None, None)
    assert Payload("bucket", "a/b") == ("bucket", "a/b", "", None)
    assert Payload("bucket", "a/b").url == "s3://bucket/a/b"
