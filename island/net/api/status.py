"""What this island is and how it does: one object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web

from island.net.api import base


def routes(status: Callable[[], dict[str, Any]], problems: Sequence[Callable[[], Sequence[str]]]) -> list[web.RouteDef]:
    """`status()` gives the keys that are known at the composition root; `problems` what is wrong, each in words."""

    async def show(_: web.Request) -> web.Response:
        """This island: name, key, archipelago, version, where it listens, its engine, and what is wrong."""
        return base.reply({**status(), "problems": [text for each in problems for text in each()]})

    return [web.get("/api/v1/island", show)]
