"""Messages from programs without smartpipe, as a worker reads them."""

import asyncio
import json
from base64 import b64encode

from smartpipe import Event, Service, Topic
from smartpipe.testing import MemoryBroker


class UserSignedUp(Event, topic=Topic("users"), type="user.signed_up", version="1.0"):
    name: str


service = Service("greeter")


@service.subscribe(UserSignedUp)
async def greet(event: UserSignedUp) -> None:
    print(f"hello {event.name}")


ENVELOPE = {"specversion": "1.0", "type": "user.signed_up", "source": "legacy-crm"}
STRUCTURED = json.dumps({**ENVELOPE, "id": "1", "data": {"name": "Ada"}})
AS_BYTES = json.dumps({**ENVELOPE, "id": "2", "data_base64": b64encode(b'{"name": "Bob"}').decode()})
IN_A_NOTIFICATION = json.dumps(
    {
        "Type": "Notification",
        "MessageId": "3",
        "TopicArn": "arn:aws:sns:eu-west-1:123456789012:users",
        "Message": json.dumps({**ENVELOPE, "id": "3", "data": {"name": "Cid"}}),
    }
)
BATCH = json.dumps([json.loads(STRUCTURED)])


async def main() -> None:
    async with MemoryBroker(service) as broker:
        for body in (STRUCTURED, AS_BYTES, IN_A_NOTIFICATION, BATCH):
            await broker.send("greeter", body)
        await broker.drain()
        print("dead-lettered:", broker.dead_lettered()[0].error)


asyncio.run(main())
