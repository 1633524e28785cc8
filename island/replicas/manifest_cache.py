"""Cache of manifests and chunk hashes: loaded from this island or a holder, and stored with the replica."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TypeVar

from island.catalog.manifest import FileEntry, FileHashes
from island.catalog.manifest_reader import ManifestReader
from island.catalog.service import Catalog
from island.errors import Unreachable
from island.kernel.db import Database
from island.kernel.ids import IslandId
from island.kernel.ports import Clock
from island.replicas import store
from island.replicas.chunk_store import ChunkStore, ReplicaSnapshot
from island.replicas.fetching import Fetcher

T = TypeVar("T")
Key = tuple[IslandId, str, str]
"""Owner, name and snapshot."""

_MANIFESTS = 64
"""Maximum number of manifests in memory."""
_HASHES = 128
"""Maximum number of files whose most recently used chunk hashes stay in memory, with up to four pages each."""
_WAITING = 4 * 2**20
"""Maximum bytes of pages of one manifest that are held in memory until its snapshot has a replica."""


class ManifestCache:
    """The manifests of snapshots of all islands, this one included.

    The manifest pages of a replica are stored in `chunks.db`, so that the replica can be
    verified and served to other islands while its owner is down.
    """

    def __init__(
        self,
        db: Database,
        chunk_store: ChunkStore,
        catalog: Catalog,
        fetcher: Fetcher,
        clock: Clock,
        *,
        me: IslandId,
        patience: float,
        display: Callable[[IslandId], str],
    ) -> None:
        self._db, self._chunk_store, self._catalog, self._fetcher, self._clock = (
            db,
            chunk_store,
            catalog,
            fetcher,
            clock,
        )
        self._me, self._patience, self._display = me, patience, display
        self._known: OrderedDict[Key, ManifestReader] = OrderedDict()
        self._hashes: OrderedDict[tuple[str, str], list[FileHashes]] = OrderedDict()
        self._waiting: dict[Key, dict[str, bytes]] = {}

    async def get(self, owner: IslandId, name: str, snapshot: str) -> ManifestReader:
        """The manifest of a snapshot. Raises `Unreachable` with the list of holders."""
        key = (owner, name, snapshot)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = await self._load(key)
            if len(self._known) > _MANIFESTS:
                self._waiting.pop(self._known.popitem(last=False)[0], None)
        self._known.move_to_end(key)
        return found

    async def hashes(self, manifest: ManifestReader, entry: FileEntry, start: int, end: int) -> FileHashes:
        """Borders and hashes of the chunks that contain the bytes from `start` to `end` of a file."""
        key = (manifest.snapshot, entry.path)
        for known in self._hashes.get(key, ()):
            if known.start <= start and end <= known.end:
                self._hashes.move_to_end(key)
                return known
        found = await manifest.hashes(entry, start, end)
        kept = self._hashes.setdefault(key, [])
        kept.insert(0, found)
        del kept[4:]
        self._hashes.move_to_end(key)
        if len(self._hashes) > _HASHES:
            self._hashes.popitem(last=False)
        return found

    def forget(self, key: Key) -> None:
        """Remove a snapshot from the cache, because its replica was deleted."""
        self._known.pop(key, None)
        self._waiting.pop(key, None)

    async def page(self, name: str) -> bytes | None:
        """The page with this hash, if it is stored with any replica; else None."""
        return await self._db.read(lambda conn: store.page(conn, name))

    async def keep(self, replica: ReplicaSnapshot) -> None:
        """Write the loaded pages of the manifest of a replica to the database."""
        pages = dict(self._waiting.get(replica.key, {}))
        if not pages:
            return

        def write(conn: sqlite3.Connection) -> None:
            for name, data in pages.items():
                store.add_page(conn, replica.id, name, data)

        def kept(_: None) -> None:
            waiting = self._waiting.get(replica.key, {})
            for name in pages:
                waiting.pop(name, None)
            if not waiting:
                self._waiting.pop(replica.key, None)

        await self._db.write(write, then=kept)

    async def keep_all(self) -> None:
        """Call `keep` for every replica that has pages in memory."""
        for key in list(self._waiting):
            if replica := self._chunk_store.get(*key):
                await self.keep(replica)

    async def _load(self, key: Key) -> ManifestReader:
        owner, name, snapshot = key
        if owner == self._me:
            return await self._catalog.manifest(owner, snapshot, name)
        found = await self._retry(key, lambda: self._catalog.manifest(owner, snapshot, name))

        async def load(page: str) -> bytes:
            data = await self._retry(key, lambda: found.load(page))
            waiting = self._waiting.setdefault(key, {})
            if sum(map(len, waiting.values())) < _WAITING:
                waiting[page] = data
            return data

        await load(snapshot)
        return ManifestReader(owner, snapshot, found.root, load)

    async def _retry(self, key: Key, ask: Callable[[], Awaitable[T]]) -> T:
        """The result of `ask`, which is repeated for `patience` seconds while no holder can be reached."""
        owner, name, snapshot = key
        until = self._clock.monotonic() + self._patience
        while True:
            version = self._fetcher.changed.version
            try:
                async with asyncio.timeout(max(0.1, until - self._clock.monotonic())):
                    return await ask()
            except (Unreachable, TimeoutError) as error:
                if self._clock.monotonic() >= until - 0.1:
                    holders = [i for i in self._catalog.holders(owner, name, snapshot) if i != self._me]
                    raise Unreachable(
                        f"the manifest of {self._display(owner)}/{name} cannot be read: "
                        + self._fetcher.who_holds(holders, {}),
                        hint="Try again when a holder is up.",
                    ) from error
            await self._fetcher.changed.after(version, 0.5)
