"""The local chunks of other islands' snapshots: bitmaps in memory, data in sparse files.

The bitmap in memory is authoritative while the daemon runs. `flush` syncs the data and then
writes the bitmap to `chunks.db`, so a crash can lose chunks but the database never lists a
chunk that is not on disk. A chunk that an earlier run stored is hashed again at its first read.

After a failed sync the system may have discarded what was written, although it can still be read and
the next sync succeeds. So the chunks that were written since the last good sync count as absent.
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
from island.errors import Conflict, Full, IslandError
from island.kernel import telemetry
from island.kernel.db import Database
from island.kernel.ids import IslandId
from island.kernel.loops import is_transient
from island.kernel.ports import Clock
from island.kernel.work import Workers
from island.replicas import chunk_files, core, store
from island.replicas.chunk_files import ChunkFiles
from island.replicas.core import ABSENT, STORED, VERIFIED, ChunkBorders, ChunkRange

log = structlog.get_logger("island")

T = TypeVar("T")

_DAMAGED = telemetry.counter("replica_chunks_damaged", "Stored chunks that did not match their hash and were dropped")
_SYNCED = 16
"""Maximum number of files that are synced before their bitmaps are written in one transaction."""
_OPEN_FILES = 20_000
"""Maximum number of files of a snapshot whose bitmaps stay in memory. The others are loaded again when needed."""


class ReplicaFile:
    """One file of a replica, with the bitmap of its local chunks."""

    def __init__(
        self, ident: int, entry: FileEntry, present: bytearray, bytes_local: int, mtime_ns: int | None
    ) -> None:
        self.id = ident
        self.entry = entry
        self.present = present
        self.bytes_local = bytes_local
        self.mtime_ns = mtime_ns
        """Modification time of the complete file when it was last synced, in nanoseconds; None before that."""
        self.synced = (core.pack_bitmap(present), bytes_local)
        """Bitmap and number of the bytes that are on disk for certain: those of the last successful sync."""
        self.dirty = False
        self.made = bytes_local > 0
        """Whether the sparse file exists."""
        self.arriving: dict[int, asyncio.Future[None]] = {}
        """Futures of the chunks that are being fetched. A chunk in this dict is not requested a second time."""

    @property
    def complete(self) -> bool:
        """Whether every byte of the file is stored locally."""
        return self.bytes_local == self.entry.size


class ReplicaSnapshot:
    """The replica of one snapshot of another island, complete or partial.

    As a context manager it counts the reads, fetches and answers that use it; a replica in
    use is not evicted.
    """

    def __init__(self, row: store.ReplicaSnapshotRow) -> None:
        self.id = row.id
        self.owner, self.name, self.snapshot = row.owner, row.name, row.snapshot
        self.folder, self.bytes = row.folder, row.bytes
        self.bytes_local = row.bytes_local
        self.complete, self.pinned = row.complete, row.pinned
        self.used_at, self.kept_until = row.used_at, row.kept_until
        self.files: OrderedDict[str, ReplicaFile] = OrderedDict()
        self.users = 0
        """Number of reads, fetches and answers to other islands in progress. Above 0 the replica is not evicted."""
        self.gone = False
        self.reverted = 0
        """How often chunks were dropped because they could not be synced."""

    @property
    def key(self) -> tuple[IslandId, str, str]:
        return self.owner, self.name, self.snapshot

    def __enter__(self) -> ReplicaSnapshot:
        self.users += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.users -= 1


class ChunkStore:
    """All replicas of this island: `chunks.db` and the files below `root`."""

    def __init__(self, db: Database, root: Path, clock: Clock, workers: Workers) -> None:
        self._db, self._clock = db, clock
        self.files = ChunkFiles(root)
        self.snapshots: dict[tuple[IslandId, str, str], ReplicaSnapshot] = {}
        self._threads = workers.lane("chunks", 4)
        self._closed = False
        self.problem = ""
        """Why files could not be written, for the island's status; "" if a later write was synced."""
        self._written = False
        """Whether chunks were written since `problem` was set."""
        self._moved: dict[tuple[IslandId, str, str], list[int]] = {}
        self._loading: dict[tuple[int, str], asyncio.Lock] = {}
        self._opening = asyncio.Lock()
        self._counting = asyncio.Lock()
        self._flushing = asyncio.Lock()

    async def start(self) -> None:
        """Load the replicas from the database, and delete folders that have no row in it."""
        await self.run(lambda: self.files.root.mkdir(parents=True, exist_ok=True))
        rows = await self._db.read(store.snapshots)
        for row in rows:
            replica = ReplicaSnapshot(row)
            self.snapshots[replica.key] = replica
        swept = await self.run(lambda: self.files.sweep(row.folder for row in rows))
        log.info("replicas.store_loaded", snapshots=len(rows), bytes=self.total, swept=swept)

    def close(self) -> None:
        """Stop the threads. Operations that have begun are completed."""
        self._closed = True
        self._threads.close()

    async def run(self, function: Callable[[], T]) -> T:
        """Run a blocking function on the store's threads. Raises `IslandError` after `close`."""
        if self._closed:
            raise IslandError("the island is stopping", hint="Try again when it has restarted.")
        return await self._threads.run(function)

    async def _run_writing(self, function: Callable[[], T]) -> T:
        """`run` for a function that writes files. A failure of the disk becomes the `problem`."""
        try:
            return await self.run(function)
        except IslandError as error:
            self._failed(error)
            raise

    def _failed(self, error: IslandError) -> None:
        if isinstance(error, Full) or is_transient(error):
            self.problem, self._written = error.line, False

    @property
    def total(self) -> int:
        """Bytes of all chunks in the store."""
        return sum(replica.bytes_local for replica in self.snapshots.values())

    def get(self, owner: IslandId, name: str, snapshot: str) -> ReplicaSnapshot | None:
        """The replica of a snapshot, or None if the store has none."""
        return self.snapshots.get((owner, name, snapshot))

    async def open(self, owner: IslandId, name: str, snapshot: str, size: int) -> ReplicaSnapshot:
        """The replica of a snapshot; created if there is none. `size` is the sum of all its files, in bytes.

        Raises `Conflict` if the folder belongs to a dataset of an island with the same key prefix.
        """
        async with self._opening:
            replica = self.snapshots.get((owner, name, snapshot))
            if replica is None:
                folder, now = chunk_files.folder_of(owner, name, snapshot), self._clock.wall()
                if any(other.folder == folder for other in self.snapshots.values()):
                    raise Conflict(
                        f"a replica of {name!r} cannot be stored: another island with the same key prefix"
                        " owns a dataset of this name and content",
                        hint="Delete the other replica with `island dataset drop`, then try again.",
                    )
                await self._db.write(
                    lambda conn: store.add_snapshot(conn, owner, name, snapshot, folder, size, now), then=self._opened
                )
                replica = self.snapshots[owner, name, snapshot]
            return replica

    def _opened(self, row: store.ReplicaSnapshotRow) -> None:
        replica = ReplicaSnapshot(row)
        self.snapshots[replica.key] = replica

    async def file(self, replica: ReplicaSnapshot, entry: FileEntry) -> ReplicaFile:
        """One file of a replica. At its first use the database row is compared with the file on disk."""
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
        # Remove a tenth at once, so that this loop does not run for every further file.
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
        """Create the sparse file if it does not exist. A file of 0 bytes has no chunks, but must exist too."""
        if not file.made:
            await self._run_writing(lambda: self.files.create(replica.folder, file.entry.path, file.entry.size))
            file.made = True

    async def put(
        self, replica: ReplicaSnapshot, file: ReplicaFile, hashes: FileHashes, first: int, data: Sequence[bytes]
    ) -> int:
        """Verify consecutive chunks, beginning with number `first`, and write them.

        Returns the number of chunks before the first one that does not match its hash; only
        these are written. Raises `Full` or another `IslandError` if the disk fails.
        """

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

        good = await self._run_writing(verify_and_write)
        self._written = self._written or good > 0
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
        """The verified bytes from `start` to `end`; None if a chunk in this range is absent.

        A chunk that an earlier run stored is hashed at its first read. A chunk that does not
        match its hash is dropped and counts as absent.
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
        """Mark the chunks of a file as unverified: each is hashed again at its next read."""
        file.present = file.present.replace(bytes([VERIFIED]), bytes([STORED]))
        file.mtime_ns, file.dirty = None, True

    def lose(self, replica: ReplicaSnapshot, file: ReplicaFile) -> None:
        """Mark all chunks of a file as absent, because the file is missing or has the wrong size."""
        log.warning("replicas.file_lost", snapshot=replica.snapshot, path=file.entry.path)
        _DAMAGED.inc()
        replica.bytes_local -= file.bytes_local
        file.present, file.bytes_local, file.mtime_ns = bytearray(file.entry.chunks), 0, None
        file.synced = (b"", 0)
        file.made, file.dirty, replica.complete = False, True, False

    # --- writing back -------------------------------------------------------------------------

    def count(self, key: tuple[IslandId, str, str], *, received: int = 0, sent: int = 0) -> None:
        """Count transferred bytes of a snapshot. The counters are written with the next flush."""
        entry = self._moved.setdefault(key, [0, 0])
        entry[0] += received
        entry[1] += sent

    async def moved(self, key: tuple[IslandId, str, str]) -> tuple[int, int]:
        """Bytes (received, sent) of a snapshot since it was first transferred; they survive restarts."""
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

    def _revert(self, replica: ReplicaSnapshot, file: ReplicaFile) -> None:
        """Drop the chunks of a file that were written since its last successful sync."""
        bits, bytes_local = file.synced
        log.warning(
            "replicas.not_synced",
            snapshot=replica.snapshot,
            path=file.entry.path,
            dropped_bytes=file.bytes_local - bytes_local,
        )
        replica.bytes_local += bytes_local - file.bytes_local
        file.present, file.bytes_local = core.unpack_bitmap(bits, file.entry.chunks), bytes_local
        file.mtime_ns, file.dirty, replica.complete = None, True, False
        replica.reverted += 1

    async def flush_files(self, replica: ReplicaSnapshot, files: Sequence[ReplicaFile]) -> None:
        """Sync the changed ones of `files`, all of one snapshot, and write back their bitmaps and the counters.

        Raises the error of the disk. Chunks that could not be synced are dropped before.
        """

        def sync() -> list[int | IslandError | None]:
            return [self._try_sync(replica, file) for file, _, _ in snapshots]

        async with self._flushing:
            # The bitmap is copied before the sync, so every chunk that it lists is covered by the sync.
            snapshots = []
            for file in [file for file in files if file.dirty]:
                snapshots.append((file, file.bytes_local, core.pack_bitmap(file.present)))
                file.dirty = False
            if not snapshots:
                return
            states, failure = [], None
            try:
                for (file, size, bits), synced in zip(snapshots, await self.run(sync), strict=True):
                    if isinstance(synced, IslandError):
                        failure = synced
                        self._revert(replica, file)
                        continue
                    file.synced = (bits, size)
                    whole = synced if size == file.entry.size else None
                    states.append((file, store.ReplicaFileState(file.id, size, bits, whole)))
                if states and not replica.gone:
                    rows, now = [state for _, state in states], replica.used_at
                    await self._db.write(lambda conn: store.save_files(conn, replica.id, rows, now))
            except BaseException:
                for file, _, _ in snapshots:
                    file.dirty = True
                raise
            for file, state in states:
                if not file.dirty:
                    file.mtime_ns = state.mtime_ns
        if failure is not None:
            self._failed(failure)
            raise failure
        if self._written:
            self.problem = ""
        await self._flush_counters()

    def _try_sync(self, replica: ReplicaSnapshot, file: ReplicaFile) -> int | IslandError | None:
        """The modification time of a synced file, None if it has no file yet, or the error. Blocking."""
        try:
            return self.files.sync(replica.folder, file.entry.path) if file.made else None
        except IslandError as error:
            return error

    async def update(
        self,
        replica: ReplicaSnapshot,
        *,
        used_at: float | None = None,
        kept_until: float | None = None,
        complete: bool | None = None,
        pinned: bool | None = None,
    ) -> None:
        """Change columns of a replica, in the database and then in memory. None leaves a value unchanged."""

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

    async def release(self, replica: ReplicaSnapshot) -> None:
        """End the reservation of a replica for sessions, in the database and then in memory."""

        def released(_: None) -> None:
            replica.kept_until = 0.0

        await self._db.write(lambda conn: store.release_snapshot(conn, replica.id), then=released)

    async def drop(self, replica: ReplicaSnapshot) -> None:
        """Delete a replica: its row, then its files. The caller has checked that the replica is not in use."""
        async with self._opening:
            replica.gone, dropped = True, False
            self.snapshots.pop(replica.key, None)

            def committed(_: object) -> None:
                nonlocal dropped
                dropped = True

            try:
                await self._db.write(lambda conn: store.drop_snapshot(conn, replica.id), then=committed)
            finally:
                # If the caller is cancelled after the commit, the files are deleted too; if the write
                # failed, the replica is unchanged.
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
    """The borders of the chunks in `hashes`."""
    return ChunkBorders(hashes.first, [*hashes.starts, hashes.end])


def absent(file: ReplicaFile, run: ChunkRange) -> list[ChunkRange]:
    """The runs of chunks within `run` that are neither stored nor being fetched."""
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
