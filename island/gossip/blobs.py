"""Blobs: what is too big for a record, named by its BLAKE3 hash, fetched from whoever has it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Sequence

import structlog
from blake3 import blake3

from island.errors import IslandError, NotFound, Unreachable
from island.gossip import own_log_store, store
from island.kernel.codec import BULK_LIMIT, Malformed
from island.kernel.db import Database
from island.kernel.ids import IslandId, check_hash
from island.kernel.ports import BulkStream, Clock, Peers
from island.kernel.telemetry import counter

log = structlog.get_logger("island")

CACHE_LIMIT = 512 * 2**20
"""Bytes of fetched blobs that are kept."""

SENT = counter("gossip_blob_bytes_sent", "Bytes of blobs sent to other islands")
RECEIVED = counter("gossip_blob_bytes_received", "Bytes of blobs received from other islands")


Lookup = Callable[[str], Awaitable[bytes | None]]


class Blobs:
    """Own blobs are durable in state.db; fetched ones are a bounded cache in gossip.db."""

    def __init__(self, state: Database, db: Database, peers: Peers, clock: Clock) -> None:
        self._state, self._db, self._peers, self._clock = state, db, peers, clock
        self._fetching: dict[str, asyncio.Lock] = {}
        self._also: list[Lookup] = []
        peers.on_bulk("gossip.blob", self._serve)

    def put(self, conn: sqlite3.Connection, data: bytes) -> str:
        """Keep `data` (≤ 256 KiB) as this island's own, in a transaction of state.db; returns its hash.

        Uses are counted: every `put` wants one `drop` when the blob is no longer named.
        """
        return own_log_store.put_blob(conn, data)

    def drop(self, conn: sqlite3.Connection, name: str) -> None:
        """Give up one use of an own blob; the last one removes it."""
        own_log_store.drop_blob(conn, name)

    def also(self, lookup: Lookup) -> None:
        """Serve as own blobs, too, what `lookup(hash)` finds: bytes that a concern keeps elsewhere, verified."""
        self._also.append(lookup)

    async def local(self, name: str) -> bytes | None:
        """The blob if it is on this island, own or fetched."""
        own = await self._state.read(lambda conn: own_log_store.blob(conn, name))
        if own is not None:
            return own
        for lookup in self._also:
            if (found := await lookup(name)) is not None:
                return found
        return await self._db.read(lambda conn: store.blob(conn, name))

    async def get(self, name: str, sources: Sequence[IslandId] = (), *, timeout: float = 30.0) -> bytes:
        """The blob with this hash: from here, else from `sources` in order, else from any linked island.

        What arrives is checked against the hash and kept. Raises `Unreachable` that says who was asked.
        """
        check_hash(name, "hash of a blob")
        if (found := await self.local(name)) is not None:
            return found
        lock = self._fetching.setdefault(name, asyncio.Lock())
        try:
            async with asyncio.timeout(timeout), lock:
                # Another reader may have fetched it while this one waited.
                if (found := await self.local(name)) is not None:
                    return found
                data = await self._fetch(name, sources, timeout)
                await self._db.write(lambda conn: store.keep_blob(conn, name, data, CACHE_LIMIT))
                return data
        except TimeoutError as error:
            raise Unreachable(f"no island sent the blob {name[:16]} within {timeout:g} s") from error
        finally:
            if not lock.locked():
                self._fetching.pop(name, None)

    async def _fetch(self, name: str, sources: Sequence[IslandId], timeout: float) -> bytes:
        linked = [link.island for link in self._peers.links()]
        named = [source for source in dict.fromkeys(sources) if source != self._peers.me]
        # A linked source answers at once; the named ones are tried even if nothing is known of a link.
        asked = [s for s in named if s in linked] + [s for s in named if s not in linked]
        asked += [island for island in linked if island not in asked]
        failures = []
        for island in asked:
            try:
                return await self._fetch_from(island, name, min(10.0, timeout))
            except IslandError as error:
                failures.append(f"{island[:10]}: {error.message}")
        raise Unreachable(
            f"the blob {name[:16]} could not be had from any of {len(asked)} islands"
            + (f" ({'; '.join(failures[:3])})" if failures else ""),
            hint="Its owner, or another island that has read it, must be up.",
        )

    async def _fetch_from(self, island: IslandId, name: str, timeout: float) -> bytes:
        try:
            async with (
                asyncio.timeout(timeout),
                self._peers.bulk(island, "gossip.blob", bytes.fromhex(name), timeout=timeout) as stream,
            ):
                data = await stream.receive()
        except TimeoutError as error:
            raise Unreachable(f"{island[:10]} did not answer within {timeout:g} s") from error
        if data is None or len(data) > BULK_LIMIT or blake3(data).hexdigest() != name:
            log.warning("gossip.blob_wrong", origin=island, blob=name)
            raise Malformed(f"{island[:10]} sent other bytes than the blob {name[:16]}")
        RECEIVED.inc(len(data))
        return data

    async def _serve(self, peer: IslandId, body: bytes, stream: BulkStream) -> None:
        if len(body) != 32:
            raise Malformed("a blob is asked for by its hash of 32 bytes")
        data = await self.local(body.hex())
        if data is None:
            raise NotFound(f"the blob {body.hex()[:16]} is not here")
        SENT.inc(len(data))
        await stream.send(data)
        await stream.finish()
