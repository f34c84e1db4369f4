"""Parse a request to an AWS endpoint."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl

if TYPE_CHECKING:
    from collections.abc import Mapping

_OPERATION_IN_PATH = re.compile(r"/operation/(\w+)")
_CREDENTIAL = re.compile(r"Credential=([^/]+)/\d+/([^/]+)/([^/]+)/")
_ENTRY = re.compile(r"PublishBatchRequestEntries\.member\.(\d+)\.(\w+)")
# IAM has no actions for batches. Source: Service Authorization Reference of SQS and SNS.
_SINGLE = {
    "SendMessageBatch": "SendMessage",
    "DeleteMessageBatch": "DeleteMessage",
    "ChangeMessageVisibilityBatch": "ChangeMessageVisibility",
    "PublishBatch": "Publish",
}
_PREFIX = {"monitoring": "cloudwatch", "tagging": "tag"}
# Actions that IAM cannot restrict to a resource.
_ANY_RESOURCE = frozenset(
    {"GetSubscriptionAttributes", "SetSubscriptionAttributes", "Unsubscribe", "ListSubscriptions", "GetResources"}
)


class Call(NamedTuple):
    """One request. ``fields`` are those of its JSON body or its form."""

    service: str
    operation: str
    fields: Mapping[str, Any]
    access_key: str
    region: str
    signed_at: str = ""

    @property
    def actions(self) -> list[str]:
        """The IAM actions that the call needs. Tags at creation need a further action."""
        prefix = _PREFIX.get(self.service, self.service)
        actions = [f"{prefix}:{_SINGLE.get(self.operation, self.operation)}"]
        if self.operation == "CreateQueue" and self.fields.get("tags"):
            actions.append("sqs:TagQueue")
        if self.operation == "CreateTopic" and any(name.startswith("Tags.") for name in self.fields):
            actions.append("sns:TagResource")
        return actions

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The entries of a batch, with the names of SQS or SNS. Entries of SNS lack their message attributes."""
        if "Entries" in self.fields:
            return list(self.fields["Entries"])
        found: dict[str, dict[str, Any]] = {}
        for name, value in self.fields.items():
            entry = _ENTRY.fullmatch(name)
            if entry:
                found.setdefault(entry[1], {})[entry[2]] = value
        return list(found.values())

    def resource(self, account_id: str) -> str:
        """Return the ARN that IAM checks."""
        if self.operation in _ANY_RESOURCE or self.service not in {"sqs", "sns"}:
            return "*"
        for name in ("TopicArn", "ResourceArn"):
            if name in self.fields:
                return str(self.fields[name])
        named = self.fields.get("QueueUrl") or self.fields.get("QueueName") or self.fields.get("Name") or ""
        return f"arn:aws:{self.service}:{self.region}:{account_id}:{str(named).rpartition('/')[2]}"


def read_call(path: str, headers: Mapping[str, str], body: bytes) -> Call:
    """Parse a request of the query, JSON or CBOR protocol. The fields of CBOR are not parsed."""
    found = _CREDENTIAL.search(headers.get("Authorization", ""))
    access_key, region, service = found.groups() if found else ("", "", "")
    target, signed_at = headers.get("X-Amz-Target", ""), headers.get("X-Amz-Date", "")
    in_path = _OPERATION_IN_PATH.search(path)
    if target:
        return Call(service, target.rpartition(".")[2], json.loads(body or b"{}"), access_key, region, signed_at)
    if in_path:
        return Call(service, in_path[1], {}, access_key, region)
    fields = dict(parse_qsl(body.decode()))
    return Call(service, fields.get("Action", ""), fields, access_key, region, signed_at)
