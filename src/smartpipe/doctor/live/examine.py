"""Applies all rules of the live layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from smartpipe.doctor.costs.prices import PRICES
from smartpipe.doctor.findings import Examined, Finding
from smartpipe.doctor.live.dead_letters import (
    find_dead_letters,
    find_expiring_messages,
    find_missing_alarms,
    list_unseen,
)
from smartpipe.doctor.live.deliveries import find_failed_deliveries, find_subscription_mistakes
from smartpipe.doctor.live.drift import find_drift
from smartpipe.doctor.live.environment import find_environment_mistakes
from smartpipe.doctor.live.policies import find_key_mistakes, find_open_policies
from smartpipe.doctor.live.read import read_account
from smartpipe.doctor.live.usage import find_empty_receives, find_unfair_use
from smartpipe.errors import TransportError
from smartpipe.names import name_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from smartpipe.doctor.costs.prices import Prices
    from smartpipe.doctor.live.read import Read
    from smartpipe.service import Service
    from smartpipe.settings import WorkerSettings
    from smartpipe.topology.resources import Denial
    from smartpipe.topology.table_and_bucket import TableAndBucket
    from smartpipe.transports.aws.session import AwsSession

    Known: TypeAlias = tuple[WorkerSettings, TableAndBucket, Examined]
    """The settings of this environment, and the mistakes in them."""


async def examine_account(
    session: AwsSession, services: Sequence[Service], environment: Known, prices: Prices
) -> tuple[Examined, str]:
    """Read the account and apply the rules; return the result, and the account for people.

    That AWS cannot be reached, or refuses the credentials, is a finding.

    Raises:
        ConfigError: The AWS configuration has an error.
    """
    settings, table_and_bucket, _ = environment
    try:
        read = await read_account(session, services, table_and_bucket)
    except TransportError as error:
        return Examined([report_unreachable(error.detail)], ["the account"]), "no account"
    naming = read.account.naming
    findings = list(examine_read(read, settings.poll_seconds, prices))
    if read.failure is not None:
        findings.append(report_unreachable(read.failure))
    account = f"account {naming.account_id} in {naming.region}"
    return Examined(findings, [*read.not_seen, *_list_unseen(read)]), account


def examine_read(read: Read, poll_seconds: int, prices: Prices = PRICES) -> Iterator[Finding]:
    """Apply the rules to an account that has been read.

    Args:
        poll_seconds: How long a receive call of a worker with the settings of this environment waits.
    """
    account = read.account
    yield from find_denials(account.denials)
    yield from find_environment_mistakes(read.environment, account.naming.account_id, account.now)
    for find in (
        find_dead_letters,
        find_expiring_messages,
        find_missing_alarms,
        find_open_policies,
        find_failed_deliveries,
        find_drift,
        find_key_mistakes,
        find_subscription_mistakes,
        find_unfair_use,
    ):
        yield from find(account)
    yield from find_empty_receives(account, poll_seconds, prices)


def find_denials(denials: Iterable[Denial]) -> Iterator[Finding]:
    """SP300: one finding for each action that IAM refused."""
    by_action: dict[str, set[str]] = {}
    for denial in denials:
        by_action.setdefault(denial.action, set()).add(denial.resource)
    for action, resources in sorted(by_action.items()):
        names = sorted(name_in(one) if one.startswith("arn:") else one for one in resources)
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")  # noqa: PLR2004
        yield Finding(
            code="SP300",
            resource=action,
            message=f"IAM refuses {action} on {shown}, so the rules that need it did not run",
            remedy="smartpipe topology export --format iam prints the policy examine, which allows all calls of --live",
            figures={"resources": len(names)},
            milder="warning",
        )


def report_unreachable(reason: str) -> Finding:
    """Return the finding about an account that cannot be read at all."""
    return Finding(
        code="SP300",
        resource="account",
        message=f"AWS could not be asked: {reason}",
        remedy="correct the credentials, AWS_REGION or AWS_ENDPOINT_URL, or run doctor without --live",
    )


def _list_unseen(read: Read) -> Iterator[str]:
    account = read.account
    yield from list_unseen(account)
    if account.desired.queues and not account.metrics:
        yield "failed deliveries, empty receives and noisy tenants: CloudWatch has no values"
    for arn in account.desired.external:
        yield f"policies and alarms of {name_in(arn)}: it has another owner"
