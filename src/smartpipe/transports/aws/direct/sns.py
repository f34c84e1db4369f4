"""SNS by the direct transport: the AWS query protocol, for PublishBatch. A request is a form, a response is XML.

Source: https://smithy.io/2.0/aws/protocols/aws-query-protocol.html
"""

from __future__ import annotations

import re
from base64 import b64encode
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from xml.etree import ElementTree as ET

from smartpipe.counters import TransportCounters
from smartpipe.transports.aws.configuration import CALL_TIMEOUT_SECONDS
from smartpipe.transports.aws.direct.endpoint import ServiceProtocol
from smartpipe.transports.aws.entries import IDS, common_trace_header, read_failures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.message import Attribute, Failure, OutgoingMessage
    from smartpipe.transports.aws.direct.endpoint import Endpoint
    from smartpipe.transports.aws.direct.response import Response

CACHED_CHARACTERS = 64
"""The longest attribute value whose encoding is cached. Longer values rarely repeat."""
_UNRESERVED = re.compile(rb"[A-Za-z0-9_.~-]")
_FREQUENT = b',:"'
"""The frequent characters of JSON. They are replaced last, because each replacement makes the text longer."""
# Every other ASCII character, the percent sign first. A test whether a byte is present takes nanoseconds.
_ESCAPES = [
    (code, bytes([code]), b"%%%02X" % code)
    for code in sorted(range(128), key=lambda code: (code != ord("%"), _FREQUENT.find(code)))
    if not _UNRESERVED.fullmatch(bytes([code]))
]
_NOT_ASCII = re.compile(rb"[\x80-\xff]+")
_SUCCESSFUL = re.compile(rb"<Successful>(.*)</Successful>", re.DOTALL)
_NONE_FAILED = re.compile(rb"<Failed>\s*</Failed>")
_ID = re.compile(rb"<Id>([0-9]+)</Id>")


class DirectSns:
    """PublishBatch, at a tenth of botocore's CPU time."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint

    @property
    def counters(self) -> TransportCounters:
        """The requests sent twice. They can be read after ``close``, too."""
        return TransportCounters(resent=self.endpoint.resent)

    async def publish(self, arn: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        """Call PublishBatch."""
        response = await self.endpoint.post(
            "",
            publish_body(arn, messages),
            timeout_seconds=CALL_TIMEOUT_SECONDS,
            trace_header=common_trace_header(messages),
        )
        return read_failures(read_response(response), len(messages))

    def close(self) -> None:
        """Close the connections."""
        self.endpoint.close()


def encode_form(text: str) -> bytes:
    """Return *text* percent-encoded (RFC 3986, section 2.1). For JSON this is many times as fast as urllib."""
    encoded = text.encode()
    for code, character, escape in _ESCAPES:
        if code in encoded:
            encoded = encoded.replace(character, escape)
    return encoded if encoded.isascii() else _NOT_ASCII.sub(_escape, encoded)


def _escape(found: re.Match[bytes]) -> bytes:
    return quote(found[0]).encode()


def _encode_forms(texts: Sequence[str]) -> list[bytes]:
    """Encode all *texts* as one, which takes half the time."""
    encoded = encode_form("\0".join(texts)).split(b"%00")
    return encoded if len(encoded) == len(texts) else list(map(encode_form, texts))


def publish_body(topic_arn: str, messages: Sequence[OutgoingMessage]) -> bytes:
    """Return the body of PublishBatch."""
    parts = [b"Action=PublishBatch&Version=2010-03-31&TopicArn=" + _encode_cached(topic_arn)]
    bodies = _encode_forms([message.body for message in messages])
    for id_, message, body in zip(IDS, messages, bodies, strict=False):
        start = f"&PublishBatchRequestEntries.member.{int(id_) + 1}."
        parts += [f"{start}Id={id_}{start}Message=".encode(), body]
        if message.group_id is not None:
            parts += [f"{start}MessageGroupId=".encode(), _encode_cached(message.group_id)]
        if message.deduplication_id is not None:
            parts += [f"{start}MessageDeduplicationId=".encode(), encode_form(message.deduplication_id)]
        for number, (name, attribute) in enumerate(message.attributes.items(), 1):
            encode = _encode_attribute_cached if len(attribute.value) <= CACHED_CHARACTERS else _encode_attribute
            parts.append(encode(start, number, name, attribute))
    return b"".join(parts)


def _encode_attribute(start: str, number: int, name: str, attribute: Attribute) -> bytes:
    at = f"{start}MessageAttributes.entry.{number}.".encode()
    data_type, value = attribute
    field, text = (b"BinaryValue", b64encode(value).decode()) if isinstance(value, bytes) else (b"StringValue", value)
    parts = at, _encode_cached(name), at, _encode_cached(data_type), at, field, encode_form(text)
    return b"%bName=%b%bValue.DataType=%b%bValue.%b=%b" % parts


# For texts that repeat: ARNs, names, groups, and attributes such as an event's type.
_encode_cached = lru_cache(maxsize=4096)(encode_form)
_encode_attribute_cached = lru_cache(maxsize=4096)(_encode_attribute)


def read_response(body: bytes) -> dict[str, list[dict[str, Any]]]:
    """Return the entries of a PublishBatch response that were published, and those that failed.

    Raises:
        ValueError: The response is not XML, or not of PublishBatch.
    """
    complete = body.rstrip().endswith(b"</PublishBatchResponse>")
    none_failed = b"<Failed>" not in body or _NONE_FAILED.search(body)  # AWS writes <Failed/>, its emulators do not
    published = _SUCCESSFUL.search(body) if complete and none_failed else None
    if published:
        return {"Successful": [{"Id": id_.decode()} for id_ in _ID.findall(published[1])], "Failed": []}
    root = _parse(body)
    if not root.tag.endswith("PublishBatchResponse"):
        raise ValueError(f"the response is a {root.tag}, not a PublishBatchResponse")
    return {
        "Successful": [{"Id": one["Id"]} for one in _members(root, "Successful")],
        "Failed": [{**one, "SenderFault": one.get("SenderFault") == "true"} for one in _members(root, "Failed")],
    }


def read_error(response: Response) -> dict[str, Any]:
    """Return an error response in the form that botocore gives it."""
    try:
        root = _parse(response.body)
    except ValueError:
        return {"Error": {"Code": str(response.status), "Message": f"HTTP status {response.status}"}}
    fields = {_name(one): one.text or "" for error in root.iter() if _name(error) == "Error" for one in error}
    code = fields.get("Code", str(response.status))
    return {"Error": {"Code": code, "Message": fields.get("Message") or f"HTTP status {response.status}"}}


def _members(root: ET.Element, name: str) -> list[dict[str, str]]:
    lists = [one for one in root.iter() if _name(one) == name]
    return [{_name(field): field.text or "" for field in member} for one in lists for member in one]


def _parse(body: bytes) -> ET.Element:
    try:
        return ET.fromstring(body)  # noqa: S314
    except ET.ParseError as error:
        raise ValueError(f"the response is not XML: {error}") from None


def _name(element: ET.Element) -> str:
    """Return a tag without its namespace."""
    return element.tag.rpartition("}")[2]


PROTOCOL = ServiceProtocol("sns", "application/x-www-form-urlencoded; charset=utf-8", "ListTopics", read_error)
