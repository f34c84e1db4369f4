"""Makes the read-only calls of the live layer: few at once, in pages, and with a time limit.

A call that IAM refuses becomes a denial. A call that the endpoint does not know, as with emulators, is reported as not
seen. Neither keeps the other calls from being made.
"""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from smartpipe.doctor.live.account import FILTER_DELAY, Alarm, Key
from smartpipe.errors import TransportError
from smartpipe.names import is_arn, region_in, service_in
from smartpipe.topology.aws.calls import Reading
from smartpipe.transports.aws.errors import classify

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from datetime import datetime

    from smartpipe.topology.resources import Denial
    from smartpipe.transports.aws.session import AwsSession

T = TypeVar("T")

UNSUPPORTED = "Unsupported"
"""The code of calls that the endpoint does not know. AWS names each of its errors; emulators send a page of HTML."""
MAX_ALARM_PAGES = 100
"""A page has 100 alarms."""
MAX_EVENT_PAGES = 4
"""A page of CloudTrail has 50 events, and CloudTrail allows two calls a second."""


class Inquiry:
    """The calls of one report.

    Args:
        limit_seconds: The time for all calls together.

    Attributes:
        not_seen: A sentence for each fact that could not be read.
    """

    def __init__(self, session: AwsSession, limit_seconds: float) -> None:
        self.session = session
        self.not_seen: list[str] = []
        self._reading = Reading(session)
        self._deadline = asyncio.get_running_loop().time() + limit_seconds
        self._limit_seconds = limit_seconds

    @property
    def denials(self) -> list[Denial]:
        """The calls that IAM refused."""
        return self._reading.denials

    async def attempt(self, subject: str, work: Awaitable[T]) -> T | None:
        """Return the result of *work*, or None if it cannot be had: the report then names the *subject* as not seen."""
        try:
            async with asyncio.timeout_at(self._deadline):
                return await work
        except TransportError as error:
            reason = "the endpoint does not answer as AWS does" if is_unnamed(error.code) else error.detail
        except TimeoutError:
            reason = f"it could not be read within {self._limit_seconds:g} s"
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"the response is not one of AWS ({type(error).__name__}: {error})"
        self.not_seen.append(f"{subject}: {reason}")
        return None

    async def ask(self, call: Callable[[], Awaitable[Any]], action: str, resource: str) -> Any:
        """Make a call; return None if IAM refuses it, or if the resource does not exist.

        Raises:
            TransportError: ``Unsupported``, or the call failed for another reason.
        """

        async def call_known() -> Any:
            return await call_if_known(call, action, resource)

        return await self._reading.call(call_known, action, resource)

    async def read_alarms(self) -> list[Alarm] | None:
        """Return the alarms of the account with one metric or several; None if IAM refuses to list them."""
        client = await self.session.client("cloudwatch")
        found: list[Alarm] = []
        token: dict[str, str] = {}
        for _ in range(MAX_ALARM_PAGES):
            call = partial(client.describe_alarms, AlarmTypes=["MetricAlarm"], MaxRecords=100, **token)
            page = await self.ask(call, "cloudwatch:DescribeAlarms", "*")
            if page is None:
                return None
            found += map(read_alarm, page.get("MetricAlarms", []))
            if not page.get("NextToken"):
                return found
            token = {"NextToken": page["NextToken"]}
        self.not_seen.append(f"alarms after the first {len(found):,} of the account")
        return found

    async def read_key(self, name: str) -> Key | None:
        """Return the key with this id, ARN or alias; None if it cannot be read."""
        client = await self.session.client("kms", region=region_in(name) if name.startswith("arn:") else None)
        described = await self.ask(partial(client.describe_key, KeyId=name), "kms:DescribeKey", name)
        if described is None:
            return None
        key = described["KeyMetadata"]
        found = await self.ask(
            partial(client.get_key_policy, KeyId=key["Arn"], PolicyName="default"), "kms:GetKeyPolicy", key["Arn"]
        )
        return Key(key.get("KeyManager", "CUSTOMER"), key.get("KeyState", "Enabled"), (found or {}).get("Policy"))

    async def list_pending(self, topics: Iterable[str]) -> frozenset[tuple[str, str]]:
        """Return the subscriptions of *topics* that wait for a confirmation, by topic and endpoint."""
        found: set[tuple[str, str]] = set()
        for topic in topics:
            client = await self.session.client("sns", region=region_in(topic))
            token: dict[str, str] = {}
            while True:
                call = partial(client.list_subscriptions_by_topic, TopicArn=topic, **token)
                page = await self.ask(call, "sns:ListSubscriptionsByTopic", topic) or {}
                for entry in page.get("Subscriptions", []):
                    if entry["SubscriptionArn"].lower().replace(" ", "") == "pendingconfirmation":
                        found.add((topic, entry["Endpoint"]))
                if not page.get("NextToken"):
                    break
                token = {"NextToken": page["NextToken"]}
        return frozenset(found)

    async def read_filter_changes(self, now: datetime) -> dict[str, datetime]:
        """Return the recent changes of filter policies, by the ARN of the subscription. CloudTrail is minutes late."""
        client = await self.session.client("cloudtrail")
        wanted = [{"AttributeKey": "EventName", "AttributeValue": "SetSubscriptionAttributes"}]
        found: dict[str, datetime] = {}
        token: dict[str, str] = {}
        for _ in range(MAX_EVENT_PAGES):
            call = partial(
                client.lookup_events,
                LookupAttributes=wanted,
                StartTime=now - FILTER_DELAY,
                EndTime=now,
                MaxResults=50,
                **token,
            )
            page = await self.ask(call, "cloudtrail:LookupEvents", "*") or {}
            for event in page.get("Events", []):
                parameters = json.loads(event["CloudTrailEvent"]).get("requestParameters") or {}
                if str(parameters.get("attributeName", "")).startswith("FilterPolicy"):
                    arn = str(parameters.get("subscriptionArn"))
                    found[arn] = max(event["EventTime"], found.get(arn, event["EventTime"]))
            if not page.get("NextToken"):
                break
            token = {"NextToken": page["NextToken"]}
        return found


