"""Reads an account for the rules of the live layer."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, NamedTuple

from smartpipe.batching.resend import retry
from smartpipe.doctor.live.account import Account, Clock, Environment, list_daily_metrics, list_recent_metrics
from smartpipe.doctor.live.inquiry import UNSUPPORTED, Inquiry, call_if_known
from smartpipe.errors import ConfigError, TransportError
from smartpipe.names import account_in, name_in
from smartpipe.topology.aws.cloudwatch import read_metrics
from smartpipe.topology.aws.read import TopologyReader
from smartpipe.topology.checks import find_errors, find_notes
from smartpipe.topology.derive import derive
from smartpipe.topology.plan import plan
from smartpipe.topology.resources import Topology, arns_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from smartpipe.names import Naming
    from smartpipe.service import Service
    from smartpipe.topology.table_and_bucket import TableAndBucket
    from smartpipe.transports.aws.session import AwsSession

LIMIT_SECONDS = 120.0
"""The time for all calls together."""
FIRST_CALL_SECONDS = 3.0
"""How long the first call is retried: it shows whether AWS can be reached at all."""
DAYS = timedelta(days=14)
HOURS = timedelta(hours=3)
ADDRESSES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_SQS", "AWS_ENDPOINT_URL_SNS")
EXPIRY = "AWS_CREDENTIAL_EXPIRATION"


class Read(NamedTuple):
    """The account, as far as it could be read.

    Args:
        not_seen: A sentence for each fact that was not seen.
        failure: Why no resource at all could be read; None if some could.
    """

    account: Account
    environment: Environment
    not_seen: list[str]
    failure: str | None = None


async def read_account(session: AwsSession, services: Sequence[Service], table_and_bucket: TableAndBucket) -> Read:
    """Read the resources that *services* need, and their metrics, alarms and keys.

    Raises:
        ConfigError: The AWS configuration has an error.
        TransportError: AWS cannot be reached, or refuses the credentials.
    """
    inquiry = Inquiry(session, LIMIT_SECONDS)
    environment = await read_environment(inquiry)
    naming = await session.addresses.naming()
    empty = Account(naming, Topology({}), Topology({}), datetime.now(UTC))
    try:
        desired = derive(services, naming, table_and_bucket)
    except ConfigError:
        return Read(empty, environment, ["the account: the topology cannot be derived, see SP100"])
    account = await inquiry.attempt("the deployed resources", read_topology(inquiry, desired, naming))
    if account is None:
        *not_seen, failure = inquiry.not_seen
        return Read(empty, environment, [*not_seen, "the account"], failure)
    account = await read_details(inquiry, account)
    addresses = await inquiry.attempt("the addresses of the queues", read_addresses(session, account))
    environment = environment._replace(urls={**environment.urls, **(addresses or {})})
    denials = (*account.denials, *inquiry.denials)
    return Read(account._replace(denials=denials), environment, inquiry.not_seen)


async def read_environment(inquiry: Inquiry) -> Environment:
    """Return the environment of this process, with the account of its credentials and the time of AWS.

    Raises:
        TransportError: AWS cannot be reached, or refuses the credentials.
    """
    session = inquiry.session
    urls = {name: os.environ[name] for name in ADDRESSES if os.environ.get(name)}
    environment = Environment(session.region, urls)
    client = await session.client("sts")  # it reports errors in the AWS configuration, so it comes first
    found = await session.find_credentials()
    if found is not None and found.method == "env" and os.environ.get("AWS_SESSION_TOKEN"):
        environment = environment._replace(temporary=True, expiry=read_expiry(os.environ.get(EXPIRY)))
        if environment.expiry is None:
            inquiry.not_seen.append(f"when the credentials in AWS_SESSION_TOKEN expire: {EXPIRY} is not set")
    before = datetime.now(UTC)

    async def call() -> dict[str, object]:
        nonlocal before
        before = datetime.now(UTC)
        return dict(await call_if_known(client.get_caller_identity, "sts:GetCallerIdentity", "this account"))

    try:
        response = await retry(call, deadline_seconds=FIRST_CALL_SECONDS)
    except TransportError as error:
        if error.code not in {UNSUPPORTED, "AccessDenied"}:
            raise
        inquiry.not_seen.append("the account of the credentials, and the time of AWS: STS does not say")
        return environment
    here = before + (datetime.now(UTC) - before) / 2
    metadata = response.get("ResponseMetadata")
    date = metadata.get("HTTPHeaders", {}).get("date") if isinstance(metadata, dict) else None
    clock = Clock(here, parsedate_to_datetime(date).astimezone(UTC)) if date else None
    if clock is None:
        inquiry.not_seen.append("the time of AWS: the response has no Date header")
    account_id = response.get("Account")
    return environment._replace(account_id=str(account_id) if account_id else None, clock=clock)


def read_expiry(text: str | None) -> datetime | None:
    """Return the moment in AWS_CREDENTIAL_EXPIRATION; None if it has none."""
    try:
        found = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


async def read_topology(inquiry: Inquiry, desired: Topology, naming: Naming) -> Account:
    """Return the account with the deployed resources and the plan.

    Raises:
        TransportError: A call failed for another reason than missing permissions.
    """
    reader = TopologyReader(inquiry.session)
    actual = await reader.read_permitted(desired)
    inquiry.not_seen += reader.notes
    denied = {denial.resource for denial in reader.denials}
    hidden = {f"{kind} {name_in(arn)}" for arn in denied for kind in ("queue", "topic")}
    readable, deployed = _without(desired, denied), _without(actual, denied)
    return Account(
        naming,
        readable,
        deployed,
        datetime.now(UTC),
        changes=plan(readable, deployed),
        errors=find_errors(readable, deployed),
        notes=[note for note in find_notes(desired, actual) if note.resource not in hidden],
        denials=tuple(reader.denials),
    )


def _without(topology: Topology, denied: Collection[str]) -> Topology:
    """Return the topology without the resources that could not be read completely, so that none seems to differ."""
    hidden = frozenset(denied)
    kept = {
        name: {key: one for key, one in resources.items() if hidden.isdisjoint(arns_of(key))}
        for name, resources in topology.resources.items()
    }
    if "*" in hidden:  # GetSubscriptionAttributes has no resource in IAM
        kept["subscription"] = {}
    return topology.replace(**kept)


async def read_details(inquiry: Inquiry, account: Account) -> Account:
    """Return the account with its metrics, alarms, keys and subscriptions."""
    session, desired = inquiry.session, account.desired
    names = sorted({str(one["KmsMasterKeyId"]) for one in account.own_queues.values() if one.get("KmsMasterKeyId")})
    incomplete = {
        change.arns[0]
        for change in account.changes
        if change.kind == "subscription" and (change.action == "create" or change.reason.startswith("missing"))
    }
    topics = sorted(arn for arn in incomplete if account_in(arn) == account.naming.account_id)
    attempt, ask = inquiry.attempt, inquiry.ask
    days, hours, alarms, keys, pending, changes = await asyncio.gather(
        attempt("metrics of 14 days", read_metrics(session, list_daily_metrics(desired), DAYS, ask)),
        attempt("metrics of the last hours", read_metrics(session, list_recent_metrics(desired), HOURS, ask)),
        attempt("alarms of CloudWatch", inquiry.read_alarms()),
        asyncio.gather(*(attempt(f"the policy of key {name}", inquiry.read_key(name)) for name in names)),
        attempt("subscriptions that wait for a confirmation", inquiry.list_pending(topics)),
        attempt("recent changes of filter policies", inquiry.read_filter_changes(account.now)),
    )
    return account._replace(
        metrics={**(days or {}), **(hours or {})},
        alarms=alarms,
        keys={name: key for name, key in zip(names, keys, strict=True) if key is not None},
        pending=pending or frozenset(),
        filter_changes=changes or {},
    )


async def read_addresses(session: AwsSession, account: Account) -> dict[str, str]:
    """Return the URL of each queue that was read."""
    urls = await asyncio.gather(*map(session.addresses.queue_url, account.own_queues))
    return {f"queue {name_in(arn)}": url for arn, url in zip(account.own_queues, urls, strict=True)}
