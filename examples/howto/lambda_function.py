"""The same handlers on AWS Lambda. Deploy this module with the handler `lambda_function.handler`."""

import asyncio
import json

from smartpipe import Event, Service, Topic
from smartpipe.testing import MemoryBroker


class UserSignedUp(Event, topic=Topic("users"), type="user.signed_up", version="1.0"):
    email: str


service = Service("mailer")


@service.subscribe(UserSignedUp)
async def send_welcome(event: UserSignedUp) -> None:
    if "nowhere" in event.email:
        raise ConnectionError("the mail server is down")
    print("welcome,", event.email)


handler = service.lambda_handler()


async def main() -> None:
    """Invoke the handler as Lambda would, with a batch of two messages, one of which fails."""

    def record(number: int, email: str) -> dict[str, object]:
        body = {"specversion": "1.0", "id": str(number), "source": "test", "type": "user.signed_up"}
        return {
            "messageId": f"message-{number}",
            "receiptHandle": "…",
            "body": json.dumps({**body, "data": {"email": email}}),
            "attributes": {"ApproximateReceiveCount": "1"},
            "messageAttributes": {},
            "eventSource": "aws:sqs",
            "eventSourceARN": "arn:aws:sqs:eu-west-1:123456789012:mailer",
        }

    async with MemoryBroker(service):  # instead of AWS
        records = [record(1, "ada@example.com"), record(2, "bob@nowhere.example")]
        print(await handler.handle({"Records": records}))
        await handler.aclose()


if __name__ == "__main__":
    asyncio.run(main())
