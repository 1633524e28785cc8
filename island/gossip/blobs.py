"""Blobs: content that is too large for a record, named by its BLAKE3 hash and fetched from other islands."""

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
"""Maximum number of bytes of fetched blobs that are kept."""

SENT = counter("gossip_blob_sent_bytes", "Bytes of blobs sent to other islands")
RECEIVED = counter("gossip_blob_received_bytes", "Bytes of blobs received from other islands")


Lookup = Callable[[str], Awaitable[bytes | None]]


class Blobs:
    """Stores, fetches and serves blobs. Own blobs are in state.db; gossip.db has a bounded cache of fetched blobs."""

    def __init__(self, state: Database, db: Database, peers: Peers, clock: Clock) -> None:
        self._state, self._db, self._peers, self._clock = state, db, peers, clock
        self._fetching: dict[str, asyncio.Lock] = {}
        self._sources: list[Lookup] = []
        peers.on_bulk("gossip.blob", self._serve)

    def put(self, conn: sqlite3.Connection, data: bytes) -> str:
        """Store `data` (≤ 256 KiB) as a blob of this island, in a transaction on state.db; returns its hash.

        Uses are counted: call `drop` once for every `put`. Raises `BadInput` if `data` is too large.
        """
        return own_log_store.put_blob(conn, data)

    def drop(self, conn: sqlite3.Connection, name: str) -> None:
        """Release one use of an own blob, and delete it after the last."""
        own_log_store.drop_blob(conn, name)

    def add_source(self, lookup: Lookup) -> None:
        """Also serve content that `lookup(hash)` returns: verified bytes that another package stores elsewhere."""
        self._sources.append(lookup)

    async def local(self, name: str) -> bytes | None:
        """The blob if it is on this island, own or fetched; otherwise None."""
        own = await self._state.read(lambda conn: own_log_store.blob(conn, name))
        if own is not None:
            return own
        for lookup in self._sources:
            if (found := await lookup(name)) is not None:
                return found
        return await self._db.read(lambda conn: store.blob(conn, name))

    async def get(self, name: str, sources: Sequence[IslandId] = (), *, timeout: float = 30.0) -> bytes:
        """Return the blob with this hash: local, from `sources` in order, or from any linked island.

        A fetched blob is verified against the hash and stored. `timeout` is in seconds. Raises
        `Unreachable`, with the errors of the islands that were asked, if none sent it.
        """
        check_hash(name, "hash of a blob")
        if (found := await self.local(name)) is not None:
            return found
        lock = self._fetching.setdefault(name, asyncio.Lock())
        try:
            async with asyncio.timeout(timeout), lock:
                # Another caller may have fetched it while this one waited for the lock.
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
        # Try linked sources first, because they can answer at once; then the other sources.
        asked = [s for s in named if s in linked] + [s for s in named if s not in linked]
        asked += [island for island in linked if island not in asked]
        failures = []
        for island in asked:
            try:
                return await self._fetch_from(island, name, min(10.0, timeout))
            except IslandError as error:
                failures.append(f"{island[:10]}: {error.message}")
        raise Unreachable(
            f"the blob {name[:16]} could not be fetched from any of {len(asked)} islands"
            + (f" ({'; '.join(failures[:3])})" if failures else ""),
            hint="Its owner, or another island that has fetched it, must be up.",
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
            raise Malformed(f"{island[:10]} sent bytes that do not match the hash of the blob {name[:16]}")
        RECEIVED.inc(len(data))
        return data

    async def _serve(self, peer: IslandId, body: bytes, stream: BulkStream) -> None:
        if len(body) != 32:
            raise Malformed("a request for a blob must have a hash of 32 bytes")
        data = await self.local(body.hex())
        if data is None:
            raise NotFound(f"this island does not have the blob {body.hex()[:16]}")
        SENT.inc(len(data))
        await stream.send(data)
        await stream.finish()
