"""The catalog: the datasets of all islands, and publishing those of this one.

Datasets of this island are rows in state.db; their records are added to its log in the same
transaction. Records of all islands arrive as projections in gossip.db. Their cards are fetched
in the background, so that search works while an owner is down.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from island.catalog import core, manifest, store
from island.catalog.dataset_search import DatasetSearch
from island.catalog.file_listing import FoundFile, is_same
from island.catalog.manifest import FileEntry
from island.catalog.manifest_reader import ManifestReader, PageLoader, live_pages
from island.catalog.messages import (
    Card,
    DatasetRecord,
    DatasetView,
    LocalIndex,
    LocalPage,
    ReplicaRecord,
    ResolvedDataset,
    SearchQuery,
)
from island.catalog.pages import PageStore
from island.catalog.ports import Progress, ReplicaStatus, Replication, no_progress
from island.catalog.publishing import DatasetMetadata, PreparedSnapshot, PreviousSnapshot, SnapshotBuilder
from island.catalog.store import CatalogEntry, ReplicaEntry
from island.errors import Corrupt, FilesChanged, IslandError, NotFound
from island.formats.limits import DEFAULT_LIMITS, ReadLimits
from island.gossip.service import Change, Gossip
from island.kernel import codec
from island.kernel.codec import Malformed
from island.kernel.db import Database
from island.kernel.ids import DatasetName, IslandId, check_hash, check_name, is_name, parse_island_id
from island.kernel.loops import Tasks, backoff
from island.kernel.ports import Clock, Rng, Signal, Topic
from island.kernel.stranger_log import StrangerLog
from island.kernel.telemetry import counter, gauge
from island.kernel.work import Workers
from island.membership.service import Membership
from island.trust import journal
from island.trust.core import decode_chain
from island.trust.messages import Genesis
from island.trust.service import Trust

log = structlog.get_logger("island")

DATASETS = gauge("catalog_datasets", "Known datasets of all islands")
CARDS = counter("catalog_cards_fetched", "Descriptions of datasets fetched from other islands")
PUBLISHED = counter("catalog_snapshots_published", "Snapshots that this island published")

CARD_FETCHES = 4
CARD_BATCH = 1000
CARD_PAUSE = 5.0
INDEX_PAUSE = 5.0
"""Seconds for which changes are collected before they are indexed, unless a search needs the index."""
SWEEP_PAUSE = 30.0
"""Seconds after a change before unused pages are deleted."""


@dataclass(frozen=True, slots=True)
class OwnFile:
    """A published file of this island at its original path below `base`, unchanged since it was published."""

    base: str
    path: Path
    size: int
    mtime_ns: int
    entry: FileEntry

    def check(self, status: os.stat_result) -> None:
        """Raise `FilesChanged` if `status`, of the opened file, differs from that of the published file."""
        if not is_same(FoundFile(self.entry.path, self.size, self.mtime_ns, 0), status):
            raise changed(self.path)


@dataclass(frozen=True, slots=True)
class SnapshotHolder:
    """An island that has a snapshot or a part of it. `role` is `owner` or the state of the replica.

    `state` is the local state of the island, and `since` the wall time of its last change.
    """

    island: IslandId
    display: str
    role: str
    state: str
    since: float | None


@dataclass(frozen=True, slots=True)
class DatasetDetails:
    """Everything that is known about a dataset. `card` is None if it could not be fetched; `problem` has the reason."""

    resolved: ResolvedDataset
    card: Card | None
    holders: tuple[SnapshotHolder, ...]
    status: ReplicaStatus
    newest: bool
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogDependencies:
    """Services and settings that `Catalog` needs."""

    state: Database
    db: Database
    gossip: Gossip
    membership: Membership
    trust: Trust
    clock: Clock
    rng: Rng
    home: Path
    workers: Workers
    limits: ReadLimits = DEFAULT_LIMITS


class Catalog:
    """Publishes, lists, searches and resolves datasets, and reads their manifests."""

    def __init__(self, needs: CatalogDependencies) -> None:
        self._state, self._db, self._gossip = needs.state, needs.db, needs.gossip
        self._membership, self._trust, self._clock, self._rng = needs.membership, needs.trust, needs.clock, needs.rng
        self.me: IslandId = needs.trust.me
        self.changed = Topic()
        """Touched when a dataset, a replica or a card changes."""
        self.replication: Replication | None = None
        """Provides the status of replicas for `show`. The daemon sets it."""
        self._pages = PageStore(needs.state, needs.home / "manifests", needs.workers)
        self._publisher = SnapshotBuilder(self._pages, needs.home, needs.rng, needs.workers, needs.limits)
        self._workers = needs.workers
        self._searching = DatasetSearch(needs.db, needs.membership, needs.home / "search", needs.workers)
        self._names: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._open: weakref.WeakSet[PreparedSnapshot] = weakref.WeakSet()
        self._preparing = 0
        self._manifests: OrderedDict[tuple[IslandId, str], ManifestReader] = OrderedDict()
        self._locals: OrderedDict[tuple[str, str], list[OwnFile]] = OrderedDict()
        self._replicas: dict[tuple[IslandId, str, str], list[ReplicaEntry]] = {}
        self._versions = (-1, -1)
        self._card_cursor = ""
        self._lines = StrangerLog("owner")
        self._retry: dict[str, tuple[int, float]] = {}
        self._cards_wanted, self._index_wanted, self._sweep_wanted = Signal(), Signal(), Signal()
        needs.gossip.project("dataset", _project_dataset)
        needs.gossip.project("replica", _project_replica)
        needs.gossip.derive("dataset/", store.own_records)
        needs.gossip.blobs.add_source(self._pages.get)

    async def start(self, tasks: Tasks) -> None:
        """Delete unfinished packs, load replicas, open the index, and begin to fetch cards."""
        await self._pages.clear()
        await self._refresh()
        await self._searching.start()
        for signal in (self._cards_wanted, self._index_wanted, self._sweep_wanted):
            signal.set()
        for name, step in (
            ("catalog.follow", self._follow),
            ("catalog.cards", self._fetch_cards),
            ("catalog.index", self._index_step),
            ("catalog.sweep", self._sweep_step),
            ("catalog.retry", self._retry_soon),
        ):
            tasks.forever(name, step, rng=self._rng)

    # --- publishing -----------------------------------------------------------------------------

    async def publish(
        self,
        who: str,
        path: Path,
        name: str,
        *,
        title: str = "",
        description: str = "",
        licence: str = "",
        ra: str | None = None,
        dec: str | None = None,
        progress: Progress | None = None,
    ) -> DatasetView:
        """Publish the files at `path` in place as dataset `name`. Changed content makes a new snapshot.

        `who` is `user@island`. Raises `BadInput`, `Corrupt`, `Unsupported`, `FilesChanged`, `Full`. If
        the caller is cancelled before the commit, nothing is published.
        """
        async with self._lock(name):
            prepared = await self.prepare(
                path,
                name,
                title=title,
                description=description,
                licence=licence,
                ra=ra,
                dec=dec,
                progress=progress,
            )
            now = self._clock.wall()
            await self._state.write(lambda conn: self.commit(conn, prepared, who, now), then=lambda _: self.committed())
            await self._gossip.flush()
            # Store the card now, so that a search finds its words at once, before the loop fetches it.
            await self._db.write(lambda conn: store.put_card(conn, manifest.blob_hash(prepared.card), prepared.card))
        own = await self._state.read(lambda conn: store.own_dataset(conn, name))
        if own is None:
            raise NotFound(f"{name} was withdrawn in the meantime")
        return self._view(CatalogEntry(self.me, name, own.record))

    async def prepare(
        self,
        path: Path,
        name: str,
        *,
        title: str = "",
        description: str = "",
        licence: str = "",
        ra: str | None = None,
        dec: str | None = None,
        progress: Progress | None = None,
    ) -> PreparedSnapshot:
        """Read new files at `path` and build the manifest of a snapshot. Nothing is published before `commit`.

        Raises as `publish` does.
        """
        check_name(name, "dataset name")
        words = DatasetMetadata(title, description, licence, ra or "", dec or "")
        self._preparing += 1
        try:
            previous = await self._previous(name)
            prepared = await self._publisher.prepare(path, name, words, previous, progress or no_progress)
            self._open.add(prepared)
            return prepared
        finally:
            self._preparing -= 1

    def commit(
        self, conn: sqlite3.Connection, prepared: PreparedSnapshot, who: str, now: float, *, journaled: bool = True
    ) -> str:
        """Make a prepared snapshot the newest of its dataset, in the caller's transaction of state.db.

        Returns the snapshot. Call `committed` after the commit (`then` of `Database.write`).
        """
        self._pages.insert(conn, prepared.pack)
        before = store.own_dataset(conn, prepared.name)
        card = self._gossip.blobs.put(conn, prepared.card)
        record = msgspec.structs.replace(
            prepared.record, card=card, created=before.created if before else now, updated=now
        )
        if before is not None and msgspec.structs.replace(before.record, updated=now) == record:
            record = before.record
        for old in store.snapshots(conn, prepared.name):
            if old.snapshot == prepared.snapshot:
                self._drop_snapshot(conn, old)
        store.add_snapshot(conn, record, name=prepared.name, base=prepared.base, local=prepared.local, published=now)
        for old in store.snapshots(conn, prepared.name)[core.KEEP_SNAPSHOTS :]:
            self._drop_snapshot(conn, old)
        words = prepared.words
        store.put_own(
            conn,
            store.OwnDataset(
                name=prepared.name,
                path=prepared.path,
                snapshot=prepared.snapshot,
                title=words.title,
                description=words.description,
                licence=words.licence,
                ra=words.ra,
                dec=words.dec,
                created=record.created,
                updated=record.updated,
                who=who,
                record=record,
            ),
        )
        self._gossip.put(conn, f"dataset/{prepared.name}", codec.encode(record))
        if journaled:
            detail = {"snapshot": prepared.snapshot, "rows": record.rows, "bytes": record.size, "path": prepared.path}
            self._journal(conn, who, "dataset.publish", prepared.name, detail, now)
        return prepared.snapshot

    def committed(self) -> None:
        """Spread a committed snapshot, and schedule the deletion of unused pages."""
        self._locals.clear()
        PUBLISHED.inc()
        self._gossip.publish_soon()
        self._sweep_wanted.set()

    async def unpublish(self, who: str, name: str) -> None:
        """Withdraw a dataset of this island with all its snapshots. Raises `NotFound`."""
        check_name(name, "dataset name")

        def withdraw(conn: sqlite3.Connection) -> None:
            if store.own_dataset(conn, name) is None:
                near = core.close_matches(name, [own.name for own in store.own_datasets(conn)])
                raise NotFound(
                    f"this island does not publish a dataset named {name}",
                    hint=f"Did you mean {' or '.join(near)}?" if near else "`island dataset ls` shows all.",
                )
            for old in store.snapshots(conn, name):
                self._drop_snapshot(conn, old)
            store.drop_own(conn, name)
            self._gossip.delete(conn, f"dataset/{name}")
            self._journal(conn, who, "dataset.unpublish", name, {}, self._clock.wall())

        async with self._lock(name):
            await self._state.write(withdraw, then=lambda _: self._withdrawn())
            await self._gossip.flush()

    def _withdrawn(self) -> None:
        self._locals.clear()
        self._manifests.clear()
        self._gossip.publish_soon()
        self._sweep_wanted.set()

    def who(self, user: str) -> str:
        """Return `user@island`, the form used in the journal."""
        return self._trust.who(user)

    def audience(self) -> str:
        """A sentence that says who can see the datasets of this island."""
        if self._trust.chain is None:
            return "public: no other island yet; every island that joins the archipelago can see and read it"
        genesis = codec.decode(decode_chain(self._trust.chain).genesis, Genesis)
        label = "".join(char for char in genesis.label if char.isprintable())
        count = len(self._membership.views())
        islands = "1 island" if count == 1 else f"{count} islands"
        return f"public: every island of the archipelago '{label}' ({islands} now) can see and read it"

    def _drop_snapshot(self, conn: sqlite3.Connection, old: store.OwnSnapshot) -> None:
        self._gossip.blobs.drop(conn, old.card)
        store.drop_snapshot(conn, old.id)

    def _lock(self, name: str) -> asyncio.Lock:
        return self._names.setdefault(name, asyncio.Lock())

    def _journal(
        self, conn: sqlite3.Connection, who: str, act: str, name: str, detail: dict[str, object], now: float
    ) -> None:
        what = f"{self._trust.name}/{name}"
        journal.append(conn, at=now, who=who, act=act, what=what, outcome="done", detail=detail)

    async def _previous(self, name: str) -> PreviousSnapshot | None:
        """The newest snapshot of a dataset; None if there is none or it cannot be read (then all files are read)."""
        own = await self._state.read(lambda conn: store.own_dataset(conn, name))
        held = await self._state.read(lambda conn: store.snapshots(conn, name))
        if own is None or not held:
            return None
        newest = held[0]
        try:
            listed = await self.manifest(self.me, newest.snapshot)
            local = codec.decode(await listed.load(newest.local), LocalIndex)
            card = core.read_card(await self._gossip.blobs.get(newest.card))
        except IslandError as error:
            log.warning("catalog.previous_lost", name=name, snapshot=newest.snapshot, error=error.message)
            return None
        words = DatasetMetadata(own.title, own.description, own.licence, own.ra, own.dec)
        return PreviousSnapshot(own.path, listed, newest.record, card, newest.local, local.pages, words)

    # --- reading ----------------------------------------------------------------------------------

    async def datasets(self) -> list[DatasetView]:
        """All datasets of all islands, sorted by the displayed name of the island and by name."""
        found = await self._db.read(store.entries)
        return sorted((self._view(entry) for entry in found), key=lambda view: (view.island.lower(), view.name))

    async def resolve(self, name: DatasetName | str) -> ResolvedDataset:
        """Resolve `OWNER/NAME[@SNAPSHOT]` to an owner and a snapshot.

        Raises `NotFound` with close matches, `Ambiguous`, `BadInput`.
        """
        wanted = DatasetName.parse(name) if isinstance(name, str) else name
        owner = self._membership.resolve(wanted.owner)
        entry = await self._entry(owner, wanted.name)
        if entry is None:
            raise await self._unknown(owner, wanted)
        snapshot = entry.record.snapshot
        record = entry.record
        if wanted.snapshot and not snapshot.startswith(wanted.snapshot):
            snapshot, record = await self._older(owner, wanted, record)
        return ResolvedDataset(owner, self._membership.display(owner), wanted.name, snapshot, record)

    async def _entry(self, owner: IslandId, name: str) -> CatalogEntry | None:
        if owner == self.me:
            own = await self._state.read(lambda conn: store.own_dataset(conn, name))
            return CatalogEntry(owner, name, own.record) if own else None
        return await self._db.read(lambda conn: store.entry(conn, owner, name))

    async def _unknown(self, owner: IslandId, wanted: DatasetName) -> NotFound:
        everything = await self._db.read(store.names)
        display = self._membership.display(owner)
        same = [f"{self._membership.display(other)}/{name}" for other, name in everything if name == wanted.name]
        near = core.close_matches(wanted.name, [name for other, name in everything if other == owner])
        meant = [*same[:3], *(f"{display}/{name}" for name in near)][:3]
        return NotFound(
            f"there is no dataset {display}/{wanted.name}",
            hint=f"Did you mean {' or '.join(meant)}?" if meant else "`island dataset ls` shows all.",
        )

    async def _older(self, owner: IslandId, wanted: DatasetName, newest: DatasetRecord) -> tuple[str, DatasetRecord]:
        """(snapshot, record) of a snapshot that is not the newest."""
        if owner == self.me:
            held = await self._state.read(lambda conn: store.snapshots(conn, wanted.name))
            for old in held:
                if old.snapshot.startswith(wanted.snapshot):
                    return old.snapshot, old.record
        replicas = {s for (o, n, s) in self._replicas if (o, n) == (owner, wanted.name)}
        fitting = sorted(s for s in replicas if s.startswith(wanted.snapshot))
        if len(fitting) == 1:
            return fitting[0], newest
        if owner != self.me and len(wanted.snapshot) == 64:
            return wanted.snapshot, newest  # the owner may still serve it; reading its manifest will show
        raise NotFound(
            f"this island knows no snapshot {wanted.snapshot} of {self._membership.display(owner)}/{wanted.name}",
            hint=f"The newest is {newest.snapshot[:12]}. For older snapshots of other islands, give the complete hash.",
        )

    async def card(self, resolved: ResolvedDataset) -> Card:
        """The card of a dataset: local, or fetched from another island. Raises `Unreachable`, `Malformed`."""
        name = resolved.record.card
        kept = await self._db.read(lambda conn: store.card(conn, name))
        if kept is None:
            holders = self.holders(resolved.owner, resolved.name, resolved.record.snapshot)
            kept = await self._gossip.blobs.get(name, holders)
        return core.read_card(kept)

    async def show(self, name: DatasetName | str) -> DatasetDetails:
        """Everything that is known about a dataset. Raises as `resolve` does; a missing card is not an error."""
        resolved = await self.resolve(name)
        entry = await self._entry(resolved.owner, resolved.name)
        newest = entry is not None and entry.record.snapshot == resolved.snapshot
        card, problem = None, ""
        if not resolved.newest:
            problem = "this is an older snapshot of another island; the details are those of the newest snapshot"
        try:
            card = await self.card(resolved)
        except IslandError as error:
            problem = error.message
        return DatasetDetails(
            resolved, card, tuple(self._shown_holders(resolved)), await self._status(resolved), newest, problem
        )

    async def _status(self, resolved: ResolvedDataset) -> ReplicaStatus:
        if self.replication is not None:
            return await self.replication.status(resolved)
        return ReplicaStatus(resolved.record.size, resolved.record.size if resolved.owner == self.me else 0, 0)

    def _shown_holders(self, resolved: ResolvedDataset) -> list[SnapshotHolder]:
        key = (resolved.owner, resolved.name, resolved.snapshot)
        roles = [(resolved.owner, "owner")] + [(r.holder, r.state) for r in self._replicas.get(key, ())]
        shown = []
        for island, role in roles:
            if role == "gone":
                continue
            try:
                view = self._membership.view(island)
                shown.append(SnapshotHolder(island, view.display, role, view.state, view.since))
            except NotFound:  # its record `island/self` has not arrived yet
                shown.append(SnapshotHolder(island, self._membership.display(island), role, "unknown", None))
        return shown

    def holders(self, owner: IslandId, name: str, snapshot: str) -> list[IslandId]:
        """The islands that have a complete snapshot: its owner, then the islands with a complete replica."""
        complete = [r.holder for r in self._replicas.get((owner, name, snapshot), ()) if r.state == "complete"]
        return [owner, *(island for island in complete if island != owner)]

    def _view(self, entry: CatalogEntry) -> DatasetView:
        record = entry.record
        return DatasetView(
            owner=entry.owner,
            island=self._membership.display(entry.owner),
            name=entry.name,
            title=record.title,
            format=record.format,
            rows=record.rows,
            bytes=record.size,
            files=record.files,
            snapshot=record.snapshot,
            created=record.created,
            updated=record.updated,
            record=record,
        )

    # --- searching --------------------------------------------------------------------------------

    async def search(self, query: SearchQuery) -> list[DatasetView]:
        """Return the datasets that meet all conditions of the query, best matches first. Raises `BadInput`.

        Changes that are not indexed yet are indexed first, so that all known datasets are found.
        """
        return [self._view(entry) for entry in await self._searching.search(query)]

    async def index(self) -> int:
        """Index all changes that are not indexed yet; returns their number."""
        return await self._searching.index()

    # --- manifests and files ------------------------------------------------------------------------

    async def manifest(
        self, owner: IslandId, snapshot: str, name: str = "", *, load: PageLoader | None = None
    ) -> ManifestReader:
        """Open the manifest of a snapshot.

        `name` of the dataset, if given, allows fetching pages from holders of replicas. `load`, if given,
        loads the pages. Raises `NotFound` for a snapshot of this island that is no longer served,
        `Unreachable`, `Malformed`.
        """
        check_hash(snapshot, "snapshot")
        if load is not None:
            return ManifestReader(owner, snapshot, manifest.decode_root(await load(snapshot)), load)
        key = (owner, snapshot)
        if (known := self._manifests.get(key)) is not None:
            self._manifests.move_to_end(key)
            return known
        if owner == self.me and not await self._state.read(lambda conn: store.with_hash(conn, snapshot)):
            raise NotFound(
                f"this island no longer serves the snapshot {snapshot[:12]}", hint="Use the newest snapshot."
            )

        async def load_page(page: str) -> bytes:
            return await self.page(owner, name, snapshot, page)

        found = ManifestReader(owner, snapshot, manifest.decode_root(await load_page(snapshot)), load_page)
        self._manifests[key] = found
        if len(self._manifests) > 32:
            self._manifests.popitem(last=False)
        return found

    async def page(self, owner: IslandId, name: str, snapshot: str, page: str) -> bytes:
        """Return a verified page of a manifest, for other islands' datasets from holders of the snapshot first.

        Raises `Corrupt` for a lost page of this island, `Unreachable`.
        """
        if owner == self.me:
            return await self._load_own(page)
        return await self._gossip.blobs.get(page, self.holders(owner, name, snapshot))

    async def _load_own(self, page: str) -> bytes:
        data = await self._pages.get(page)
        if data is None:
            raise Corrupt(
                f"page {page[:12]} of a manifest of this island is lost or damaged",
                hint="Publish the dataset again; all its files will be read.",
            )
        return data

    async def own_file(self, snapshot: str, path: str) -> OwnFile | None:
        """Locate a published file of this island; None if this island does not publish the snapshot.

        Raises `FilesChanged` if the file changed since it was published, `NotFound` if the snapshot has no such file.
        """
        places = self._locals.get((snapshot, path))
        if places is None:
            places = await self._places(snapshot, path)
            self._locals[snapshot, path] = places
            if len(self._locals) > 4096:
                self._locals.popitem(last=False)
        if not places:
            return None
        for place in places:
            try:
                status = await self._workers.folder(place.base, place.path.stat)
            except OSError:
                continue
            if is_same(FoundFile(path, place.size, place.mtime_ns, 0), status):
                return place
        raise changed(places[0].path)

    async def _places(self, snapshot: str, path: str) -> list[OwnFile]:
        places = []
        for held in await self._state.read(lambda conn: store.with_hash(conn, snapshot)):
            listed = await self.manifest(self.me, snapshot)
            ref, entries, at = await listed.locate(path)
            index = codec.decode(await listed.load(held.local), LocalIndex)
            local = codec.decode(await listed.load(index.pages[ref.page.hex()]), LocalPage)
            entry = entries[at]
            places.append(OwnFile(held.base, Path(held.base) / path, entry.size, local.files[at][0], entry))
        return places

    # --- loops --------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        version = self._gossip.changed.version
        await self._refresh()
        await self._gossip.changed.after(version)

    async def _refresh(self) -> None:
        """Read the projections if they changed."""
        versions = await self._db.read(store.versions)
        if versions == self._versions:
            return
        if versions[1] != self._versions[1]:
            self._replicas = _by_snapshot(await self._db.read(store.replicas))
        if versions[0] != self._versions[0]:
            DATASETS.set(await self._db.read(store.count_entries))
            self._cards_wanted.set()
            self._index_wanted.set()
        self._versions = versions
        self.changed.touch()

    async def _retry_soon(self) -> None:
        """Fetch missing cards again when the membership changes: an island that came up may have them."""
        await self._membership.changed.after(self._membership.changed.version)
        if self._retry:
            self._retry.clear()
            self._cards_wanted.set()

    async def _fetch_cards(self) -> None:
        """Try to fetch each missing card that is due, in the order of hashes, one batch per step."""
        if not self._card_cursor:
            times = [at for _, at in self._retry.values()]
            await self._cards_wanted.wait(max(CARD_PAUSE, min(times) - self._clock.monotonic()) if times else None)
        with self._cards_wanted.kept():
            await self._fetch_due_cards()

    async def _fetch_due_cards(self) -> None:
        after = self._card_cursor
        missing = await self._db.read(lambda conn: store.missing_cards(conn, after, CARD_BATCH))
        now = self._clock.monotonic()
        due = [card for card in missing if self._retry.get(card[0], (0, now))[1] <= now]
        for at in range(0, len(due), CARD_FETCHES):
            await asyncio.gather(*(self._fetch_card(*card) for card in due[at : at + CARD_FETCHES]))
        self._card_cursor = missing[-1][0] if len(missing) == CARD_BATCH else ""
        if not missing and not after:
            self._retry.clear()  # no card is missing any more

    async def _fetch_card(self, name: str, owners: list[IslandId]) -> None:
        try:
            data: bytes | None = await self._gossip.blobs.get(name, owners)
        except IslandError as error:
            failures = self._retry.get(name, (0, 0.0))[0] + 1
            wait = backoff(failures, self._rng, base=5.0, cap=300.0)
            self._retry[name] = (failures, self._clock.monotonic() + wait)
            self._lines.info("catalog.card_missing", owners[0], card=name, error=error.message)
            return
        try:
            core.read_card(data or b"")
        except Malformed as error:
            self._lines.warning("catalog.bad_card", owners[0], card=name, error=error.message)
            data = None
        self._retry.pop(name, None)
        await self._db.write(lambda conn: store.put_card(conn, name, data))
        CARDS.inc()
        await self._refresh()

    async def _index_step(self) -> None:
        await self._index_wanted.wait()
        with self._index_wanted.kept():
            await asyncio.sleep(INDEX_PAUSE)
            await self.index()

    async def _sweep_step(self) -> None:
        await self._sweep_wanted.wait()
        with self._sweep_wanted.kept():
            await asyncio.sleep(SWEEP_PAUSE)
            if self._preparing or len(self._open):
                self._sweep_wanted.set()
                return
            await self.sweep()

    async def sweep(self) -> int:
        """Delete pages and packs to which no served snapshot refers; returns the number of deleted pages."""
        if self._preparing or len(self._open):
            return 0
        newest = await self._state.read(store.newest_id)
        live: set[str] = set()
        for held in await self._state.read(store.all_snapshots):
            try:
                listed = await self.manifest(self.me, held.snapshot)
                await live_pages(listed, live, held.local)
                live.update(codec.decode(await listed.load(held.local), LocalIndex).pages.values())
            except IslandError as error:
                # Delete nothing if a manifest cannot be read: its pages may still be in use.
                log.warning("catalog.sweep_stopped", snapshot=held.snapshot, error=error.message)
                return 0
        return await self._pages.sweep(live, lambda conn: store.newest_id(conn) == newest)


def _by_snapshot(replicas: Sequence[ReplicaEntry]) -> dict[tuple[IslandId, str, str], list[ReplicaEntry]]:
    found: dict[tuple[IslandId, str, str], list[ReplicaEntry]] = {}
    for replica in replicas:
        found.setdefault((replica.owner, replica.name, replica.snapshot), []).append(replica)
    return found


def changed(path: Path) -> FilesChanged:
    """The error for a file that changed since it was published."""
    return FilesChanged(
        f"{path} was changed, moved or removed since it was published",
        hint="Publish the dataset again. The owner's journal shows when it was published.",
    )


# --- projections: run in the writer's thread, in the transaction of the change ------------------


def _project_dataset(conn: sqlite3.Connection, change: Change) -> str | None:
    name = change.key.removeprefix("dataset/")
    record, problem = None, None
    if change.value is not None:
        try:
            record = codec.decode(change.value, DatasetRecord)
            if record.coverage:
                core.unpack_coverage(record.coverage)
        except Malformed as error:
            record, problem = None, error.message
    if record is None or record.visibility != "public" or not is_name(name):
        store.drop_entry(conn, change.origin, name)
    else:
        store.put_entry(conn, change.origin, name, record)
    return problem


def _project_replica(conn: sqlite3.Connection, change: Change) -> str | None:
    owner, _, name = change.key.removeprefix("replica/").partition("/")
    try:
        parse_island_id(owner)
        check_name(name)
        record = codec.decode(change.value, ReplicaRecord) if change.value else None
    except IslandError as error:
        return error.message
    store.put_replica(conn, change.origin, owner, name, record)
    return None


__all__ = ["Catalog", "DatasetDetails", "OwnFile", "SnapshotHolder"]
