"""Islands, invitations and joining in the operator API."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec import Meta

from island.config import is_loopback, split_address
from island.errors import NotFound
from island.kernel.ids import IslandId
from island.kernel.ports import Link
from island.membership.service import IslandView, Membership
from island.net.api import base
from island.net.peers import TlsPeers
from island.trust.service import Trust


class NewInvitation(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /api/v1/peers/invitations`."""

    uses: Annotated[int, Meta(ge=1, le=1000)] = 1
    valid_s: Annotated[float, Meta(ge=1, le=31_622_400)] = 86_400.0


class Joining(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /api/v1/peers/join`."""

    invitation: Annotated[str, Meta(max_length=10_000)]


def routes(peers: TlsPeers, membership: Membership, trust: Trust) -> list[web.RouteDef]:
    """Return the routes for islands, invitations and joining."""

    async def ls(_: web.Request) -> web.Response:
        """List all known islands, including this one."""
        views = membership.views()
        rows = [view_row(view, peers.link(view.island)) for view in views]
        known = {view.island for view in views}
        # An island may be linked before its first record arrives.
        rows += [link_row(link, peers.name(link.island)) for link in peers.links() if link.island not in known]
        return base.reply(rows)

    async def invite(request: web.Request) -> web.Response:
        """Create an invitation; the first one founds the archipelago."""
        caller = base.administrator(request)
        body = await base.body(request, NewInvitation)
        founded = trust.network is None
        addresses = peers.local_addresses()
        word = await trust.invite(addresses, uses=body.uses, valid_s=body.valid_s, who=caller.user)
        return base.reply(
            {
                "invitation": word,
                "addresses": addresses,
                "this_machine_only": all(is_loopback(split_address(address)[0]) for address in addresses),
                "uses": body.uses,
                "valid_s": body.valid_s,
                "founded": founded,
                "recovery_key": str(trust.recovery_path) if founded else None,
            },
            201,
        )

    async def join(request: web.Request) -> web.Response:
        """Join the archipelago of an invitation; the answer is sent when linked with the island that made it."""
        base.administrator(request)
        body = await base.body(request, Joining)
        inviter = await peers.join(body.invitation)
        return base.reply({"island": _shown(membership, peers, inviter), "key": inviter, "network": trust.network})

    return [
        web.get("/api/v1/peers", ls),
        web.post("/api/v1/peers/invitations", invite),
        web.post("/api/v1/peers/join", join),
    ]


def view_row(view: IslandView, link: Link | None) -> dict[str, Any]:
    """Return an island as a JSON object; `dialled` is whether this island dialled the current session."""
    return {
        "island": view.display,
        "key": view.island,
        "name": view.name,
        "state": view.state,
        "since": base.iso(view.since),
        "address": _address(view, link),
        "rtt_ms": _milliseconds(link.rtt if link else None),
        "dialled": link.dialled if link else None,
        "linked": link is not None,
        "bandwidth": round(link.bandwidth) if link and link.bandwidth else None,
        "version": view.version,
    }


def link_row(link: Link, name: str) -> dict[str, Any]:
    """Return an island that has a session but no record yet as a JSON object."""
    return {
        "island": name,
        "key": link.island,
        "name": name,
        "state": "up",
        "since": base.iso(link.since),
        "address": link.address,
        "rtt_ms": _milliseconds(link.rtt),
        "dialled": link.dialled,
        "linked": True,
        "bandwidth": round(link.bandwidth) if link.bandwidth else None,
        "version": "",
    }


def _address(view: IslandView, link: Link | None) -> str | None:
    """Return the address at which the island is dialled, or for an island that only dials out, its remote address."""
    if link is not None and link.dialled:
        return link.address
    return next(iter(view.addresses), None) or (link.address if link else None)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def _shown(membership: Membership, peers: TlsPeers, island: IslandId) -> str:
    try:
        view = membership.view(island)
    except NotFound:
        return peers.name(island)
    return view.display if view.name else peers.name(island)
