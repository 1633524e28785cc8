"""The islands that are announced on the local network, in the operator API."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from island.discovery.core import Announcement
from island.discovery.service import Discovery
from island.kernel.ids import key_prefix
from island.membership.service import Membership
from island.net.api import base
from island.trust.service import Trust


def routes(discovery: Discovery, membership: Membership, trust: Trust) -> list[web.RouteDef]:
    """Return the route for the islands on the local network."""

    async def nearby(_: web.Request) -> web.Response:
        """List the islands that are announced on the local network, without proof."""
        now = discovery.nearby()
        displays = {key_prefix(island): membership.display(island) for island in membership.islands()}
        islands = [_row(each, trust.network, displays.get(each.key_prefix, "")) for each in now.islands]
        return base.reply(
            {
                "state": now.state,
                "problem": now.problem,
                "note": now.note,
                "announced": now.announced,
                "islands": islands,
            }
        )

    return [web.get("/api/v1/peers/nearby", nearby)]


def _row(announced: Announcement, network: str | None, display: str) -> dict[str, Any]:
    is_mine = announced.network == network
    return {
        "network": announced.network,
        "mine": is_mine,
        "key_prefix": announced.key_prefix,
        "island": display if is_mine else "",
        "addresses": list(announced.addresses),
    }
