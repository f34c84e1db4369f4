"""Rules over the clock, the credentials and the addresses of this process. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smartpipe.doctor.findings import Finding
from smartpipe.doctor.lookup import find_region

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from smartpipe.doctor.live.account import Environment

MAX_SKEW_SECONDS = 60
MIN_CREDENTIAL_SECONDS = 3_600


def find_environment_mistakes(environment: Environment, configured_account: str, now: datetime) -> Iterator[Finding]:
    """SP308: a wrong clock, credentials near their end, and addresses of another region or account."""
    if environment.clock and abs(skew := environment.clock.skew.total_seconds()) > MAX_SKEW_SECONDS:
        yield Finding(
            code="SP308",
            resource="clock",
            message=f"this machine's clock is {abs(skew):,.0f} s {'ahead of' if skew > 0 else 'behind'} that of AWS, "
            "which refuses requests from 5 minutes on",
            remedy="synchronize the clock, as with chrony",
            figures={"skew_seconds": round(skew)},
        )
    if environment.expiry is not None and (left := (environment.expiry - now).total_seconds()) < MIN_CREDENTIAL_SECONDS:
        yield Finding(
            code="SP308",
            resource="credentials",
            message=f"the credentials in the environment expire in {left / 60:,.0f} minutes, and nothing renews them",
            remedy="use a profile or a role, which botocore renews, or export new credentials",
            figures={"expires": environment.expiry.isoformat()},
            milder="warning",
        )
    if environment.account_id and configured_account != environment.account_id:
        yield Finding(
            code="SP308",
            resource="account",
            message=f"SMARTPIPE_ACCOUNT_ID is {configured_account}, and the credentials belong to account "
            f"{environment.account_id}",
            remedy="correct or remove the variable, unless another account owns the queues on purpose",
            milder="warning",
            figures={"configured": configured_account, "actual": environment.account_id},
        )
    for name, url in environment.urls.items():
        region = find_region(url)
        if region is not None and region != environment.region:
            yield Finding(
                code="SP308",
                resource=name,
                message=f"its address is in {region}, and the region of this environment is {environment.region}: AWS "
                "refuses the signatures of requests",
                remedy="set AWS_REGION to the region of the queues, or correct the address",
                figures={"address_region": region, "region": environment.region},
            )
