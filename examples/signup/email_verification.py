"""The email-verification service: sends a mail to every new user."""

import logging

from signup.events import UserSignedUp
from smartpipe import Delivery, RetryPolicy, Service

log = logging.getLogger(__name__)
service = Service("email-verification")


@service.subscribe(UserSignedUp, retry=RetryPolicy(attempts=4, base_seconds=0.5), timeout_seconds=10)
async def send_verification(event: UserSignedUp, delivery: Delivery) -> None:
    if event.email.endswith("@unreachable.example"):
        raise ConnectionError("the mail server of unreachable.example does not answer")
    log.debug("wrote to %s, attempt %d", event.email, delivery.receive_count)
