"""Run an HTTP service on the port in the environment, with a health check."""

import os

from aiohttp import web


async def healthy(_: web.Request) -> web.Response:
    return web.json_response({"ready": True})


def serve(app: web.Application) -> None:
    app.router.add_get("/readyz", healthy)
    web.run_app(app, host="127.0.0.1", port=int(os.environ["PORT"]), access_log=None, print=None)
