"""The password service: stores salted hashes, in memory. A real service would use a database."""

import asyncio
import hashlib
import os

from aiohttp import web

from signup.http import serve

SCRYPT_COST = int(os.environ.get("SCRYPT_COST", "16384"))

hashes: dict[str, tuple[bytes, bytes]] = {}


async def create_password(request: web.Request) -> web.Response:
    form = await request.json()
    salt = os.urandom(16)
    digest = await asyncio.to_thread(hashlib.scrypt, form["password"].encode(), salt=salt, n=SCRYPT_COST, r=8, p=1)
    hashes[form["user_id"]] = salt, digest
    return web.json_response({}, status=201)


if __name__ == "__main__":
    app = web.Application()
    app.router.add_post("/passwords", create_password)
    serve(app)
