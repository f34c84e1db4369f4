"""A service that reports its failed deliveries to Sentry: one issue for each place where a handler fails."""

import asyncio
from typing import Any

import sentry_sdk
from sentry_sdk.integrations.logging import ignore_logger
from sentry_sdk.transport import Transport
from tenacity import wait_fixed

from smartpipe import DeliveryFailure, Event, MessageError, Reject, Retry, RetryPolicy, Service, Topic
from smartpipe.testing import MemoryBroker


class UserSignedUp(Event, topic=Topic("users"), type="user.signed_up", version="1.0"):
    email: str


service = Service("mailer", retry=RetryPolicy(attempts=2, wait=wait_fixed(30)))


@service.subscribe(UserSignedUp)
async def send_welcome(event: UserSignedUp) -> None:
    if "@" not in event.email:
        raise Reject("the address has no @")
    raise ConnectionError("the mail server is down")


def init_sentry(**options: Any) -> None:
    sentry_sdk.init(  # it is off unless SENTRY_DSN is set
        include_local_variables=False,  # local variables contain the event
        max_breadcrumbs=0,  # log lines may contain events, also other ones
        in_app_exclude=["smartpipe"],  # group by the frames of your code
        **options,
    )
    ignore_logger("smartpipe.consumer")  # its lines are about the same failures


init_sentry()


@service.on_failure
def report(failure: DeliveryFailure) -> None:
    error = failure.error
    if isinstance(error, Retry) and failure.outcome == "retried":
        return  # the handler has asked for it
    with sentry_sdk.new_scope() as scope:
        scope.set_level("warning" if failure.outcome == "retried" else "error")
        scope.set_tags({name: value for name, value in failure.log_fields.items() if value is not None})
        if isinstance(error, MessageError):  # the causes of this error quote the body of the message
            scope.fingerprint = [failure.queue, error.kind]
            scope.capture_message(str(error))
            return
        if error.__traceback__ is None:  # such as a timeout, which nothing has raised
            scope.fingerprint = [str(failure.handler), type(error).__name__]
        scope.capture_exception(error)


class PrintingTransport(Transport):
    """Prints each report in place of sending it."""

    def capture_envelope(self, envelope: Any) -> None:
        event = envelope.get_event()
        error = event["exception"]["values"][-1] if "exception" in event else {"type": "message"}
        shown = [f"{name}={event['tags'].get(name)}" for name in ("event_type", "attempt", "outcome", "kind")]
        print(event["level"], error["type"], *shown)


async def main() -> None:
    init_sentry(dsn="https://key@sentry.example/1", transport=PrintingTransport)
    async with MemoryBroker(service) as broker:
        for email in ("ada@example.com", "bob"):
            await broker.publish(UserSignedUp(email=email))
            await broker.drain()
        await broker.send("mailer", "not an event")
        await broker.drain()
    sentry_sdk.flush()


if __name__ == "__main__":
    asyncio.run(main())
