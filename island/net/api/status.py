"""The status of this island in the operator API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web

from island.net.api import base
from island.net.condition import Condition


def routes(status: Callable[[], dict[str, Any]], condition: Callable[[], Condition]) -> list[web.RouteDef]:
    """Return the route for the status.

    `status()` returns identity, addresses and engine; `condition()` is what `/readyz` reports too.
    """

    async def show(_: web.Request) -> web.Response:
        """Show name, key, archipelago, version, addresses, engine, state and problems of this island."""
        now = condition()
        return base.reply({**status(), "state": now.state, "problems": now.problems})

    return [web.get("/api/v1/island", show)]
