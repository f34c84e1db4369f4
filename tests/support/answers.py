"""Rewrite the responses to batch calls, to add failures that a broker does not produce."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.support.proxy import Rewrite


class Refused(NamedTuple):
    """The error of one entry in ``Failed``."""

    code: str
    sender_fault: bool


def failing(refused: Mapping[int, Refused]) -> Rewrite:
    """Move the entries with these Ids from ``Successful`` to ``Failed``."""
    return _rewriting({str(id_): error for id_, error in refused.items()})


def silent_about(*ids: int) -> Rewrite:
    """Leave the entries with these Ids out of both lists."""
    return _rewriting(dict.fromkeys(map(str, ids)))


def _rewriting(refused: Mapping[str, Refused | None]) -> Rewrite:
    def rewrite(status: int, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        changed = _json(json.loads(body), refused) if body.startswith(b"{") else _xml(body, refused)
        return status, headers, changed

    return rewrite


def _json(answer: dict[str, Any], refused: Mapping[str, Refused | None]) -> bytes:
    failed = [
        {"Id": id_, "Code": error.code, "SenderFault": error.sender_fault, "Message": f"{error.code}, says SQS"}
        for id_, error in refused.items()
        if error is not None
    ]
    successful = [entry for entry in answer.get("Successful", []) if entry["Id"] not in refused]
    return json.dumps({**answer, "Successful": successful, "Failed": [*answer.get("Failed", []), *failed]}).encode()


def _xml(body: bytes, refused: Mapping[str, Refused | None]) -> bytes:
    root = ET.fromstring(body)
    successful = root.find(".//{*}Successful")
    result = root.find("{*}PublishBatchResult")
    assert successful is not None
    assert result is not None
    namespace = successful.tag.removesuffix("Successful")
    failed = result.find("{*}Failed")
    if failed is None:
        failed = ET.SubElement(result, f"{namespace}Failed")
    for member in list(successful):
        if member.findtext("{*}Id") in refused:
            successful.remove(member)
    for id_, error in refused.items():
        if error is not None:
            member = ET.SubElement(failed, f"{namespace}member")
            fields = {
                "Id": id_,
                "Code": error.code,
                "SenderFault": str(error.sender_fault).lower(),
                "Message": "says SNS",
            }
            for name, text in fields.items():
                ET.SubElement(member, f"{namespace}{name}").text = text
    return ET.tostring(root)
