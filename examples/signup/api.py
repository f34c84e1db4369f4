"""The signup API: calls two services over HTTP, then publishes an event."""

import os
from collections.abc import AsyncIterator
from uuid import uuid4

from aiohttp import ClientSession, web

from signup.events import UserSignedUp
from signup.http import serve
from smartpipe import Publisher, Service

service = Service("signup-api", publishes=[UserSignedUp])

PUBLISHER = web.AppKey("publisher", Publisher)
CLIENT = web.AppKey("client", ClientSession)


async def signup(request: web.Request) -> web.Response:
    form = await request.json()
    user_id = uuid4()
    client = request.app[CLIENT]
    user = {"user_id": str(user_id), "name": form["name"], "email": form["email"]}
    async with client.post(os.environ["USER_METADATA_URL"] + "/users", json=user) as answer:
        answer.raise_for_status()
    secret = {"user_id": str(user_id), "password": form["password"]}
    async with client.post(os.environ["PASSWORDS_URL"] + "/passwords", json=secret) as answer:
        answer.raise_for_status()

    event = UserSignedUp(user_id=user_id, name=form["name"], email=form["email"])
    event_id = await request.app[PUBLISHER].publish(event)
    return web.json_response({"user_id": str(user_id), "event_id": event_id}, status=201)


async def clients(app: web.Application) -> AsyncIterator[None]:
    async with Publisher(source=service.name) as publisher, ClientSession() as client:
        app[PUBLISHER], app[CLIENT] = publisher, client
        yield


if __name__ == "__main__":
    app = web.Application()
    app.router.add_post("/signup", signup)
    app.cleanup_ctx.append(clients)
    serve(app)
