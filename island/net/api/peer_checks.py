"""How this island looks from linked islands, in the operator API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec import Meta

from island.kernel.ids import IslandId
from island.net.api import base
from island.net.peer_checks import PeerCheck, PeerChecks


class NewPeerCheck(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /api/v1/peers/check`."""

    at_most: Annotated[int, Meta(ge=1, le=8)] = 4


def routes(checks: PeerChecks, display: Callable[[IslandId], str]) -> list[web.RouteDef]:
    """Return the route for the checks; `display` returns the displayed name of an island."""

    async def check(request: web.Request) -> web.Response:
        """Ask linked islands to dial this island, and what time it is there."""
        base.administrator(request)
        body = await base.body(request, NewPeerCheck)
        return base.reply([_row(each, display(each.island)) for each in await checks.run(body.at_most)])

    return [web.post("/api/v1/peers/check", check)]


def _row(check: PeerCheck, name: str) -> dict[str, Any]:
    return {
        "island": name,
        "key": check.island,
        "reached": check.reached,
        "reason": check.reason,
        "clock_ahead_s": None if check.clock_ahead_s is None else round(check.clock_ahead_s, 3),
        "clock_error_s": None if check.clock_error_s is None else round(check.clock_error_s, 3),
    }
