"""The service that reads, fetches, stores and serves datasets of the archipelago.

The island's own datasets are read in place, those of other islands through the chunk store.
Every byte is verified against the snapshot's hash before it is returned or sent. This
includes the island's own files, because they may be changed after publication.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from island.catalog.manifest import FileEntry, PageRef
from island.catalog.manifest_reader import ManifestReader
from island.catalog.messages import DatasetRecord, ReplicaRecord, ResolvedDataset, SnapshotHolding
from island.catalog.ports import LocalInput, Progress, ReplicaStatus, no_progress
from island.catalog.service import Catalog, OwnFile
from island.catalog.view_names import view_name
from island.config import Config, size_in_bytes
from island.errors import BadInput, Conflict, FilesChanged, IslandError, NotFound
from island.formats.limits import DEFAULT_LIMITS, ReadLimits
from island.gossip.service import Gossip
from island.kernel import codec
from island.kernel.db import Database
from island.kernel.ids import DatasetName, IslandId
from island.kernel.loops import Tasks
from island.kernel.ports import Clock, Peers, Rng
from island.kernel.work import Workers
from island.membership.service import Membership
from island.replicas import core, store
from island.replicas.chunk_files import read_range
from island.replicas.chunk_server import Blocks, ChunkServer
from island.replicas.chunk_store import ChunkStore, ReplicaFile, ReplicaSnapshot, edges_of
from island.replicas.fetching import Fetcher, FetchTimeouts, MissingChunks
from island.replicas.manifest_cache import ManifestCache
from island.replicas.materialise import DatasetFolders
from island.replicas.messages import ChunkRequest
from island.replicas.space import DiskQuota
from island.trust import journal
from island.trust.service import Trust

T = TypeVar("T")
log = structlog.get_logger("island")

FLUSH_S = 0.5
"""Seconds between two write-backs of bitmaps. Chunks that arrived since the last one are lost in a crash."""
WINDOW = 2**20
"""Maximum number of bytes in one block of a read."""
AHEAD = 8 * 2**20
"""Bytes that are requested ahead of the reader of a long range."""
GROUP_BYTES = 8 * 2**20
"""Maximum number of bytes in one group of missing chunks of a fetch, and size of the windows of large files."""
GROUPS = 4
"""Maximum number of groups that a fetch has in progress."""
GROUP_FILES = 192
"""Maximum number of files in one group."""
AT_ONCE = 24
"""Number of small files whose hashes are requested concurrently."""
KEPT_FOR_S = 24 * 3600.0
"""Seconds for which a replica is not evicted after its path was given to a session, unless it is released before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicasDependencies:
    """The parts of the island that `Replicas` uses."""

    chunks: Database
    catalog: Catalog
    gossip: Gossip
    membership: Membership
    trust: Trust
    peers: Peers
    config: Config
    clock: Clock
    rng: Rng
    home: Path
    state: Database
    workers: Workers
    patience: FetchTimeouts | None = None
    limits: ReadLimits = DEFAULT_LIMITS


