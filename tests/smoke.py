"""What a first user does with the installed wheel, without any extra: import, publish and handle one event in memory.

``make release`` runs it in a clean venv, outside the checkout's import path.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import smartpipe
from smartpipe import Event, Service, Topic
from smartpipe.testing import MemoryBroker


class UserSignedUp(Event, topic=Topic("users"), type="user.signed_up", version="1.0"):
    name: str


service = Service("greeter")
greeted: list[str] = []


@service.subscribe(UserSignedUp)
async def greet(event: UserSignedUp) -> None:
    greeted.append(event.name)


async def main() -> None:
    async with MemoryBroker(service) as broker:
        await broker.publish(UserSignedUp(name="Ada"))
        await broker.drain()


if __name__ == "__main__":
    assert "site-packages" in Path(smartpipe.__file__).parts, f"not the wheel: {smartpipe.__file__}"
    asyncio.run(main())
    assert greeted == ["Ada"], greeted
    print(f"smartpipe {smartpipe.__version__}: published and handled one event")  # noqa: T201
