"""What is here of others' snapshots: bitmaps in memory, data in sparse files, both written back in order.

The bitmap in memory is the truth while the daemon runs; `flush` brings it to `chunks.db`
after the data it speaks of are synced, so that a crash loses chunks and never invents any.
Whatever was stored by an earlier run is hashed again when it is first read.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import structlog

from island.catalog.manifest import FileEntry, FileHashes
from island.errors import Conflict, IslandError
from island.kernel import telemetry
from island.kernel.db import Database
from island.kernel.ids import IslandId
from island.kernel.ports import Clock
from island.kernel.work import Workers
from island.replicas import chunk_files, core, store
from island.replicas.chunk_files import ChunkFiles
from island.replicas.core import ABSENT, STORED, VERIFIED, ChunkBorders, ChunkRange

log = structlog.get_logger("island")

T = TypeVar("T")

_DAMAGED = telemetry.counter("replica_chunks_damaged", "Kept chunks that no longer matched their hash and were dropped")
_SYNCED = 16
"""Files that are synced before their bitmaps are written; a crash costs what was not yet written back."""
_OPEN_FILES = 20_000
"""Files whose bitmaps stay in memory; of others they are loaded again."""


class ReplicaFile:
    """One file of a snapshot, as far as it is here."""

    def __init__(
        self, ident: int, entry: FileEntry, present: bytearray, bytes_local: int, mtime_ns: int | None
    ) -> None:
        self.id = ident
        self.entry = entry
        self.present = present
        self.bytes_local = bytes_local
        self.mtime_ns = mtime_ns
        """Of the complete file as it was synced; None before."""
        self.dirty = False
        self.made = bytes_local > 0
        """Whether the sparse file exists."""
        self.arriving: dict[int, asyncio.Future[None]] = {}
        """Chunks under way, so that nobody asks for them a second time."""

    @property
    def complete(self) -> bool:
        """Whether every byte is here."""
        return self.bytes_local == self.entry.size


class ReplicaSnapshot:
    """One snapshot of another island, as far as it is here."""

    def __init__(self, row: store.ReplicaSnapshotRow) -> None:
        self.id = row.id
        self.owner, self.name, self.snapshot = row.owner, row.name, row.snapshot
        self.folder, self.bytes = row.folder, row.bytes
        self.bytes_local = row.bytes_local
        self.complete, self.pinned = row.complete, row.pinned
        self.used_at, self.kept_until = row.used_at, row.kept_until
        self.files: OrderedDict[str, ReplicaFile] = OrderedDict()
        self.users = 0
        """Reads, fetches and answers to others that are under way; above 0 nothing is evicted."""
        self.gone = False

    @property
    def key(self) -> tuple[IslandId, str, str]:
        return self.owner, self.name, self.snapshot

    def __enter__(self) -> ReplicaSnapshot:
        self.users += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.users -= 1


class ChunkStore:
    """All that is kept of other islands' data."""

    def __init__(self, db: Database, root: Path, clock: Clock, workers: Workers) -> None:
        self._db, self._clock = db, clock
        self.files = ChunkFiles(root)
        self.snapshots: dict[tuple[IslandId, str, str], ReplicaSnapshot] = {}
        self._threads = workers.lane("chunks", 4)
        self._closed = False
        self._moved: dict[tuple[IslandId, str, str], list[int]] = {}
        self._loading: dict[tuple[int, str], asyncio.Lock] = {}
        self._opening = asyncio.Lock()
        self._counting = asyncio.Lock()
        self._flushing = asyncio.Lock()

    async def start(self) -> None:
        """Load what the database knows, and delete what it does not know."""
        self.files.root.mkdir(parents=True, exist_ok=True)
        rows = await self._db.read(store.snapshots)
        for row in rows:
            held = ReplicaSnapshot(row)
            self.snapshots[held.key] = held
        swept = await self.run(lambda: self.files.sweep(row.folder for row in rows))
        log.info("replicas.store", snapshots=len(rows), bytes=self.total, swept=swept)

    def close(self) -> None:
        """End the threads; what they began is finished."""
        self._closed = True
        self._threads.close()

    async def run(self, function: Callable[[], T]) -> T:
        """Run a blocking function on the store's threads."""
        if self._closed:
            raise IslandError("the island is stopping", hint="Ask again when it runs.")
        return await self._threads.run(function)

    @property
    def total(self) -> int:
        """Bytes of all chunks that are here."""
        return sum(held.bytes_local for held in self.snapshots.values())

    def get(self, owner: IslandId, name: str, snapshot: str) -> ReplicaSnapshot | None:
        """What is here of a snapshot, if anything is."""
        return self.snapshots.get((owner, name, snapshot))

    async def open(self, owner: IslandId, name: str, snapshot: str, size: int) -> ReplicaSnapshot:
        """The snapshot, its row made where there is none. `size` is that of all its files."""
        async with self._opening:
            held = self.snapshots.get((owner, name, snapshot))
            if held is None:
                folder, now = chunk_files.folder_of(owner, name, snapshot), self._clock.wall()
                if any(other.folder == folder for other in self.snapshots.values()):
                    raise Conflict(
                        f"two islands with the same key prefix own a dataset {name!r}", hint="Read it from its owner."
                    )
                await self._db.write(
                    lambda conn: store.add_snapshot(conn, owner, name, snapshot, folder, size, now), then=self._opened
                )
                held = self.snapshots[owner, name, snapshot]
            return held

    def _opened(self, row: store.ReplicaSnapshotRow) -> None:
        held = ReplicaSnapshot(row)
        self.snapshots[held.key] = held

    async def file(self, replica: ReplicaSnapshot, entry: FileEntry) -> ReplicaFile:
        """One file, reconciled with what lies on the disk."""
        known = replica.files.get(entry.path)
        if known is None:
            lock = self._loading.setdefault((replica.id, entry.path), asyncio.Lock())
            async with lock:
                known = replica.files.get(entry.path)
                if known is None:
                    known = await self._load(replica, entry)
                    replica.files[entry.path] = known
            self._loading.pop((replica.id, entry.path), None)
        replica.files.move_to_end(entry.path)
        self._trim(replica)
        return known

    def _trim(self, replica: ReplicaSnapshot) -> None:
        if len(replica.files) <= _OPEN_FILES:
            return
        # A tenth at once, so that the next files cost nothing.
        for path in list(replica.files)[: _OPEN_FILES // 10]:
            file = replica.files[path]
            if not (file.dirty or file.arriving):
                del replica.files[path]

    async def _load(self, replica: ReplicaSnapshot, entry: FileEntry) -> ReplicaFile:
        row = await self._db.read(lambda conn: store.find_file(conn, replica.id, entry.path))
        if row is None:
            row = await self._db.write(lambda conn: store.add_file(conn, replica.id, entry.path))
        if not row.bytes_local:
            return ReplicaFile(row.id, entry, bytearray(entry.chunks), 0, None)
        found = await self.run(lambda: self.files.stat(replica.folder, entry.path))
        if found is None or found[0] != entry.size:
            file = ReplicaFile(row.id, entry, bytearray(entry.chunks), row.bytes_local, None)
            self.lose(replica, file)
            return file
        unchanged = row.mtime_ns == found[1]
        present = core.unpack_bitmap(row.bits, entry.chunks)
        return ReplicaFile(row.id, entry, present, row.bytes_local, row.mtime_ns if unchanged else None)

    # --- bytes --------------------------------------------------------------------------------

    async def make(self, replica: ReplicaSnapshot, file: ReplicaFile) -> None:
        """Make the sparse file, so that it can be written to, or stand there empty."""
        if not file.made:
            await self.run(lambda: self.files.create(replica.folder, file.entry.path, file.entry.size))
            file.made = True

    async def put(
        self, replica: ReplicaSnapshot, file: ReplicaFile, hashes: FileHashes, first: int, data: Sequence[bytes]
    ) -> int:
        """Verify consecutive chunks from number `first` on and write them; how many were good before a bad one."""

        def verify_and_write() -> int:
            good = 0
            for index, piece in enumerate(data, first):
                if not hashes.verify(index, piece):
                    break
                good += 1
            if good:
                block = b"".join(data[:good]) if good > 1 else data[0]
                self.files.write(replica.folder, file.entry.path, hashes.chunk(first).start, block)
            return good

        good = await self.run(verify_and_write)
        self._mark(replica, file, [(index, len(data[index - first])) for index in range(first, first + good)])
        return good

    def _mark(self, replica: ReplicaSnapshot, file: ReplicaFile, sizes: list[tuple[int, int]]) -> None:
        for index, size in sizes:
            if file.present[index] == ABSENT:
                file.bytes_local += size
                replica.bytes_local += size
            file.present[index] = VERIFIED
        file.dirty = file.dirty or bool(sizes)

    async def get_bytes(
        self, replica: ReplicaSnapshot, file: ReplicaFile, hashes: FileHashes, start: int, end: int
    ) -> bytes | None:
        """The bytes from `start` to `end` of chunks that are here, verified; None if some of them are not.

        A chunk that an earlier run stored is hashed at its first read; one that does not
        match is dropped and counts as absent.
        """
        edges = edges_of(hashes)
        run = edges.cover(start, end)
        if file.present.find(ABSENT, *run) >= 0:
            return None
        low, high = edges.offset(run[0]), edges.offset(run[1])
        doubtful = file.present.find(STORED, *run) >= 0
        low, high = (low, high) if doubtful else (start, end)

        def read() -> tuple[bytes, list[int], list[int]]:
            data = self.files.read(replica.folder, file.entry.path, low, high)
            if not doubtful:
                return data, [], []
            good: list[int] = []
            bad: list[int] = []
            view = memoryview(data)
            for index in range(*run):
                if file.present[index] != VERIFIED:
                    piece = view[edges.offset(index) - low : edges.offset(index + 1) - low]
                    (good if hashes.verify(index, piece) else bad).append(index)
            return data, good, bad

        data, good, bad = await self.run(read)
        for index in good:
            file.present[index] = VERIFIED
        if bad or len(data) != high - low:
            self._drop(replica, file, edges, bad or list(range(*run)))
            return None
        return data[start - low : end - low] if doubtful else data

    def _drop(self, replica: ReplicaSnapshot, file: ReplicaFile, edges: ChunkBorders, indexes: list[int]) -> None:
        for index in indexes:
            if file.present[index] != ABSENT:
                size = edges.size((index, index + 1))
                file.present[index] = ABSENT
                file.bytes_local -= size
                replica.bytes_local -= size
        file.mtime_ns, file.dirty, replica.complete = None, True, False
        _DAMAGED.inc(len(indexes))
        log.warning("replicas.chunks_damaged", path=file.entry.path, snapshot=replica.snapshot, chunks=len(indexes))

    def doubt(self, file: ReplicaFile) -> None:
        """Every chunk of a file is hashed again at its next read."""
        file.present = file.present.replace(bytes([VERIFIED]), bytes([STORED]))
        file.mtime_ns, file.dirty = None, True

    def lose(self, replica: ReplicaSnapshot, file: ReplicaFile) -> None:
        """A file is not on the disk as it should be: nothing of it is here."""
        log.warning("replicas.file_lost", snapshot=replica.snapshot, path=file.entry.path)
        _DAMAGED.inc()
        replica.bytes_local -= file.bytes_local
        file.present, file.bytes_local, file.mtime_ns = bytearray(file.entry.chunks), 0, None
        file.made, file.dirty, replica.complete = False, True, False

    # --- what is written back -----------------------------------------------------------------

    def count(self, key: tuple[IslandId, str, str], *, received: int = 0, sent: int = 0) -> None:
        """Count bytes that moved; written with the next flush."""
        entry = self._moved.setdefault(key, [0, 0])
        entry[0] += received
        entry[1] += sent

    async def moved(self, key: tuple[IslandId, str, str]) -> tuple[int, int]:
        """(received, sent) of a snapshot since it was first seen."""
        async with self._counting:
            stored = await self._db.read(lambda conn: store.moved(conn, *key))
            received, sent = self._moved.get(key, (0, 0))
            return stored[0] + received, stored[1] + sent

    async def flush(self) -> None:
        """Sync the data of every changed file, then write back bitmaps and counters."""
        for replica in list(self.snapshots.values()):
            dirty = [file for file in replica.files.values() if file.dirty]
            for at in range(0, len(dirty), _SYNCED):
                await self.flush_files(replica, dirty[at : at + _SYNCED])
        await self._flush_counters()

    async def _flush_counters(self) -> None:
        def write(conn: sqlite3.Connection) -> None:
            for key, (received, sent) in counters:
                store.add_moved(conn, *key, received=received, sent=sent)

        def written(_: None) -> None:
            for key, (received, sent) in counters:
                self._moved[key][0] -= received
                self._moved[key][1] -= sent

        async with self._counting:
            counters = [(key, tuple(value)) for key, value in self._moved.items() if any(value)]
            if counters:
                await self._db.write(write, then=written)

    async def flush_files(self, replica: ReplicaSnapshot, files: Sequence[ReplicaFile]) -> None:
        """Sync and write back those of some files of one snapshot that changed; what is under way is waited for."""

        def sync() -> list[tuple[ReplicaFile, store.ReplicaFileState]]:
            states = []
            for file, size, bits in snapshots:
                mtime = self.files.sync(replica.folder, file.entry.path) if file.made else None
                whole = mtime if size == file.entry.size else None
                states.append((file, store.ReplicaFileState(file.id, size, bits, whole)))
            return states

        async with self._flushing:
            # The bitmap is taken before the sync: every chunk that it names was written before.
            snapshots = []
            for file in [file for file in files if file.dirty]:
                snapshots.append((file, file.bytes_local, core.pack_bitmap(file.present)))
                file.dirty = False
            if not snapshots:
                return
            try:
                states = await self.run(sync)
                if not replica.gone:
                    rows, now = [state for _, state in states], replica.used_at
                    await self._db.write(lambda conn: store.save_files(conn, replica.id, rows, now))
            except BaseException:
                for file, _, _ in snapshots:
                    file.dirty = True
                raise
            for file, state in states:
                if not file.dirty:
                    file.mtime_ns = state.mtime_ns
        await self._flush_counters()

    async def update(
        self,
        replica: ReplicaSnapshot,
        *,
        used_at: float | None = None,
        kept_until: float | None = None,
        complete: bool | None = None,
        pinned: bool | None = None,
    ) -> None:
        """Change what is known of a snapshot as a whole, in the database and in memory."""

        def updated(_: object) -> None:
            replica.used_at = max(replica.used_at, used_at or 0.0)
            replica.kept_until = max(replica.kept_until, kept_until or 0.0)
            replica.complete = replica.complete if complete is None else complete
            replica.pinned = replica.pinned if pinned is None else pinned

        await self._db.write(
            lambda conn: store.update_snapshot(
                conn, replica.id, used_at=used_at, kept_until=kept_until, complete=complete, pinned=pinned
            ),
            then=updated,
        )

    async def drop(self, replica: ReplicaSnapshot) -> None:
        """Forget a snapshot and delete its files; the caller has seen that nobody uses it."""
        async with self._opening:
            replica.gone, dropped = True, False
            self.snapshots.pop(replica.key, None)

            def committed(_: object) -> None:
                nonlocal dropped
                dropped = True

            try:
                await self._db.write(lambda conn: store.drop_snapshot(conn, replica.id), then=committed)
            finally:
                # A caller that is cancelled leaves no files behind that no row names; a failure changes nothing.
                if dropped:
                    await self.run(lambda: self.files.remove(replica.folder))
                else:
                    replica.gone = False
                    self.snapshots[replica.key] = replica
        log.info(
            "replicas.dropped",
            owner=replica.owner,
            name=replica.name,
            snapshot=replica.snapshot,
            bytes=replica.bytes_local,
        )


def edges_of(hashes: FileHashes) -> ChunkBorders:
    """The borders of the chunks that `hashes` knows."""
    return ChunkBorders(hashes.first, [*hashes.starts, hashes.end])


def absent(file: ReplicaFile, run: ChunkRange) -> list[ChunkRange]:
    """The runs of chunks within `run` that are neither here nor under way."""
    runs = []
    for first, last in core.missing(file.present, run):
        start = first
        for index in range(first, last):
            if index in file.arriving:
                if index > start:
                    runs.append((start, index))
                start = index + 1
        if last > start:
            runs.append((start, last))
    return runs
