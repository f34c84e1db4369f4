"""The user-metadata service: stores names and addresses, in memory. A real service would use a database."""

from aiohttp import web

from signup.http import serve

users: dict[str, dict[str, str]] = {}


async def create_user(request: web.Request) -> web.Response:
    user = await request.json()
    users[user["user_id"]] = user
    return web.json_response(user, status=201)


if __name__ == "__main__":
    app = web.Application()
    app.router.add_post("/users", create_user)
    serve(app)