async def call_if_known(call: Callable[[], Awaitable[Any]], action: str, target: str) -> Any:
    """Make a call.

    Raises:
        TransportError: ``Unsupported`` if the response has no error code of AWS, or the error of the call.
    """
    try:
        return await call()
    except Exception as error:
        classified = classify(error, action=action, target=target)
        if is_unnamed(classified.code):
            raise TransportError(UNSUPPORTED, f"{action} is not supported", retryable=False) from error
        raise classified from error


def is_unnamed(code: str) -> bool:
    """Return whether the code of an error is not one of AWS's, or says that the endpoint does not know the call."""
    return code.isdigit() or code in {UNSUPPORTED, "Unknown", "InvalidAction", "NotImplemented", "UnknownOperation"}


def read_alarm(entry: dict[str, Any]) -> Alarm:
    """Return an alarm of a response of DescribeAlarms."""
    queries = entry.get("Metrics") or []
    metrics = [one["MetricStat"]["Metric"] for one in queries if "MetricStat" in one]
    if entry.get("MetricName"):
        metrics.append(entry)
    expressions = " ".join(str(one.get("Expression", "")) for one in queries).upper()
    actions = entry.get("AlarmActions") or []
    return Alarm(
        name=entry["AlarmName"],
        metrics=frozenset(
            (str(one.get("Namespace")), str(one.get("MetricName")), str(dimension.get("Value")))
            for one in metrics
            for dimension in one.get("Dimensions", [])
        ),
        state=entry.get("StateValue", "OK"),
        notifies=bool(entry.get("ActionsEnabled", True) and actions),
        searches="AWS/SQS" in expressions,
        scales=bool(actions) and all(is_arn(one) and service_in(one) == "autoscaling" for one in actions),
    )
