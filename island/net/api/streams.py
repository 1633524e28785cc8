"""Sources, subscriptions and channels in the operator API."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from aiohttp import web
from msgspec import Meta

from island.net.api import base
from island.streams.messages import MAX_PREDICATE, MAX_REGION
from island.streams.service import Streams
from island.streams.views import ChannelView, SourceView, SubscriptionView


class NewSource(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /api/v1/sources`."""

    kind: Literal["folder"]
    path: Annotated[str, Meta(min_length=1, max_length=4096)]
    name: Annotated[str, Meta(max_length=64)]


class NewSubscription(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /api/v1/subscriptions`; `from` is the start position."""

    source: Annotated[str, Meta(max_length=200)]
    into: Annotated[str, Meta(max_length=64)]
    where: Annotated[str, Meta(max_length=MAX_PREDICATE)] = ""
    region: Annotated[str, Meta(max_length=MAX_REGION)] = ""
    begin: Literal["beginning", "now"] = msgspec.field(default="now", name="from")


def routes(streams: Streams) -> list[web.RouteDef]:
    """Return the routes for sources, subscriptions and channels."""

    async def list_sources(_: web.Request) -> web.Response:
        """List the sources of all islands."""
        return base.reply([source_row(view) for view in await streams.sources()])

    async def add_source(request: web.Request) -> web.Response:
        """Add a source that watches a folder; the answer is the row of the source."""
        caller = base.administrator(request)
        body = await base.body(request, NewSource)
        return base.reply(source_row(await streams.add_source(caller, Path(body.path), body.name)), 201)

    async def remove_source(request: web.Request) -> web.Response:
        """Remove a source. Its files are not deleted; subscriptions to it stop with a message."""
        name = request.match_info["name"]
        await streams.remove_source(base.administrator(request), name)
        return base.reply({"name": name, "state": "removed"})

    async def list_subscriptions(request: web.Request) -> web.Response:
        """List the caller's subscriptions; the administrator sees all of this island."""
        return base.reply([subscription_row(view) for view in await streams.subscriptions(base.principal(request))])

    async def subscribe(request: web.Request) -> web.Response:
        """Add a subscription, and publish its dataset ME/INTO; the answer is the row of the subscription."""
        caller = base.principal(request)
        body = await base.body(request, NewSubscription)
        view = await streams.subscribe(
            caller, body.source, where=body.where, region=body.region, start=body.begin, into=body.into
        )
        return base.reply(subscription_row(view), 201)

    async def unsubscribe(request: web.Request) -> web.Response:
        """Remove a subscription, named by id, unique prefix or dataset; its dataset is kept."""
        view = await streams.unsubscribe(base.principal(request), request.match_info["id"])
        return base.reply(subscription_row(view))

    async def list_channels(request: web.Request) -> web.Response:
        """List the channels of the caller's subscriptions; the administrator sees all to and from this island."""
        return base.reply([channel_row(view) for view in await streams.channels(base.principal(request))])

    return [
        web.get("/api/v1/sources", list_sources),
        web.post("/api/v1/sources", add_source),
        web.delete("/api/v1/sources/{name}", remove_source),
        web.get("/api/v1/subscriptions", list_subscriptions),
        web.post("/api/v1/subscriptions", subscribe),
        web.delete("/api/v1/subscriptions/{id}", unsubscribe),
        web.get("/api/v1/channels", list_channels),
    ]


def source_row(view: SourceView) -> dict[str, Any]:
    """Return a source as a JSON object."""
    return {
        "island": view.island,
        "key": view.key,
        "source": view.source,
        "name": view.name,
        "kind": view.kind,
        "format": view.format,
        "files": view.files,
        "rows": view.rows,
        "bytes": view.bytes,
        "state": view.state,
        "problem": view.problem,
        "note": view.note,
        "columns": view.columns,
        "columns_hidden": view.columns_hidden,
        "added": base.iso(view.added),
        "updated": base.iso(view.updated),
        "path": view.path,
    }


def subscription_row(view: SubscriptionView) -> dict[str, Any]:
    """Return a subscription as a JSON object."""
    return {
        "id": view.id,
        "island": view.island,
        "source": view.source,
        "where": view.where,
        "region": view.region,
        "from": view.start,
        "into": view.into,
        "user": view.user,
        "created": base.iso(view.created),
        "state": view.state,
        "reason": view.reason,
        "rows": view.rows,
    }


def channel_row(view: ChannelView) -> dict[str, Any]:
    """Return a channel as a JSON object.

    `rate` is in rows per second, `bytes_rate` in bytes per second, `lag` in rows of the source, `lag_s` in seconds.
    """
    return {
        "id": view.id,
        "island": view.island,
        "direction": view.direction,
        "source": view.source,
        "into": view.into,
        "state": view.state,
        "since": base.iso(view.since),
        "reason": view.reason,
        "rate": round(view.rate, 3),
        "bytes_rate": round(view.bytes_rate, 1),
        "lag": view.lag_rows,
        "lag_files": view.lag_files,
        "lag_s": round(view.lag_s, 3),
        "rows": view.rows,
        "bytes": view.bytes,
        "segments": view.segments,
        "user": view.user,
    }
