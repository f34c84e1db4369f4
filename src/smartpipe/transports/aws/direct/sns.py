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

from smartpipe.transports.aws.entries import IDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.message import Attribute, OutgoingMessage
    from smartpipe.transports.aws.direct.response import Response

CONTENT_TYPE = "application/x-www-form-urlencoded; charset=utf-8"
SHORT = 64
"""Characters: longer values are hardly ever the same again."""
_UNRESERVED = re.compile(rb"[A-Za-z0-9_.~-]")
_OFTEN = b',:"'
"""In JSON. They come last, for what has been replaced makes the text longer."""
# Every other ASCII character, the percent sign first; to see that one is not there takes nanoseconds, by its number.
_ESCAPES = [
    (code, bytes([code]), b"%%%02X" % code)
    for code in sorted(range(128), key=lambda code: (code != ord("%"), _OFTEN.find(code)))
    if not _UNRESERVED.fullmatch(bytes([code]))
]
_NOT_ASCII = re.compile(rb"[\x80-\xff]+")
_SUCCESSFUL = re.compile(rb"<Successful>(.*)</Successful>", re.DOTALL)
_NONE_FAILED = re.compile(rb"<Failed>\s*</Failed>")
_ID = re.compile(rb"<Id>([0-9]+)</Id>")


def encode_form(text: str) -> bytes:
    """Return *text* percent-encoded (RFC 3986, section 2.1); many times as fast as urllib for JSON."""
    encoded = text.encode()
    for code, character, escape in _ESCAPES:
        if code in encoded:
            encoded = encoded.replace(character, escape)
    return encoded if encoded.isascii() else _NOT_ASCII.sub(_escaped, encoded)


def _escaped(found: re.Match[bytes]) -> bytes:
    return quote(found[0]).encode()


def _all_form_encoded(texts: Sequence[str]) -> list[bytes]:
    """Encode *texts* at once, which takes half the time."""
    encoded = encode_form("\0".join(texts)).split(b"%00")
    return encoded if len(encoded) == len(texts) else list(map(encode_form, texts))


def publish_body(topic_arn: str, messages: Sequence[OutgoingMessage]) -> bytes:
    """Return the body of PublishBatch."""
    parts = [b"Action=PublishBatch&Version=2010-03-31&TopicArn=" + _short(topic_arn)]
    bodies = _all_form_encoded([message.body for message in messages])
    for id_, message, body in zip(IDS, messages, bodies, strict=False):
        start = f"&PublishBatchRequestEntries.member.{int(id_) + 1}."
        parts += [f"{start}Id={id_}{start}Message=".encode(), body]
        if message.group_id is not None:
            parts += [f"{start}MessageGroupId=".encode(), _short(message.group_id)]
        if message.deduplication_id is not None:
            parts += [f"{start}MessageDeduplicationId=".encode(), encode_form(message.deduplication_id)]
        for number, (name, attribute) in enumerate(message.attributes.items(), 1):
            known = len(attribute.value) <= SHORT
            parts.append((_known_attribute_form if known else _attribute_form)(start, number, name, attribute))
    return b"".join(parts)


def _attribute_form(start: str, number: int, name: str, attribute: Attribute) -> bytes:
    at = f"{start}MessageAttributes.entry.{number}.".encode()
    data_type, value = attribute
    field, text = (b"BinaryValue", b64encode(value).decode()) if isinstance(value, bytes) else (b"StringValue", value)
    given = at, _short(name), at, _short(data_type), at, field, encode_form(text)
    return b"%bName=%b%bValue.DataType=%b%bValue.%b=%b" % given


# For what comes again and again: ARNs, names, groups, and attributes such as an event's type.
_short = lru_cache(maxsize=4096)(encode_form)
_known_attribute_form = lru_cache(maxsize=4096)(_attribute_form)


def read_response(body: bytes) -> dict[str, list[dict[str, Any]]]:
    """Read PublishBatch's answer, as far as it says which entries were taken and why others were not.

    Raises:
        ValueError: It is no XML, or of something else.
    """
    whole = body.rstrip().endswith(b"</PublishBatchResponse>")
    none_failed = b"<Failed>" not in body or _NONE_FAILED.search(body)  # AWS writes <Failed/>, its emulators do not
    taken = _SUCCESSFUL.search(body) if whole and none_failed else None
    if taken:
        return {"Successful": [{"Id": id_.decode()} for id_ in _ID.findall(taken[1])], "Failed": []}
    root = _parsed(body)
    if not root.tag.endswith("PublishBatchResponse"):
        raise ValueError(f"the answer is a {root.tag}, not PublishBatch's")
    return {
        "Successful": [{"Id": one["Id"]} for one in _members(root, "Successful")],
        "Failed": [{**one, "SenderFault": one.get("SenderFault") == "true"} for one in _members(root, "Failed")],
    }


def read_error(response: Response) -> dict[str, Any]:
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
