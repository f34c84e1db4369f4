"""The query protocol of SNS, for PublishBatch: a form goes, XML comes. Pure.

Source: https://smithy.io/2.0/aws/protocols/aws-query-protocol.html
"""

from __future__ import annotations

import re
from base64 import b64encode
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from xml.etree import ElementTree as ET

from smartpipe.aws.entries import publish_entries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.aws.wire.http import Response
    from smartpipe.message import OutgoingMessage

CONTENT_TYPE = "application/x-www-form-urlencoded; charset=utf-8"
SHORT = 64
"""Characters: longer values are hardly ever the same again."""
_UNRESERVED = re.compile(r"[A-Za-z0-9_.~-]*")
# Every other ASCII character, the percent sign first; str.replace passes over what is not there at memchr's speed.
_ESCAPES = [
    (chr(code), f"%{code:02X}")
    for code in sorted(range(128), key=lambda code: code != ord("%"))
    if not _UNRESERVED.fullmatch(chr(code))
]
_COMMON = [(character, escape) for character, escape in _ESCAPES if character.isprintable()]
_SUCCESSFUL = re.compile(rb"<Successful>(.*)</Successful>", re.DOTALL)
_ID = re.compile(rb"<Id>([0-9]+)</Id>")


def form_encoded(text: str) -> str:
    """Return *text* percent-encoded (RFC 3986, section 2.1); several times as fast as urllib for JSON in ASCII."""
    if not (text.isascii() and text.isprintable()):
        return quote(text, safe="")
    for character, escape in _COMMON:
        if character in text:
            text = text.replace(character, escape)
    return text


_form_encoded_name = lru_cache(maxsize=4096)(form_encoded)
"""For what comes again and again: ARNs, names, data types, and short values such as an event's type."""


def publish_body(topic_arn: str, messages: Sequence[OutgoingMessage]) -> bytes:
    """Return the body of PublishBatch."""
    parts = [f"Action=PublishBatch&Version=2010-03-31&TopicArn={_form_encoded_name(topic_arn)}"]
    for number, entry in enumerate(publish_entries(messages), 1):
        start = f"&PublishBatchRequestEntries.member.{number}."
        parts.append(f"{start}Id={entry['Id']}{start}Message={form_encoded(entry['Message'])}")
        ids = [name for name in ("MessageGroupId", "MessageDeduplicationId") if name in entry]
        parts += [f"{start}{name}={form_encoded(entry[name])}" for name in ids]
        for index, (name, fields) in enumerate(entry.get("MessageAttributes", {}).items(), 1):
            at = f"{start}MessageAttributes.entry.{index}."
            parts.append(
                f"{at}Name={_form_encoded_name(name)}{at}Value.DataType={_form_encoded_name(fields['DataType'])}"
            )
            if "BinaryValue" in fields:
                parts.append(f"{at}Value.BinaryValue={form_encoded(b64encode(fields['BinaryValue']).decode())}")
            else:
                value = fields["StringValue"]
                encoded = _form_encoded_name(value) if len(value) <= SHORT else form_encoded(value)
                parts.append(f"{at}Value.StringValue={encoded}")
    return "".join(parts).encode()


def answer_in(body: bytes) -> dict[str, list[dict[str, Any]]]:
    """Read PublishBatch's answer, as far as it says which entries were taken and why others were not.

    Raises:
        ValueError: It is no XML, or of something else.
    """
    whole = body.rstrip().endswith(b"</PublishBatchResponse>")
    taken = _SUCCESSFUL.search(body) if whole and b"<Failed>" not in body else None
    if taken:
        return {"Successful": [{"Id": id_.decode()} for id_ in _ID.findall(taken[1])], "Failed": []}
    root = _parsed(body)
    if not root.tag.endswith("PublishBatchResponse"):
        raise ValueError(f"the answer is a {root.tag}, not PublishBatch's")
    return {
        "Successful": [{"Id": one["Id"]} for one in _members(root, "Successful")],
        "Failed": [{**one, "SenderFault": one.get("SenderFault") == "true"} for one in _members(root, "Failed")],
    }


def error_in(response: Response) -> dict[str, Any]:
    """Read an answer that is an error, into the form that botocore gives it."""
    try:
        root = _parsed(response.body)
    except ValueError:
        return {"Error": {"Code": str(response.status), "Message": f"HTTP status {response.status}"}}
    fields = {_name(one): one.text or "" for error in root.iter() if _name(error) == "Error" for one in error}
    code = fields.get("Code", str(response.status))
    return {"Error": {"Code": code, "Message": fields.get("Message") or f"HTTP status {response.status}"}}


def _members(root: ET.Element, name: str) -> list[dict[str, str]]:
    lists = [one for one in root.iter() if _name(one) == name]
    return [{_name(field): field.text or "" for field in member} for one in lists for member in one]


def _parsed(body: bytes) -> ET.Element:
    try:
        return ET.fromstring(body)  # noqa: S314
    except ET.ParseError as error:
        raise ValueError(f"the answer is no XML: {error}") from None


def _name(element: ET.Element) -> str:
    """Return a tag without its namespace."""
    return element.tag.rpartition("}")[2]
