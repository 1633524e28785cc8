"""Files of datasets over HTTP, for `island://` and for anything that reads ranges: `/api/v1/files/...`.

    GET  /files                                   list all datasets as `OWNER/NAME`
    GET  /files/OWNER/NAME[@SNAPSHOT]             show the current snapshot, and how much of it is local
    GET  /files/OWNER/NAME/SNAPSHOT/list          list the files of a snapshot, in pages
    GET  /files/OWNER/NAME/SNAPSHOT/data/PATH     read a file; with `Range`, a part of it
    POST /files/OWNER/NAME[@SNAPSHOT]/fetch       fetch a complete replica; progress as JSON lines
    DELETE /files/OWNER/NAME[@SNAPSHOT]           delete the local replica of another island's dataset

Bytes are verified before they are sent. After an error the connection is aborted, so that
incomplete data are not taken for complete data.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import structlog
from aiohttp import web

from island.catalog.messages import ResolvedDataset
from island.catalog.service import Catalog
from island.errors import BadInput, IslandError, NotFound, TooManyRequests
from island.kernel.ids import DatasetName, check_hash
from island.net.api import base
from island.replicas.service import Replicas

log = structlog.get_logger("island")

LIST_LIMIT = 10_000
BLOCK = 64 * 1024
"""Bytes that are written at a time, before waiting for the client to read."""
DOWNLOADS = 64
"""Maximum number of concurrent reads of files with one token; each holds a block of `Replicas.stream` in memory."""


def routes(catalog: Catalog, replicas: Replicas) -> list[web.RouteDef]:
    """Return the routes for files of datasets."""
    files = _Files(catalog, replicas)
    dataset = "/api/v1/files/{owner}/{name}"
    return [
        web.get("/api/v1/files", files.datasets),
        web.get(dataset, files.about),
        web.delete(dataset, files.drop),
        web.post(dataset + "/fetch", files.fetch),
        web.get(dataset + "/{snapshot}/list", files.listing),
        web.get(dataset + "/{snapshot}/data/{path:.+}", files.data),
    ]


class _Files:
    def __init__(self, catalog: Catalog, replicas: Replicas) -> None:
        self._catalog, self._replicas = catalog, replicas
        self._downloads = Counter[str]()
        """Reads that are being answered, by user."""

    async def datasets(self, _: web.Request) -> web.Response:
        """List the datasets that can be read, with the current snapshot of each."""
        rows = [
            {"island": view.island, "name": view.name, "dataset": view.dataset, "snapshot": view.snapshot}
            for view in await self._catalog.datasets()
        ]
        return base.reply(rows)

    async def about(self, request: web.Request) -> web.Response:
        """Show the current snapshot of a dataset, how much of it is local, and how much was received and sent."""
        return base.reply(await self._about(await self._resolve(request)))

    async def drop(self, request: web.Request) -> web.Response:
        """Delete the local replica of another island's dataset; `freed` is in bytes.

        If the owner has withdrawn the dataset, all its replicas that the name means are deleted.
        """
        caller = base.administrator(request)
        try:
            meant = [await self._resolve(request)]
        except NotFound:
            if not (meant := self._replicas.withdrawn(_wanted(request))):
                raise
        total = 0
        for resolved in meant:
            freed = await self._replicas.drop(resolved)
            await self._replicas.note(caller.user, "dataset.drop", resolved, "done", bytes=freed)
            total += freed
        return base.reply({**await self._about(meant[0]), "freed": total})

    async def fetch(self, request: web.Request) -> web.StreamResponse:
        """Fetch a complete, verified replica, with progress; `fetched` is the number of transferred bytes."""
        caller = base.principal(request)
        resolved = await self._resolve(request)

        async def work(progress: base.Progress) -> dict[str, Any]:
            before = (await self._replicas.status(resolved)).bytes_moved
            try:
                await self._replicas.fetch(resolved, progress)
            except IslandError as error:
                await self._replicas.note(caller.user, "dataset.fetch", resolved, "failed", error=error.message[:500])
                raise
            about = await self._about(resolved)
            fetched = about["bytes_moved"] - before
            await self._replicas.note(caller.user, "dataset.fetch", resolved, "done", bytes=fetched)
            return {**about, "fetched": fetched}

        return await base.stream(request, work)

    async def listing(self, request: web.Request) -> web.Response:
        """List the files of a snapshot, sorted by path, in pages: `next` is the `after` of the next page."""
        resolved = await self._resolve(request)
        after = request.query.get("after", "")
        limit = _number(request.query.get("limit", "1000"), "limit")
        if not 1 <= limit <= LIST_LIMIT:
            raise BadInput(f"limit = {limit} is out of range", hint=f"Use a limit from 1 to {LIST_LIMIT}.")
        entries = [entry async for entry in self._replicas.files_after(resolved, after, limit + 1)]
        rows = [
            {
                "path": entry.path,
                "size": entry.size,
                "hash": entry.hash.hex(),
                "format": entry.format,
                "rows": entry.rows,
            }
            for entry in itertools.islice(entries, limit)
        ]
        return base.reply({"files": rows, "next": rows[-1]["path"] if len(entries) > limit else None})

    async def data(self, request: web.Request) -> web.StreamResponse:
        """Send the verified bytes of a file, or a range of them."""
        resolved = await self._resolve(request)
        path = request.match_info["path"]
        entry = await self._replicas.find(resolved, path)
        etag = f'"{entry.hash.hex()}"'
        headers = {"Accept-Ranges": "bytes", "ETag": etag, "Content-Type": "application/octet-stream"}
        if request.headers.get("If-None-Match") == etag:
            return web.Response(status=304, headers=headers)
        span = _range(request, entry.size) if request.headers.get("If-Range", etag) == etag else None
        start, end = span or (0, entry.size)
        if span and start >= entry.size:
            return web.Response(status=416, headers={**headers, "Content-Range": f"bytes */{entry.size}"})
        if span and request.query.get("align") == "chunk":
            start, end = await self._replicas.span(resolved, path, start, end)
        if span:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{entry.size}"
        return await self._send(request, resolved, path, start, end, headers, 206 if span else 200)

    async def _send(
        self,
        request: web.Request,
        resolved: ResolvedDataset,
        path: str,
        start: int,
        end: int,
        headers: dict[str, str],
        status: int,
    ) -> web.StreamResponse:
        headers["Content-Length"] = str(end - start)
        response = web.StreamResponse(status=status, headers=headers)
        if request.method == "HEAD" or start == end:
            await response.prepare(request)
            return response
        with self._download(base.principal(request).user):
            async with contextlib.aclosing(self._replicas.stream(resolved, path, start, end)) as blocks:
                return await self._send_blocks(request, response, blocks, resolved, path)

    @contextlib.contextmanager
    def _download(self, user: str) -> Iterator[None]:
        """Count a read while it is answered; raises `TooManyRequests` if a user has too many."""
        if self._downloads[user] >= DOWNLOADS:
            raise TooManyRequests(
                f"{DOWNLOADS} reads of files with this token are being answered",
                hint="Read the answers of earlier requests, or close their connections; then try again.",
            )
        self._downloads[user] += 1
        try:
            yield
        finally:
            self._downloads[user] -= 1

    async def _send_blocks(
        self,
        request: web.Request,
        response: web.StreamResponse,
        blocks: AsyncGenerator[bytes, None],
        resolved: ResolvedDataset,
        path: str,
    ) -> web.StreamResponse:
        # The first block is fetched before the headers are sent, so that most errors get a proper error answer.
        first = await anext(blocks)
        await response.prepare(request)
        try:
            await _write(response, first)
            async for block in blocks:
                await _write(response, block)
        except IslandError as error:
            log.warning("files.transfer_aborted", dataset=str(resolved.dataset), path=path, error=str(error))
            if request.transport is not None:
                request.transport.abort()
            return response
        await response.write_eof()
        return response

    async def _resolve(self, request: web.Request) -> ResolvedDataset:
        return await self._catalog.resolve(_wanted(request))

    async def _about(self, resolved: ResolvedDataset) -> dict[str, Any]:
        status = await self._replicas.status(resolved)
        return {
            "dataset": f"{resolved.owner_name}/{resolved.name}",
            "island": resolved.owner_name,
            "key": resolved.owner,
            "name": resolved.name,
            "snapshot": resolved.snapshot,
            "bytes": status.bytes,
            "bytes_local": status.bytes_local,
            "bytes_moved": status.bytes_moved,
            "bytes_sent": await self._replicas.sent(resolved),
        }


async def _write(response: web.StreamResponse, data: bytes) -> None:
    view = memoryview(data)
    for at in range(0, len(view), BLOCK):
        await response.write(view[at : at + BLOCK])


def _wanted(request: web.Request) -> DatasetName:
    """The dataset that a request names, with the snapshot if it names one. Raises `BadInput`."""
    name, _, snapshot = request.match_info["name"].partition("@")
    if pinned := request.match_info.get("snapshot"):
        snapshot = check_hash(pinned, "snapshot")
    return DatasetName.parse(f"{request.match_info['owner']}/{name}" + (f"@{snapshot}" if snapshot else ""))


def _range(request: web.Request, size: int) -> tuple[int, int] | None:
    """Parse the Range header; return (start, end) with `end` excluded, or None for the complete file.

    Multiple ranges and invalid ranges are ignored, as RFC 9110, 14.2, allows.
    """
    unit, _, spec = request.headers.get("Range", "").partition("=")
    first, dash, last = spec.strip().partition("-")
    if unit.strip() != "bytes" or not dash or "," in spec or len(spec) > 64:
        return None
    if not (first.isascii() and last.isascii() and (first or last)) or not (first + last).isdigit():
        return None
    if not first:
        return max(0, size - int(last)), size
    start, end = int(first), min(int(last) + 1, size) if last else size
    return (start, max(start, end)) if not last or int(last) >= start else None


def _number(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise BadInput(f"{what} = '{text[:40]}' is not a number", hint="Use decimal digits.")
    return int(text)
