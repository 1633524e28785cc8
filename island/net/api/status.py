"""The status of this island in the operator API."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web

from island.net.api import base


def routes(status: Callable[[], dict[str, Any]], problems: Sequence[Callable[[], Sequence[str]]]) -> list[web.RouteDef]:
    """Return the route for the status.

    `status()` returns identity, addresses and engine. Each function in `problems` returns descriptions of
    current problems.
    """

    async def show(_: web.Request) -> web.Response:
        """Show name, key, archipelago, version, addresses, engine and problems of this island."""
        return base.reply({**status(), "problems": [text for each in problems for text in each()]})

    return [web.get("/api/v1/island", show)]
