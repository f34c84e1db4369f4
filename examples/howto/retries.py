"""A mail server that is down for a while, one that asks us to come back later, and a wrong address."""

import asyncio

from tenacity import wait_exponential

from smartpipe import Event, Reject, Retry, RetryPolicy, Service, Topic
from smartpipe.testing import MemoryBroker


class UserSignedUp(Event, topic=Topic("users"), type="user.signed_up", version="1.0"):
    email: str


# Without wait=, the waits have full jitter: from 0 to base_seconds, which doubles each time up to max_seconds.
service = Service("mailer", retry=RetryPolicy(attempts=5, wait=wait_exponential(multiplier=10, max=600)))

answers = {
    "ada@example.com": iter([ConnectionError("the mail server is down")] * 3),
    "bob@nowhere.example": iter([LookupError("no such address")]),
    "cid@slow.example": iter([BlockingIOError("greylisted, come back in an hour")]),
}


@service.subscribe(UserSignedUp)
async def send_welcome(event: UserSignedUp) -> None:
    try:
        for error in answers[event.email]:
            raise error  # real code would send the mail here
    except LookupError as error:
        raise Reject(str(error)) from error  # a retry cannot help
    except BlockingIOError as error:
        raise Retry(str(error), after_seconds=3_600) from error  # other errors follow the retry policy


async def main() -> None:
    async with MemoryBroker(service) as broker:
        for email in answers:
            await broker.publish(UserSignedUp(email=email))
            await broker.drain()

        for retried in broker.retried(UserSignedUp):
            print(f"receive {retried.receive_count} failed, again after {retried.after_seconds:g} s: {retried.error}")
        for event in broker.handled(UserSignedUp):
            print("welcomed", event.email)
        for dead in broker.dead_lettered(UserSignedUp):
            print(f"dead-lettered, {dead.kind}: {dead.reason}")


if __name__ == "__main__":
    asyncio.run(main())
