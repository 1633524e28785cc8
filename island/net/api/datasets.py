"""Datasets in the operator API: list, search, show, publish, withdraw.

GET    /datasets                        list the datasets of all islands
GET    /datasets/search?words=...       list matching datasets; also column, region, time, format, limit
GET    /datasets/OWNER/NAME[@SNAPSHOT]  show a dataset
POST   /datasets                        publish a path of this machine; progress as JSON lines
DELETE /datasets/NAME                   withdraw a dataset of this island
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec import Meta

from island.catalog.messages import Card, DatasetView, SearchQuery
from island.catalog.ports import Replication
from island.catalog.service import Catalog, DatasetDetails
from island.errors import BadInput
from island.kernel.ids import DatasetName
from island.net.api import base


class Publication(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /api/v1/datasets`."""

    path: Annotated[str, Meta(min_length=1, max_length=4096)]
    name: Annotated[str, Meta(max_length=256)]
    title: Annotated[str, Meta(max_length=512)] = ""
    description: Annotated[str, Meta(max_length=16_000)] = ""
    licence: Annotated[str, Meta(max_length=1000)] = ""
    ra: Annotated[str, Meta(max_length=1000)] | None = None
    dec: Annotated[str, Meta(max_length=1000)] | None = None


def routes(catalog: Catalog, replicas: Replication) -> list[web.RouteDef]:
    """Return the routes for datasets. `replicas` supplies the state of replicas for `show`."""
    catalog.replication = replicas

    async def ls(_: web.Request) -> web.Response:
        """List the datasets of all islands."""
        return base.reply([row(view) for view in await catalog.datasets()])

    async def search(request: web.Request) -> web.Response:
        """List the datasets that match all conditions of the query; empty if none does."""
        return base.reply([row(view) for view in await catalog.search(_query(request))])

    async def show(request: web.Request) -> web.Response:
        """Show a dataset: columns, coverage, time range, holders, and how much of it is local."""
        name = DatasetName.parse(f"{request.match_info['owner']}/{request.match_info['name']}")
        return base.reply(details_row(await catalog.show(name)))

    async def publish(request: web.Request) -> web.StreamResponse:
        """Publish files without copying them, with progress. The result is that of `show` with `audience` added:
        who can see the dataset."""
        caller = base.administrator(request)
        wanted = await base.body(request, Publication)

        async def work(progress: base.Progress) -> Any:
            view = await catalog.publish(
                catalog.who(caller.user),
                Path(wanted.path),
                wanted.name,
                title=wanted.title,
                description=wanted.description,
                licence=wanted.licence,
                ra=wanted.ra,
                dec=wanted.dec,
                progress=progress,
            )
            details = await catalog.show(view.dataset)
            return details_row(details) | {"audience": catalog.audience()}

        return await base.stream(request, work)

    async def unpublish(request: web.Request) -> web.Response:
        """Withdraw a dataset of this island; its files are not deleted."""
        caller = base.administrator(request)
        name = request.match_info["name"]
        await catalog.unpublish(catalog.who(caller.user), name)
        return base.reply({"name": name, "state": "withdrawn"})

    return [
        web.get("/api/v1/datasets", ls),
        web.get("/api/v1/datasets/search", search),
        web.get("/api/v1/datasets/{owner}/{name}", show),
        web.post("/api/v1/datasets", publish),
        web.delete("/api/v1/datasets/{name}", unpublish),
    ]


def _query(request: web.Request) -> SearchQuery:
    known = {field.name for field in msgspec.structs.fields(SearchQuery)}
    if unknown := sorted(set(request.query) - known):
        raise BadInput(f"search has no parameter {unknown[0]!r}", hint=f"Parameters: {', '.join(sorted(known))}.")
    try:
        return msgspec.convert(dict(request.query), SearchQuery, strict=False)
    except msgspec.ValidationError as error:
        raise BadInput(f"a search parameter is invalid: {error}", hint="See protocols/openapi.yaml.") from error


def row(view: DatasetView) -> dict[str, Any]:
    """Return a dataset as a flat JSON object."""
    time = view.record.time
    return {
        "island": view.island,
        "key": view.owner,
        "name": view.name,
        "dataset": view.dataset,
        "title": view.title,
        "format": view.format,
        "rows": view.rows,
        "bytes": view.bytes,
        "files": view.files,
        "snapshot": view.snapshot,
        "created": base.iso(view.created),
        "updated": base.iso(view.updated),
        "time_from": base.iso(time[0]) if time else None,
        "time_to": base.iso(time[1]) if time else None,
        "visibility": view.record.visibility,
    }


def details_row(details: DatasetDetails) -> dict[str, Any]:
    """Return a dataset with all details as one JSON object.

    If the card could not be fetched, values that only the card has are null or empty, and `problem` has the reason.
    """
    resolved, card, status = details.resolved, details.card or _no_card(details), details.status
    record = resolved.record
    time = record.time
    return {
        "island": resolved.owner_name,
        "key": resolved.owner,
        "name": resolved.name,
        "dataset": f"{resolved.owner_name}/{resolved.name}",
        "snapshot": resolved.snapshot,
        "newest": details.newest,
        "title": record.title,
        "description": card.description,
        "licence": card.licence,
        "provenance": card.provenance,
        "format": record.format,
        "rows": record.rows,
        "files": record.files,
        "bytes": status.bytes,
        "bytes_local": status.bytes_local,
        "bytes_moved": status.bytes_moved,
        "area_deg2": card.area,
        "time_from": base.iso(time[0]) if time else None,
        "time_to": base.iso(time[1]) if time else None,
        "ra": card.position[0] if card.position else None,
        "dec": card.position[1] if len(card.position) > 1 else None,
        "time_column": card.time_column or None,
        "created": base.iso(record.created),
        "updated": base.iso(record.updated),
        "visibility": record.visibility,
        "details": dict(card.details),
        "warnings": list(card.warnings),
        "shortened": list(card.cut),
        "columns": [
            {
                "name": column.name,
                "type": column.type,
                "unit": column.unit,
                "ucd": column.ucd,
                "description": column.description,
            }
            for column in card.columns
        ]
        or [{"name": name, "type": "", "unit": "", "ucd": "", "description": ""} for name in record.columns],
        "columns_hidden": card.hidden if card.columns else record.hidden,
        "holders": [
            {
                "island": holder.display,
                "key": holder.island,
                "role": holder.role,
                "state": holder.state,
                "since": base.iso(holder.since),
            }
            for holder in details.holders
        ],
        "problem": details.problem or None,
    }


def _no_card(details: DatasetDetails) -> Card:
    return Card(snapshot=details.resolved.snapshot, format=details.resolved.record.format)