class Replicas:
    """Reads, fetches, stores and serves datasets. Implements `catalog.ports.Inputs` and `Replication`."""

    def __init__(self, needs: ReplicasDependencies) -> None:
        self._db, self._state = needs.chunks, needs.state
        self._catalog, self._gossip, self._membership, self._trust = (
            needs.catalog,
            needs.gossip,
            needs.membership,
            needs.trust,
        )
        self._clock, self._rng = needs.clock, needs.rng
        self._workers = needs.workers
        self.held = ChunkStore(needs.chunks, needs.home / "replicas", needs.clock, needs.workers)
        self.space = DiskQuota(
            self.held,
            needs.clock,
            quota=size_in_bytes(needs.config.replicas.quota),
            reserve=size_in_bytes(needs.config.replicas.reserve),
            elsewhere=self._is_elsewhere,
            dropped=self._on_dropped,
        )
        self._fetcher = Fetcher(
            self.held,
            self.space,
            needs.peers,
            needs.membership,
            needs.clock,
            holders=self._holders,
            fault=self._note_fault,
            patience=needs.patience or FetchTimeouts(),
        )
        self._server = ChunkServer(self.held, needs.peers, self._open_for_peer, needs.membership.display)
        self._views = DatasetFolders(needs.home, needs.workers, needs.limits)
        self._manifests = ManifestCache(
            needs.chunks,
            self.held,
            needs.catalog,
            self._fetcher,
            needs.clock,
            me=needs.trust.me,
            patience=(needs.patience or FetchTimeouts()).nothing,
            display=needs.membership.display,
        )
        needs.gossip.blobs.add_source(self._manifests.page)
        self._fetching: dict[tuple[IslandId, str, str], asyncio.Lock] = {}
        self._tasks: Tasks | None = None
        self._faults: list[tuple[IslandId, str]] = []
        self._unannounced: dict[tuple[IslandId, str], None] = {}
        """Datasets whose replica record may be out of date. The next write-back publishes it again."""
        self._stopping = asyncio.Event()

    async def start(self, tasks: Tasks) -> None:
        """Load the chunk store, delete leftovers, correct the replica records, and start the write-back loop."""
        self._tasks = tasks
        self._fetcher.start(tasks)
        await self.held.start()
        await self._sweep_views()
        await self._reconcile_records()
        tasks.forever("replicas.flush", self._flush, rng=self._rng, pause=FLUSH_S)

    async def _sweep_views(self) -> None:
        """Delete the folders made for Spark whose snapshots are no longer stored or published at this island."""
        keep = {replica.snapshot for replica in self.held.snapshots.values()}
        for snapshot in await self.held.run(self._views.snapshots):
            if snapshot not in keep:
                with contextlib.suppress(IslandError):
                    await self._catalog.manifest(self._trust.me, snapshot)
                    keep.add(snapshot)
        await self.held.run(lambda: self._views.sweep(keep))
        self.space.other_bytes = await self.held.run(self._views.converted_bytes)

    async def stop(self) -> None:
        """Cancel the transfers, write back bitmaps, counters and records, and close the store."""
        self._stopping.set()
        await self._fetcher.stop()
        await self._write_back()
        self.held.close()

    def problems(self) -> list[str]:
        """Why files of replicas could not be written, for the island's status."""
        return [self.held.problem] if self.held.problem else []

    # --- manifests and status -----------------------------------------------------------------

    async def listing(self, resolved: ResolvedDataset) -> list[FileEntry]:
        """All files of a snapshot, sorted by path."""
        return await (await self.manifest(resolved)).listing()

    async def files_after(self, resolved: ResolvedDataset, after: str, limit: int) -> AsyncIterator[FileEntry]:
        """At most `limit` files whose paths sort after `after`."""
        manifest, wanted = await self.manifest(resolved), after.encode()
        previous: PageRef | None = None
        async for ref in manifest.pages():
            if previous and ref.first.encode() > wanted:
                for entry in await manifest.page(previous):
                    if limit > 0 and entry.path.encode() > wanted:
                        limit -= 1
                        yield entry
            if limit <= 0:
                return
            previous = ref
        for entry in await manifest.page(previous) if previous else ():
            if limit > 0 and entry.path.encode() > wanted:
                limit -= 1
                yield entry

    async def find(self, resolved: ResolvedDataset, path: str) -> FileEntry:
        """One file of a snapshot. Raises `NotFound`."""
        return await (await self.manifest(resolved)).find(path)

    async def manifest(self, resolved: ResolvedDataset) -> ManifestReader:
        """The manifest of a snapshot: the local one, or that of the owner or another holder.

        Raises `Unreachable` with the list of holders.
        """
        return await self._manifests.get(resolved.owner, resolved.name, resolved.snapshot)

    async def status(self, resolved: ResolvedDataset) -> ReplicaStatus:
        """Size of a snapshot, its local bytes, and the bytes of it that were received from other islands."""
        size = await self._size(resolved)
        received, _ = await self.held.moved((resolved.owner, resolved.name, resolved.snapshot))
        if resolved.owner == self._trust.me:
            return ReplicaStatus(size, size, received)
        replica = self.held.get(resolved.owner, resolved.name, resolved.snapshot)
        return ReplicaStatus(size, replica.bytes_local if replica else 0, received)

    async def sent(self, resolved: ResolvedDataset) -> int:
        """Bytes of a snapshot that this island has sent to others."""
        return (await self.held.moved((resolved.owner, resolved.name, resolved.snapshot)))[1]

    async def faults(self) -> dict[IslandId, tuple[int, float, str]]:
        """Islands that sent wrong bytes: (number of times, Unix time of the last one, its description)."""
        return await self._db.read(store.faults)

    async def _size(self, resolved: ResolvedDataset) -> int:
        replica = self.held.get(resolved.owner, resolved.name, resolved.snapshot)
        if replica:
            return replica.bytes
        return resolved.record.size if resolved.newest else (await self.manifest(resolved)).root.size

    async def missing(self, resolved: ResolvedDataset) -> int:
        """Bytes of a snapshot that are not stored at this island; 0 for the island's own datasets."""
        if resolved.owner == self._trust.me:
            return 0
        replica = self.held.get(resolved.owner, resolved.name, resolved.snapshot)
        return max(0, replica.bytes - replica.bytes_local) if replica else await self._size(resolved)

    # --- reading ------------------------------------------------------------------------------

    async def read(self, resolved: ResolvedDataset, path: str, start: int, end: int) -> bytes:
        """The verified bytes from `start` to `end` of a file; missing chunks are fetched.

        Raises `NotFound`, `Unreachable` with the list of holders, `FilesChanged`,
        `PeerMisbehaved`, `PeerRefused` or `Full`.
        """
        return b"".join([block async for block in self.stream(resolved, path, start, end)])

    async def stream(self, resolved: ResolvedDataset, path: str, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """Like `read`, in blocks of at most `WINDOW` bytes."""
        manifest = await self.manifest(resolved)
        entry = await manifest.find(path)
        end = min(end, entry.size)
        if resolved.owner == self._trust.me:
            for at in range(start, end, WINDOW):
                yield await self._own_bytes(manifest, entry, at, min(at + WINDOW, end))
            return
        replica = await self._open(resolved, manifest)
        with replica:
            file = await self.held.file(replica, entry)
            requested = start
            while start < end:
                stop = min(start + WINDOW, end)
                if requested < min(start + AHEAD // 2, end) and end - start > WINDOW:
                    until = min(start + AHEAD, end)
                    self._fetcher.begin(replica, [await self._want(manifest, file, requested, until)])
                    requested = until
                yield await self._replica_bytes(replica, manifest, file, start, stop)
                start = stop

    async def span(self, resolved: ResolvedDataset, path: str, start: int, end: int) -> tuple[int, int]:
        """Offsets of the first and last border of the chunks that contain the bytes from `start` to `end`."""
        manifest = await self.manifest(resolved)
        entry = await manifest.find(path)
        hashes = await self._manifests.hashes(manifest, entry, start, min(end, entry.size))
        edges = edges_of(hashes)
        first, last = edges.cover(start, min(end, entry.size))
        return edges.offset(first), edges.offset(last)

    async def _open(self, resolved: ResolvedDataset, manifest: ManifestReader) -> ReplicaSnapshot:
        replica = await self.held.open(resolved.owner, resolved.name, resolved.snapshot, manifest.root.size)
        replica.used_at = self._clock.wall()
        await self._manifests.keep(replica)
        return replica

    async def _want(self, manifest: ManifestReader, file: ReplicaFile, start: int, end: int) -> MissingChunks:
        hashes = await self._manifests.hashes(manifest, file.entry, start, end)
        return MissingChunks(file, hashes, edges_of(hashes).cover(start, end))

    async def _replica_bytes(
        self, replica: ReplicaSnapshot, manifest: ManifestReader, file: ReplicaFile, start: int, end: int
    ) -> bytes:
        for _ in range(3):
            want = await self._want(manifest, file, start, end)
            await self._fetcher.ensure(replica, [want])
            data = await self.held.get_bytes(replica, file, want.hashes, start, end)
            if data is not None:
                return data
        raise IslandError(
            f"{file.entry.path} cannot be read: chunks that were just written do not match their hashes",
            hint="Check the disk of this island's home folder, then try again.",
        )

    async def _own_bytes(self, manifest: ManifestReader, entry: FileEntry, start: int, end: int) -> bytes:
        """Verified bytes of a published file, read in place. Raises `FilesChanged` if the file has changed."""
        hashes = await self._manifests.hashes(manifest, entry, start, end)
        edges = edges_of(hashes)
        run = edges.cover(start, end)
        own = await self._own_file(manifest.snapshot, entry)
        low, high = edges.offset(run[0]), edges.offset(run[1])

        def read() -> bytes | None:
            try:
                data = read_range(own.path, low, high)
            except IslandError:
                return None
            view = memoryview(data)
            for index in range(*run):
                if not hashes.verify(index, view[edges.offset(index) - low : edges.offset(index + 1) - low]):
                    return None
            return data[start - low : end - low]

        data = await self._workers.folder(own.base, read)
        if data is None:
            raise FilesChanged(
                f"{own.path} was changed, moved or deleted after it was published as {entry.path!r}"
                f" (snapshot {manifest.snapshot[:12]})",
                hint="Publish the dataset again: `island dataset publish PATH --name NAME` makes a new snapshot.",
            )
        return data

    async def _own_file(self, snapshot: str, entry: FileEntry) -> OwnFile:
        own = await self._catalog.own_file(snapshot, entry.path)
        if own is None:
            raise NotFound(f"this island no longer publishes {entry.path!r} of snapshot {snapshot[:12]}")
        return own

    # --- complete replicas --------------------------------------------------------------------

    async def fetch(self, resolved: ResolvedDataset, progress: Progress = no_progress, *, pin: bool = True) -> None:
        """Fetch a complete, verified replica. Chunks that are already local are not transferred again.

        A pinned replica is not evicted. Raises the same errors as `read`, `Conflict` for the
        island's own dataset, and `Full` before the first transfer if the dataset does not fit.
        """
        if resolved.owner == self._trust.me:
            raise Conflict(f"{resolved.dataset} is a dataset of this island", hint="There is nothing to fetch.")
        manifest = await self.manifest(resolved)
        key = (resolved.owner, resolved.name, resolved.snapshot)
        async with self._fetching.setdefault(key, asyncio.Lock()):
            replica = await self._open(resolved, manifest)
            with replica:
                what = f"{resolved.owner_name}/{resolved.name}"
                await self.space.check(replica.bytes - replica.bytes_local, what)
                if not replica.complete:
                    await self._announce(replica)
                while not await self._fetch_all(replica, manifest, progress, what):
                    log.warning("replicas.fetch_repeated", dataset=what)
                await self.held.update(replica, complete=True, used_at=self._clock.wall(), pinned=True if pin else None)
                await self._announce(replica)
                if pin:
                    await self._unpin_older(replica)
                progress(replica.bytes, replica.bytes, what)

    async def _unpin_older(self, newest: ReplicaSnapshot) -> None:
        """Unpin the other snapshots of a dataset of which a newer one was fetched, so that they can be evicted."""
        for replica in list(self.held.snapshots.values()):
            if (
                (replica.owner, replica.name) == (newest.owner, newest.name)
                and replica is not newest
                and replica.pinned
            ):
                await self.held.update(replica, pinned=False)

    async def _fetch_all(
        self, replica: ReplicaSnapshot, manifest: ManifestReader, progress: Progress, what: str
    ) -> bool:
        """Fetch the missing chunks of all files, once; returns whether every file is complete afterwards."""
        under_way: deque[list[MissingChunks]] = deque()

        async def settle(most: int) -> None:
            while len(under_way) > most:
                wants = under_way.popleft()
                await self._fetcher.ensure(replica, wants)
                progress(min(replica.bytes_local, replica.bytes), replica.bytes, what)

        progress(replica.bytes_local, replica.bytes, what)
        async for wants in self._groups(replica, manifest):
            self._fetcher.begin(replica, wants)
            under_way.append(wants)
            await settle(GROUPS - 1)
        await settle(0)
        return await self._settle_files(replica, manifest)

    async def _groups(self, replica: ReplicaSnapshot, manifest: ManifestReader) -> AsyncIterator[list[MissingChunks]]:
        """The missing chunks in groups that are requested together, in the order of the files."""
        group: list[MissingChunks] = []
        size = 0
        async for want in self._wants(replica, manifest):
            group.append(want)
            size += min(GROUP_BYTES, want.file.entry.size)
            if size >= GROUP_BYTES or len(group) >= GROUP_FILES:
                yield group
                group, size = [], 0
        if group:
            yield group

    async def _wants(self, replica: ReplicaSnapshot, manifest: ManifestReader) -> AsyncIterator[MissingChunks]:
        """The windows of all files that have missing chunks. Several small files are examined concurrently."""
        small: list[FileEntry] = []

        async def of_small() -> list[MissingChunks]:
            found = await asyncio.gather(*(self._wants_of(replica, manifest, entry) for entry in small))
            small.clear()
            return [want for wants in found for want in wants]

        async for entry in manifest.files():
            if entry.size <= GROUP_BYTES:
                small.append(entry)
            if len(small) >= AT_ONCE or entry.size > GROUP_BYTES:
                for want in await of_small():
                    yield want
            if entry.size > GROUP_BYTES:
                for start in range(0, entry.size, GROUP_BYTES):
                    for want in await self._wants_of(replica, manifest, entry, start):
                        yield want
        for want in await of_small():
            yield want

    async def _wants_of(
        self, replica: ReplicaSnapshot, manifest: ManifestReader, entry: FileEntry, start: int = 0
    ) -> list[MissingChunks]:
        """The window of a file that begins at `start`, if it has missing chunks; else an empty list."""
        file = await self.held.file(replica, entry)
        if start == 0:
            await self._distrust(replica, manifest, file)
        if file.complete:
            await self.held.make(replica, file)
            return []
        want = await self._want(manifest, file, start, min(start + GROUP_BYTES, entry.size))
        return [want] if core.missing(file.present, want.run) else []

    async def _distrust(self, replica: ReplicaSnapshot, manifest: ManifestReader, file: ReplicaFile) -> None:
        """Hash a complete file again if it was modified since it was synced; drop chunks that do not match."""
        entry = file.entry
        if not (file.complete and entry.size) or file.dirty:
            return
        found = await self.held.run(lambda: self.held.files.stat(replica.folder, entry.path))
        if found == (entry.size, file.mtime_ns):
            return
        if found is None or found[0] != entry.size:
            self.held.lose(replica, file)
            return
        self.held.doubt(file)
        for start in range(0, entry.size, GROUP_BYTES):
            end = min(start + GROUP_BYTES, entry.size)
            hashes = await self._manifests.hashes(manifest, entry, start, end)
            await self.held.get_bytes(replica, file, hashes, start, end)

    async def _settle_files(self, replica: ReplicaSnapshot, manifest: ManifestReader) -> bool:
        """Sync all files and write back their bitmaps; returns whether every file is complete."""
        complete, reverted = True, replica.reverted
        batch: list[ReplicaFile] = []
        async for entry in manifest.files():
            file = await self.held.file(replica, entry)
            complete = complete and file.complete
            if file.dirty or file.mtime_ns is None:
                batch.append(file)
            if len(batch) >= 16:
                await self.held.flush_files(replica, batch)
                batch = []
        await self.held.flush_files(replica, batch)
        return complete and replica.reverted == reverted

    async def materialise(self, resolved: ResolvedDataset, progress: Progress = no_progress) -> LocalInput:
        """A complete, verified copy of the dataset at a path that Spark can read; see `catalog.ports.Inputs`."""
        manifest = await self.manifest(resolved)
        if resolved.owner == self._trust.me:
            path = await self._materialise_own(manifest, progress)
        else:
            await self.fetch(resolved, progress, pin=False)
            replica = await self._open(resolved, manifest)
            await self.held.update(replica, kept_until=self._clock.wall() + KEPT_FOR_S)
            data = [entry async for entry in manifest.files() if entry.format]
            files = [self.held.files.path(replica.folder, entry.path) for entry in data]
            path = await self._path(manifest, data, files, progress)
        received, _ = await self.held.moved((resolved.owner, resolved.name, resolved.snapshot))
        return LocalInput(
            view=view_name(resolved.owner_name, resolved.name),
            owner=resolved.owner,
            name=resolved.name,
            snapshot=resolved.snapshot,
            path=path,
            bytes=manifest.root.size,
            moved=received,
        )

    async def release(self, owner: IslandId, name: str, snapshot: str) -> None:
        """Allow the eviction of a replica that was reserved for sessions; see `catalog.ports.Inputs`."""
        if (replica := self.held.get(owner, name, snapshot)) is not None:
            await self.held.release(replica)

    async def _materialise_own(self, manifest: ManifestReader, progress: Progress) -> str:
        data = [entry async for entry in manifest.files() if entry.format]
        files = []
        for entry in data:
            files.append((await self._own_file(manifest.snapshot, entry)).path)
        return await self._path(manifest, data, files, progress)

    async def _path(
        self, manifest: ManifestReader, data: Sequence[FileEntry], files: Sequence[Path], progress: Progress
    ) -> str:
        forms = {entry.format for entry in data}
        if len(forms) != 1:
            found = ", ".join(sorted(forms)) or "none"
            raise BadInput(
                f"Spark can read a dataset only if its data files have one format (found: {found})",
                hint="Publish the files of each format as a dataset of their own.",
            )
        form = forms.pop()
        if form == "avro" and not await self.held.run(lambda: self._views.is_converted(manifest.snapshot)):
            await self.space.check(sum(entry.size for entry in data), "the conversion to Parquet")
        path = await self._views.path(manifest.snapshot, form, files, progress)
        self.space.other_bytes = await self.held.run(self._views.converted_bytes)
        return path

    async def note(self, user: str, act: str, resolved: ResolvedDataset, outcome: str, **detail: object) -> None:
        """Add a row to the journal: an action of a user of this island on a dataset, and its outcome."""
        what, at = f"{resolved.owner_name}/{resolved.name}", self._clock.wall()
        who, details = self._trust.who(user), {"snapshot": resolved.snapshot, **detail}
        await self._state.write(
            lambda conn: journal.append(conn, at=at, who=who, act=act, what=what, outcome=outcome, detail=details)
        )

    def withdrawn(self, wanted: DatasetName) -> list[ResolvedDataset]:
        """The local replicas of a dataset that the catalog does not list, because its owner has withdrawn it."""
        owner = self._membership.resolve(wanted.owner)
        return [
            _without_record(replica, self._membership.display(owner))
            for replica in self.held.snapshots.values()
            if (replica.owner, replica.name) == (owner, wanted.name) and replica.snapshot.startswith(wanted.snapshot)
        ]

    async def drop(self, resolved: ResolvedDataset) -> int:
        """Delete the replica of another island's snapshot; returns the number of bytes freed.

        Raises `NotFound` if there is none, and `Conflict` while it is in use or reserved for a session.
        """
        replica = self.held.get(resolved.owner, resolved.name, resolved.snapshot)
        if replica is None:
            raise NotFound(f"this island has no replica of {resolved.dataset}")
        if replica.users or replica.kept_until > self._clock.wall():
            raise Conflict(
                f"{resolved.dataset} is in use by a session, a batch or a reader",
                hint="Close the sessions that use it (`island session ls`), wait for its readers, and try again.",
            )
        freed = replica.bytes_local
        self._unannounced[replica.owner, replica.name] = None
        await self.held.drop(replica)
        await self._on_dropped(replica)
        return freed

    # --- for other islands --------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _open_for_peer(self, request: ChunkRequest, path: str) -> AsyncIterator[Blocks]:
        owner = request.owner_id
        if owner != self._trust.me:
            replica = self.held.get(owner, request.name, request.snapshot)
            if replica is None:
                raise NotFound(f"this island has no replica of {request.name}@{request.snapshot[:12]}")
            with replica:
                yield await self._replica_blocks(replica, path)
            return
        manifest = await self._manifests.get(owner, request.name, request.snapshot)
        entry = await manifest.find(path)

        async def own_blocks(start: int, end: int) -> AsyncIterator[bytes]:
            async for low, high in self._aligned(manifest, entry, start, end):
                yield await self._own_bytes(manifest, entry, low, high)

        yield own_blocks

    async def _replica_blocks(self, replica: ReplicaSnapshot, path: str) -> Blocks:
        manifest = await self._manifests.get(replica.owner, replica.name, replica.snapshot)
        entry = await manifest.find(path)
        file = await self.held.file(replica, entry)

        async def blocks(start: int, end: int) -> AsyncIterator[bytes]:
            async for low, high in self._aligned(manifest, entry, start, end):
                hashes = await self._manifests.hashes(manifest, entry, low, high)
                data = await self.held.get_bytes(replica, file, hashes, low, high)
                if data is None:
                    raise NotFound(f"this island does not have the bytes {low} to {high} of {path!r}")
                yield data

        return blocks

    async def _aligned(
        self, manifest: ManifestReader, entry: FileEntry, start: int, end: int
    ) -> AsyncIterator[tuple[int, int]]:
        """Split [start, end) into portions of about `WINDOW` bytes. Raises `BadInput` if it is not on chunk borders."""
        if end > entry.size:
            raise BadInput(f"{entry.path!r} has {entry.size} bytes, not {end}")
        while start < end:
            hashes = await self._manifests.hashes(manifest, entry, start, min(end, start + WINDOW))
            edges = edges_of(hashes)
            run = edges.cover(start, min(end, start + WINDOW))
            low, high = edges.offset(run[0]), edges.offset(run[1])
            if low != start or high > end:
                raise BadInput(f"{entry.path!r}: the range {start} to {end} does not begin and end at chunk borders")
            yield low, high
            start = high

    def _holders(self, replica: ReplicaSnapshot) -> list[IslandId]:
        me = self._trust.me
        return [i for i in self._catalog.holders(replica.owner, replica.name, replica.snapshot) if i != me]

    async def _is_elsewhere(self, replica: ReplicaSnapshot) -> bool:
        """Whether a replica can be fetched again after its eviction.

        True for a partial replica, which is only a cache. A complete replica must have another
        holder than its owner, or be the newest snapshot of its owner.
        """
        others = [island for island in self._holders(replica) if island != replica.owner]
        if others or not replica.complete:
            return True
        try:
            newest = await self._catalog.resolve(DatasetName(replica.owner, replica.name))
        except IslandError:
            return False
        return newest.snapshot == replica.snapshot

    # --- replica records ----------------------------------------------------------------------

    def _record(self, owner: IslandId, name: str) -> ReplicaRecord | None:
        """The record of this island's replicas of one dataset: complete ones, and those being fetched; None if none."""
        rows = sorted(
            (replica for replica in self.held.snapshots.values() if (replica.owner, replica.name) == (owner, name)),
            key=lambda replica: (not replica.complete, -replica.used_at),
        )
        holdings = [
            SnapshotHolding(
                snapshot=replica.snapshot, state="complete" if replica.complete else "begun", size=replica.bytes
            )
            for replica in rows
            if replica.complete or (replica.owner, replica.name, replica.snapshot) in self._fetching
        ]
        return ReplicaRecord(held=tuple(holdings[:16])) if holdings else None

    async def _announce(self, replica: ReplicaSnapshot) -> None:
        self._unannounced[replica.owner, replica.name] = None
        await self._publish_record(replica.owner, replica.name)

    async def _publish_record(self, owner: IslandId, name: str) -> None:
        key, record = record_key(owner, name), self._record(owner, name)

        def published(_: None) -> None:
            self._unannounced.pop((owner, name), None)
            self._gossip.publish_soon()

        if record:
            data = codec.encode(record)
            await self._state.write(lambda conn: self._gossip.put(conn, key, data), then=published)
        else:
            await self._state.write(lambda conn: self._gossip.delete(conn, key), then=published)

    async def _reconcile_records(self) -> None:
        """Publish records that differ from the chunk store, after a crash or a restore of one of the databases."""
        published = await self._state.read(lambda conn: self._gossip.own(conn, "replica/"))
        names = {(replica.owner, replica.name) for replica in self.held.snapshots.values()}
        wanted = {record_key(*name): codec.encode(record) for name in names if (record := self._record(*name))}
        changes = {
            key: wanted.get(key) for key in published.keys() | wanted.keys() if published.get(key) != wanted.get(key)
        }
        if not changes:
            return

        def write(conn: sqlite3.Connection) -> None:
            for key, data in sorted(changes.items()):
                if data is None:
                    self._gossip.delete(conn, key)
                else:
                    self._gossip.put(conn, key, data)

        await self._state.write(write)
        self._gossip.publish_soon()

    async def _on_dropped(self, replica: ReplicaSnapshot) -> None:
        self._manifests.forget(replica.key)
        await self.held.run(lambda: self._views.drop(replica.snapshot))
        self.space.other_bytes = await self.held.run(self._views.converted_bytes)
        await self._announce(replica)

    # --- loops --------------------------------------------------------------------------------

    async def _flush(self) -> None:
        if self._stopping.is_set():
            await asyncio.Event().wait()
        await self._write_back()

    async def _write_back(self) -> None:
        await self.held.flush()
        await self._manifests.keep_all()
        for owner, name in list(self._unannounced):
            await self._publish_record(owner, name)
        faults, self._faults = self._faults, []
        if faults:
            now = self._clock.wall()

            def write(conn: sqlite3.Connection) -> None:
                for holder, what in faults:
                    store.add_fault(conn, holder, what, now)

            try:
                await self._db.write(write)
            except Exception:
                self._faults = faults + self._faults
                raise

    def _note_fault(self, holder: IslandId, what: str) -> None:
        self._faults.append((holder, what[:500]))


def _without_record(replica: ReplicaSnapshot, owner_name: str) -> ResolvedDataset:
    """The dataset of a replica, for a dataset without a record in the catalog. Only the size in it is meaningful."""
    record = DatasetRecord(
        format="parquet",
        rows=0,
        size=replica.bytes,
        files=0,
        snapshot=replica.snapshot,
        created=0.0,
        updated=0.0,
        card="0" * 64,
    )
    return ResolvedDataset(replica.owner, owner_name, replica.name, replica.snapshot, record)


def record_key(owner: IslandId, name: str) -> str:
    """The gossip key of this island's replica record of a dataset."""
    return f"replica/{owner}/{name}"
