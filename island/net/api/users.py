"""Users and their tokens in the operator API. A user sees and manages herself only."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from aiohttp import web
from msgspec import Meta

from island.config import Config
from island.kernel.ports import Clock
from island.net.api import base
from island.trust.user_list import IssuedToken, UserList
from island.trust.users import TOKEN_FILES, UserRow


class NewUser(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /api/v1/users`. The token is valid for `valid_s` seconds; 0: without end."""

    name: Annotated[str, Meta(max_length=64)]
    role: Literal["administrator", "user"] = "user"
    valid_s: float = 0.0


class TokenRotation(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /api/v1/users/NAME/rotate`. Without `valid_s`, the new token expires as the old one would."""

    valid_s: float | None = None


def routes(users: UserList, config: Config, clock: Clock) -> list[web.RouteDef]:
    """Return the routes for users."""

    def row(user: UserRow) -> dict[str, Any]:
        return {
            "island": config.island.name,
            "name": user.name,
            "role": user.role,
            "state": user.state(clock.wall()),
            "created": base.iso(user.created),
            "issued": base.iso(user.issued),
            "expires": base.iso(user.expires),
            "revoked": base.iso(user.revoked),
            "max_live": config.jobs.live_limit(user.name),
        }

    def issued(made: IssuedToken) -> dict[str, Any]:
        return {**row(made.user), "token": made.token}

    async def ls(request: web.Request) -> web.Response:
        """List the users; for a user, only herself."""
        return base.reply([row(user) for user in await users.visible(base.principal(request))])

    async def whoami(request: web.Request) -> web.Response:
        """Show whom the token of the request belongs to."""
        caller = base.principal(request)
        if caller.user not in TOKEN_FILES:
            return base.reply(row(await users.show(caller, caller.user)))
        unknown = dict.fromkeys(("created", "issued", "expires", "revoked"))
        shared = {"island": config.island.name, "name": caller.user, "role": caller.role, "state": "shared"}
        return base.reply({**shared, **unknown, "max_live": config.jobs.live_limit(caller.user)})

    async def show(request: web.Request) -> web.Response:
        """Show a user; a user can see herself only."""
        return base.reply(row(await users.show(base.principal(request), request.match_info["name"])))

    async def add(request: web.Request) -> web.Response:
        """Add a user; the answer has her token, which is not stored."""
        caller = base.administrator(request)
        body = await base.body(request, NewUser)
        return base.reply(issued(await users.add(caller, body.name, body.role, body.valid_s)), 201)

    async def rotate(request: web.Request) -> web.Response:
        """Replace the token of a user; the answer has the new one. The old one is invalid at once."""
        body = await base.body(request, TokenRotation)
        made = await users.rotate(base.principal(request), request.match_info["name"], body.valid_s)
        return base.reply(issued(made))

    async def revoke(request: web.Request) -> web.Response:
        """Revoke the token of a user, which is invalid at once."""
        return base.reply(row(await users.revoke(base.principal(request), request.match_info["name"])))

    return [
        web.get("/api/v1/user", whoami),
        web.get("/api/v1/users", ls),
        web.post("/api/v1/users", add),
        web.get("/api/v1/users/{name}", show),
        web.delete("/api/v1/users/{name}", revoke),
        web.post("/api/v1/users/{name}/rotate", rotate),
    ]
