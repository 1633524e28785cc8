"""The server list in the operator API."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec import Meta

from island.membership.service import Membership, ServerView
from island.net.api import base


class NewServer(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /api/v1/servers`."""

    kind: Annotated[str, Meta(max_length=64)]
    url: Annotated[str, Meta(max_length=2048)]
    comment: Annotated[str, Meta(max_length=2000)] = ""


def routes(membership: Membership) -> list[web.RouteDef]:
    """Return the routes for servers."""

    async def ls(_: web.Request) -> web.Response:
        """List the servers of all islands: island, id, kind, url, comment, mine."""
        return base.reply([_row(server) for server in await membership.servers()])

    async def add(request: web.Request) -> web.Response:
        """Add a server of this island; the answer is its row."""
        caller = base.administrator(request)
        body = await base.body(request, NewServer)
        return base.reply(_row(await membership.add_server(caller.user, body.kind, body.url, body.comment)), 201)

    async def remove(request: web.Request) -> web.Response:
        """Remove a server of this island; the answer is the removed row."""
        caller = base.administrator(request)
        return base.reply(_row(await membership.remove_server(caller.user, request.match_info["id"])))

    return [
        web.get("/api/v1/servers", ls),
        web.post("/api/v1/servers", add),
        web.delete("/api/v1/servers/{id}", remove),
    ]


def _row(server: ServerView) -> dict[str, Any]:
    return {
        "island": server.display,
        "key": server.island,
        "id": server.id,
        "kind": server.kind,
        "url": server.url,
        "comment": server.comment,
        "mine": server.mine,
    }
