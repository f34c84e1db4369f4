"""The kinds of AWS resources that a topology consists of, one record each. Pure.

``KINDS`` is the only list of them. Deriving, planning, checking, destroying, reading and the IAM export iterate over
it. The AWS calls of each kind are in ``topology.aws.operations``, under the same name. A new kind of resource needs a
record here and a row there; docs/decisions/0026-resource-kinds.md explains why.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from smartpipe.limits import DEFAULT_TOPIC_LIMIT_BYTES
from smartpipe.names import name_in, service_in
from smartpipe.topology.policy import fit_statements
from smartpipe.topology.resources import (
    QUEUE_DEFAULTS,
    SUBSCRIPTION_DEFAULTS,
    TOPIC_DEFAULTS,
    count_messages,
    dead_letter_of,
    owner_of,
)
from smartpipe.topology.table_and_bucket import (
    BUCKET_CREATE_ACTIONS,
    BUCKET_LOOK_ACTIONS,
    TABLE_CREATE_ACTIONS,
    TABLE_LOOK_ACTIONS,
    TABLE_REDRIVE_ACTIONS,
    TABLE_USE_ACTIONS,
    find_table_error,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from smartpipe.names import Naming
    from smartpipe.topology.changes import Action
    from smartpipe.topology.derive import Declares
    from smartpipe.topology.resources import Attributes, Topology
    from smartpipe.topology.table_and_bucket import TableAndBucket

MESSAGES = "Messages"
"""In ``before`` of a queue that will be deleted: the number of messages that the plan found in it."""
SOURCES = "DeadLetterSources"
"""Among the attributes of a deployed queue: the ARNs of the queues that use it as their dead-letter queue; None if SQS
refused to list them. In ``before`` of a queue that will be deleted: those that the plan found."""
SUBSCRIBERS = "Subscribers"
"""In ``before`` of a topic that will be deleted: the endpoints of the subscriptions that the plan found."""


class Stage(IntEnum):
    """The stages in which changes are carried out, in order. The changes of one stage run concurrently.

    No event is lost in this order. A queue and its policy exist before a topic delivers to the queue. New
    subscriptions exist before old ones are deleted. Only then do queue policies exclude the topics of the old ones. A
    dead-letter queue exists as long as its queue does.
    """

    DEAD_LETTER_QUEUES = 0
    RESOURCES = 1
    SUBSCRIBE = 2
    UNSUBSCRIBE = 3
    NARROW_POLICIES = 4
    DELETE_RESOURCES = 5
    DELETE_QUEUES = 6
    DELETE_DEAD_LETTER_QUEUES = 7


Purpose: TypeAlias = Literal["publish", "consume", "provision", "redrive", "examine"]
"""The IAM policies of a service, one for each purpose."""


class Permission(NamedTuple):
    """The statement that the IAM policy for one purpose gets for the resources of a kind."""

    purpose: Purpose
    sid: str
    actions: tuple[str, ...]


def _choose_stage(action: Action, _attributes: Attributes) -> Stage:
    return Stage.DELETE_RESOURCES if action == "delete" else Stage.RESOURCES


def _find_other_owner(_key: Any, wanted: Attributes, present: Attributes | None, _desired: Topology) -> str:
    owner = owner_of(present)
    return "" if owner in (None, owner_of(wanted)) else f"application {owner} manages it"


@dataclass(frozen=True, kw_only=True)
class ResourceKind:
    """One kind of AWS resource: all that smartpipe knows about it without calling AWS.

    The defaults describe a resource that depends on no other one, such as a table.

    Args:
        name: As plans print it.
        resource_type: As the Resource Groups Tagging API calls it, for example ``sqs`` or ``dynamodb:table``. Empty if
            its resources are identified by the ARNs of others, as subscriptions are.
        finds_orphans: Whether a plan searches for deployed resources of this kind that carry the application's tags
            and that no TARGET declares.
        derive: Returns the resources that services need, by ARN. Topics, queues and subscriptions depend on each
            other, so ``topology.derive`` derives them together.
        defaults: The values that AWS uses for attributes that are not set.
        merge: Returns the wanted attributes, adapted to the deployed ones (None: not deployed).
        find_external_reason: Returns why smartpipe leaves a resource alone; empty if it manages the resource.
        find_errors: Returns why a deployed resource, by its ARN, can never become the declared one.
        choose_stage: Returns the stage of a change, by its action and the attributes that are set or deleted.
        describe_before_delete: Returns the attributes for ``Change.before`` of a deployed resource that will be
            deleted, so that the delete call can notice new users.
        kept_because: Why ``destroy`` never deletes a resource of this kind; empty if it may.
        permissions: Statements of the IAM export.
    """

    name: str
    resource_type: str = ""
    finds_orphans: bool = False
    derive: Callable[[Sequence[Declares], Naming, TableAndBucket], dict[str, Attributes]] = lambda *_: {}
    defaults: Mapping[str, str] = field(default_factory=dict)
    merge: Callable[[Attributes, Attributes | None], Attributes] = lambda wanted, _: wanted
    find_external_reason: Callable[[Any, Attributes, Attributes | None, Topology], str] = _find_other_owner
    find_errors: Callable[[str, Attributes], Iterable[str]] = lambda *_: ()
    choose_stage: Callable[[Action, Attributes], Stage] = _choose_stage
    describe_before_delete: Callable[[str, Topology], Attributes] = lambda *_: {}
    kept_because: str = ""
    permissions: tuple[Permission, ...] = ()

    def matches(self, arn: str) -> bool:
        """Return whether *arn* is the ARN of a resource of this kind."""
        service, _, prefix = self.resource_type.partition(":")
        return service == service_in(arn) and arn.split(":", 5)[5].startswith(prefix)


def _find_external_topic_reason(arn: str, wanted: Attributes, present: Attributes | None, desired: Topology) -> str:
    if arn in desired.external:
        return "declared by its ARN: read, never changed"
    return _find_other_owner(arn, wanted, present, desired)


def _describe_topic_before_delete(arn: str, actual: Topology) -> Attributes:
    return {SUBSCRIBERS: [endpoint for topic, endpoint in actual.subscriptions if topic == arn]}


def _merge_queue(wanted: Attributes, present: Attributes | None) -> Attributes:
    """Return the attributes with the policy that keeps the deployed statements of others."""
    present = present or {}
    if int(present.get("MaximumMessageSize", DEFAULT_TOPIC_LIMIT_BYTES)) < DEFAULT_TOPIC_LIMIT_BYTES:
        # SNS drops a message that is longer than its queue accepts, without an error.
        wanted = {"MaximumMessageSize": str(DEFAULT_TOPIC_LIMIT_BYTES), **wanted}
    if "Policy" in wanted:
        policy = fit_statements(present.get("Policy"), next(iter(wanted["Policy"]["Statement"]), None))
        wanted = {**wanted, "Policy": policy}
        if not policy and not present.get("Policy"):
            del wanted["Policy"]
    return wanted


def _find_external_queue_reason(arn: str, _wanted: Attributes, _present: Attributes | None, desired: Topology) -> str:
    return "existing=True: read, never changed" if arn in desired.external else ""


def _choose_queue_stage(action: Action, attributes: Attributes) -> Stage:
    has_dead_letter_queue = "RedrivePolicy" in attributes
    if action == "delete":
        return Stage.DELETE_QUEUES if has_dead_letter_queue else Stage.DELETE_DEAD_LETTER_QUEUES
    return Stage.RESOURCES if has_dead_letter_queue else Stage.DEAD_LETTER_QUEUES


def _describe_queue_before_delete(arn: str, actual: Topology) -> Attributes:
    attributes = actual.queues[arn]
    found: Attributes = {name: attributes[name] for name in ("RedrivePolicy",) if name in attributes}
    found[MESSAGES] = count_messages(attributes)
    sources = [source for source, one in actual.queues.items() if dead_letter_of(one) == arn]
    return {**found, SOURCES: sources} if sources else found


def _find_external_subscription_reason(
    key: tuple[str, str], _wanted: Attributes, present: Attributes | None, desired: Topology
) -> str:
    if key[1] not in desired.external:
        return ""
    return "another team owns the queue" if present is not None else "missing: the queue's owner has to subscribe it"


def _choose_subscription_stage(action: Action, _attributes: Attributes) -> Stage:
    return Stage.UNSUBSCRIBE if action == "delete" else Stage.SUBSCRIBE


def _derive_tables(services: Sequence[Declares], naming: Naming, settings: TableAndBucket) -> dict[str, Attributes]:
    return settings.derive_tables(naming) if any(service.idempotent for service in services) else {}


def _find_table_errors(arn: str, present: Attributes) -> Iterable[str]:
    return filter(None, [find_table_error(name_in(arn), present["KeySchema"])])


TOPIC = ResourceKind(
    name="topic",
    resource_type="sns",
    finds_orphans=True,
    defaults=TOPIC_DEFAULTS,
    find_external_reason=_find_external_topic_reason,
    describe_before_delete=_describe_topic_before_delete,
    permissions=(
        Permission(
            "provision",
            "ChangeTopics",
            ("sns:CreateTopic", "sns:DeleteTopic", "sns:SetTopicAttributes", "sns:Subscribe", "sns:TagResource"),
        ),
    ),
)
QUEUE = ResourceKind(
    name="queue",
    resource_type="sqs",
    finds_orphans=True,
    defaults=QUEUE_DEFAULTS,
    merge=_merge_queue,
    find_external_reason=_find_external_queue_reason,
    choose_stage=_choose_queue_stage,
    describe_before_delete=_describe_queue_before_delete,
    permissions=(
        Permission(
            "provision",
            "ChangeQueues",
            ("sqs:CreateQueue", "sqs:DeleteQueue", "sqs:SetQueueAttributes", "sqs:TagQueue"),
        ),
    ),
)
TABLE = ResourceKind(
    name="table",
    resource_type="dynamodb:table",
    derive=_derive_tables,
    find_errors=_find_table_errors,
    kept_because="services and environments may share it, and it holds claims",
    permissions=(
        Permission("consume", "ClaimOnce", TABLE_USE_ACTIONS),
        Permission("provision", "ChangeTables", TABLE_CREATE_ACTIONS),
        Permission("redrive", "LookUpAndForgetClaims", TABLE_REDRIVE_ACTIONS),
        Permission("examine", "LookAtTables", TABLE_LOOK_ACTIONS),
    ),
)
BUCKET = ResourceKind(
    name="bucket",
    resource_type="s3",
    derive=lambda _, naming, settings: settings.derive_buckets(naming),
    kept_because="environments may share it, and messages may point to it",
    permissions=(
        Permission("provision", "ChangeBuckets", BUCKET_CREATE_ACTIONS),
        Permission("examine", "LookAtBuckets", BUCKET_LOOK_ACTIONS),
    ),
)
SUBSCRIPTION = ResourceKind(
    name="subscription",
    defaults=SUBSCRIPTION_DEFAULTS,
    find_external_reason=_find_external_subscription_reason,
    choose_stage=_choose_subscription_stage,
)

KINDS: dict[str, ResourceKind] = {kind.name: kind for kind in (TOPIC, QUEUE, TABLE, BUCKET, SUBSCRIPTION)}
"""By name."""


def kinds_in_plan_order() -> list[ResourceKind]:
    """Return the kinds by the first stage in which one of their resources can be created."""
    return sorted(KINDS.values(), key=lambda kind: kind.choose_stage("create", {}))


def kind_of(arn: str) -> ResourceKind:
    """Return the kind of the resource with this ARN.

    Raises:
        LookupError: There is no such kind.
    """
    for kind in KINDS.values():
        if kind.matches(arn):
            return kind
    raise LookupError(f"no kind of resource has ARNs like {arn}")
