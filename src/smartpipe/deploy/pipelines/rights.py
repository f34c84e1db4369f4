"""The IAM policies of the roles of a pipeline, for AWS CloudFormation in any account and region. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from smartpipe.names import Naming
from smartpipe.topology.export.iam import build_policies
from smartpipe.topology.export.portable import rewrite

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from smartpipe.events import Contract
    from smartpipe.service import Service
    from smartpipe.topics import Queue
    from smartpipe.topology.derive import Binding
    from smartpipe.topology.table_and_bucket import TableAndBucket

_READING = ("Describe", "Get", "List")
_UNUSED = frozenset({"sns:DeleteTopic", "sqs:DeleteQueue"})
"""Only ``topology destroy`` needs them."""
_PSEUDO = {
    "the-partition": "${AWS::Partition}",
    "the-region-name": "${AWS::Region}",
    "the-accounts": "${AWS::AccountId}",
}
"""Placeholders that are at least as long as any real value, because IAM limits the length of a policy."""


class Rights(NamedTuple):
    """The policy documents of the stages that change or read the topology.

    Args:
        plan: Those that read it.
        deploy: Those that read and change it.
    """

    plan: Sequence[dict[str, Any]]
    deploy: Sequence[dict[str, Any]]


class _Services(NamedTuple):
    """Several services as one."""

    name: str
    bindings: tuple[Binding, ...]
    published: tuple[Contract, ...]
    sends_to: tuple[Queue, ...]
    idempotent: bool


def build_pipeline_rights(
    services: Sequence[Service], prefix: str, application: str, table_and_bucket: TableAndBucket
) -> Rights:
    """Return the policies that ``topology plan`` and ``topology apply`` of these services need.

    Raises:
        ConfigError: The declarations contradict each other.
    """
    together = _Services(
        application,
        tuple(binding for one in services for binding in one.bindings),
        tuple(dict.fromkeys(contract for one in services for contract in one.published)),
        tuple(dict.fromkeys(queue for one in services for queue in one.sends_to)),
        any(one.idempotent for one in services),
    )
    partition, region, account_id = _PSEUDO
    naming = Naming(partition, region, account_id, prefix, application)
    documents = [
        document
        for name, document in build_policies(together, naming, table_and_bucket).items()
        if name.partition("-")[0] == "provision"
    ]
    return Rights(
        [one for document in documents if (one := _filter(document, reading=True))["Statement"]],
        [_filter(document, reading=False) for document in documents],
    )


def _filter(document: dict[str, Any], *, reading: bool) -> dict[str, Any]:
    """Return the document with the actions that a pipeline uses, or with those that only read."""
    statements = []
    for statement in document["Statement"]:
        actions = [one for one in statement["Action"] if one not in _UNUSED and (not reading or _reads(one))]
        if actions:
            statements.append({**statement, "Action": actions, "Resource": _substitute(statement["Resource"])})
    return {**document, "Statement": statements}


def _reads(action: str) -> bool:
    return action.partition(":")[2].startswith(_READING)


def _substitute(resources: Iterable[str]) -> Any:
    def change(text: str) -> Any:
        found = text
        for placeholder, pseudo in _PSEUDO.items():
            found = found.replace(placeholder, pseudo)
        return text if found == text else {"Fn::Sub": found}

    return rewrite(list(resources), change)
