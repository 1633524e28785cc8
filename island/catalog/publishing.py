"""Prepares a snapshot from a path: describes and hashes the files, and writes the pages of the manifest.

Files that are already published in the same dataset, with the same size, modification time and
inode, are neither decoded nor hashed again. `Catalog.commit` publishes a prepared snapshot in one
transaction. A snapshot that is not committed leaves only a pack without pages in the index, which
is deleted later.
"""

from __future__ import annotations

import asyncio
import datetime
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import msgspec

import island
from island.catalog import core, file_listing
from island.catalog.file_listing import FileListing, FoundFile
from island.catalog.manifest import FileEntry, FileStats, Root, TreeBuilder
from island.catalog.manifest_reader import ManifestReader
from island.catalog.messages import Card, CardColumn, DatasetRecord, LocalIndex, LocalPage
from island.catalog.pages import Pack, PackWriter, PageStore
from island.catalog.ports import Progress
from island.errors import BadInput
from island.formats.describe import DataFile, DatasetDescription, describe, describe_in_steps
from island.formats.limits import ReadLimits
from island.kernel import codec
from island.kernel.ports import Rng
from island.kernel.processes import ProcessDied, Processes
from island.kernel.work import Workers, ended, to_the_end

T = TypeVar("T")

MAX_RANGES = 32
_EXACT = 2**53
_NO_HASH = "0" * 64


@dataclass(frozen=True, slots=True)
class DatasetMetadata:
    """Metadata of a dataset given by its publisher. Empty fields keep their previous values."""

    title: str = ""
    description: str = ""
    licence: str = ""
    ra: str = ""
    dec: str = ""


@dataclass(frozen=True, slots=True)
class PreviousSnapshot:
    """The newest snapshot of the same dataset, with the attributes of its files in the file system."""

    path: str
    manifest: ManifestReader
    record: DatasetRecord
    card: Card
    local: str
    local_pages: dict[str, str]
    words: DatasetMetadata


@dataclass(eq=False, slots=True, weakref_slot=True)
class PreparedSnapshot:
    """A snapshot that is ready to be committed. The commit sets the times and the card's hash in the record."""

    name: str
    path: str
    base: str
    snapshot: str
    root: Root
    words: DatasetMetadata
    record: DatasetRecord = field(repr=False)
    card: bytes = field(repr=False)
    local: str
    pack: Pack = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Facts:
    """Properties of the dataset as a whole."""

    format: str
    columns: tuple[CardColumn, ...]
    hidden: int = 0
    coverage: bytes = b""
    moc: str = ""
    time: tuple[float, float] | None = None
    position: tuple[str, ...] = ()
    time_column: str = ""
    details: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()


class SnapshotBuilder:
    """Prepares snapshots of one island."""

    def __init__(self, pages: PageStore, home: Path, rng: Rng, workers: Workers, limits: ReadLimits) -> None:
        self._limits = limits
        self._pages = pages
        self._home = home
        self._rng = rng
        self._workers = workers

    async def prepare(
        self, path: Path, name: str, words: DatasetMetadata, previous: PreviousSnapshot | None, progress: Progress
    ) -> PreparedSnapshot:
        """Read new files at `path` and write the manifest.

        Raises as `file_listing.survey` and `formats.describe` do, `FilesChanged`, `Full`.
        """
        listing = await to_the_end(self._workers.folder(str(path), file_listing.survey, path, self._home))
        # Files that this island wrote are trusted, so decode them in this process: datasets of subscriptions
        # get a new file at every commit, and starting or awaiting a child process each time would be slow.
        own = path.is_relative_to(self._home / "streams")
        processes = None if own else self._workers.publishing
        words = _merged_words(words, previous)
        usable = previous if previous is not None and _is_comparable(previous, listing, words) else None
        known = await _known_pages(usable) if usable else set[str]()
        writer = self._pages.writer(self._rng.bytes(16).hex(), known)
        try:
            return await _Preparation(
                listing, name, words, usable, writer, progress, self._workers, processes, self._limits
            ).run()
        except BaseException:
            writer.abandon()
            raise


class _Preparation:
    """One run of `prepare`."""

    def __init__(
        self,
        listing: FileListing,
        name: str,
        words: DatasetMetadata,
        previous: PreviousSnapshot | None,
        writer: PackWriter,
        progress: Progress,
        workers: Workers,
        processes: Processes | None,
        limits: ReadLimits,
    ) -> None:
        self.processes, self.limits = processes, limits
        self.listing = listing
        self.name = name
        self.words = words
        self.previous = previous
        self.writer = writer
        self.progress = progress
        self.workers = workers
        self._folder = str(listing.base)
        self.fresh: dict[str, FoundFile] = {}
        self.gone = 0
        self.described: dict[str, DataFile] = {}
        self.done = 0
        self.total = 0
        self.found: dict[str, FoundFile] = {}
        self.local_pages: dict[str, str] = {}

    async def run(self) -> PreparedSnapshot:
        await self._compare()
        # Each new byte is read twice: to decode and to hash it.
        self.total = 2 * sum(found.size for found in self.fresh.values())
        facts = await self._describe()
        builder = TreeBuilder(facts.format, self.writer.add, core.join_coverages, self._page_closed)
        async for found, entry, stats in self._matched():
            if entry is None or stats is None:
                entry, stats = await self._hash(found)
            self.found[found.path] = found
            builder.add(entry, stats)
        snapshot, root = builder.finish()
        local = self.writer.add(codec.encode(LocalIndex(pages=self.local_pages)))
        card = self._card(facts, snapshot, root)
        pack = await to_the_end(self.workers.disk(self.writer.finish))
        return PreparedSnapshot(
            name=self.name,
            path=str(self.listing.path),
            base=str(self.listing.base),
            snapshot=snapshot,
            root=root,
            words=self.words,
            record=self._record(facts, snapshot, root),
            card=card,
            local=local,
            pack=pack,
        )

    # --- what is new ---

    async def _compare(self) -> None:
        async for found, entry, _ in self._matched():
            if entry is None:
                self.fresh[found.path] = found
        if self.previous is not None:
            self.gone = self.previous.manifest.root.files - (len(self.listing.files) - len(self.fresh))

    async def _matched(self) -> AsyncIterator[tuple[FoundFile, FileEntry | None, FileStats | None]]:
        """Yield all found files, with entry and statistics if the same file is in the previous snapshot."""
        old = _published(self.previous) if self.previous is not None else _nothing()
        ahead = await anext(old, None)
        for count, found in enumerate(self.listing.files):
            if count % 256 == 255:
                await asyncio.sleep(0)
            while ahead is not None and ahead[0].path < found.path:
                ahead = await anext(old, None)
            if ahead is not None and _is_same(ahead, found):
                yield found, ahead[0], ahead[1]
            else:
                yield found, None, None

    # --- describing ---

    async def _describe(self) -> _Facts:
        previous = self.previous
        if previous is None or (self.listing.is_hats and (self.fresh or self.gone)) or not self._any_kept():
            facts = _facts(await self._decode(self.listing.real))
        elif not self.fresh and not self.gone:
            facts = _known_facts(previous)
        else:
            facts = await self._describe_changes(previous)
        return facts

    def _any_kept(self) -> bool:
        return len(self.fresh) < len(self.listing.files)

    async def _decode(self, path: Path, prefix: str = "") -> DatasetDescription:
        start = self.done

        def report(done: int, total: int, what: str) -> None:
            # A whole folder may be decoded although some files are known. Scale progress to the new bytes.
            share = done if not total or prefix else int(done * self.total / 2 / total)
            self._report(start + share, f"reading {prefix or what}")

        description = await self._describe_path(path, report)
        for file in description.files:
            self.described[prefix or file.path] = file
        self.done = start + (description.bytes if prefix else self.total // 2)
        return description

    async def _describe_path(self, path: Path, report: Progress) -> DatasetDescription:
        ra, dec = self.words.ra or None, self.words.dec or None
        if self.processes is None:
            return await _watched(
                self.workers,
                self._folder,
                lambda send: describe(path, ra=ra, dec=dec, progress=send, limits=self.limits),
                report,
            )
        found: list[DataFile] = []
        async with aclosing(self.processes.stream(describe_in_steps, path, ra, dec, self.limits)) as steps:
            async for step in steps:
                if step.progress is not None:
                    report(*step.progress)
                elif step.file is not None:
                    found.append(step.file)
                elif step.dataset is not None:
                    return msgspec.structs.replace(step.dataset, files=tuple(found))
        raise ProcessDied(f"the process that read {path} ended without a result", hint="Publish it again.")

    async def _describe_changes(self, previous: PreviousSnapshot) -> _Facts:
        """The properties of a folder in which some files are unchanged."""
        facts = _known_facts(previous)
        added = []
        for found in self.fresh.values():
            if found.path.rsplit("/", 1)[-1] in ("_metadata", "_common_metadata"):
                self.done += found.size
                continue
            new = _facts(await self._decode(self.listing.base / found.path, found.path))
            _check_columns(facts, new, self.listing.base / found.path)
            added.append(new)
        if self.gone:  # exclude removed and replaced files from coverage and time range
            facts = await self._facts_of_kept(facts)
        return _with_added(facts, added)

    async def _facts_of_kept(self, facts: _Facts) -> _Facts:
        coverages, times, complete = [], [], True
        async for _, entry, stats in self._matched():
            if entry is None or stats is None or entry.role != "data":
                continue
            coverages.append(stats.coverage)
            times.append(stats.time)
            if len(coverages) > 256:  # join them in portions, to use bounded memory with a million files
                coverages = [core.join_coverages(coverages, core.COVERAGE_ORDER)] if all(coverages) else [b""]
            complete = complete and bool(stats.coverage)
        known = [time for time in times if time is not None]
        coverage = core.join_coverages(coverages, core.COVERAGE_ORDER) if complete else b""
        return replace(
            facts,
            coverage=coverage,
            moc=core.moc_of_coverage(coverage) if coverage else "",
            time=(min(t[0] for t in known), max(t[1] for t in known)) if known else None,
        )

    # --- hashing ---

    async def _hash(self, found: FoundFile) -> tuple[FileEntry, FileStats]:
        data = self.described.get(found.path)
        role = data.role if data is not None else "metadata"
        form = data.format if data is not None and data.format != "other" and role == "data" else ""
        rows = data.rows if data is not None and role == "data" else 0
        start = self.done
        hard = await self._hard_borders(found, form)

        def work(send: Progress) -> FileEntry:
            return file_listing.hash_file(
                self.listing.base, found, hard, form=form, role=role, rows=rows, sink=self.writer.add, progress=send
            )

        entry = await _watched(
            self.workers, self._folder, work, lambda done, _, what: self._report(start + done, f"hashing {what}")
        )
        self.done = start + found.size
        return entry, file_stats(data) if data is not None and role == "data" else FileStats()

    async def _hard_borders(self, found: FoundFile, form: str) -> list[int]:
        if not file_listing.has_hard_borders(found, form):
            return []
        full = self.listing.base / found.path
        if self.processes is None:
            return await to_the_end(
                self.workers.folder(self._folder, file_listing.hard_borders, full, form, self.limits)
            )
        return await self.processes.run(file_listing.hard_borders, full, form, self.limits)

    def _report(self, done: int, what: str) -> None:
        self.progress(min(done, self.total), self.total, what)

    def _page_closed(self, page: str, files: Sequence[FileEntry]) -> None:
        listed = [self.found.pop(entry.path) for entry in files]
        local = LocalPage(files=tuple((found.mtime_ns, found.inode) for found in listed))
        self.local_pages[page] = self.writer.add(codec.encode(local))

    # --- record and card ---

    def _record(self, facts: _Facts, snapshot: str, root: Root) -> DatasetRecord:
        names, hidden = core.fit_columns(column.name for column in facts.columns)
        return core.fit_record(
            DatasetRecord(
                title=self.words.title,
                format=facts.format,
                rows=root.rows,
                size=root.size,
                files=root.files,
                snapshot=snapshot,
                created=0.0,
                updated=0.0,
                coverage=facts.coverage,
                time=facts.time,
                columns=names,
                hidden=hidden + facts.hidden,
                card=_NO_HASH,
            )
        )

    def _card(self, facts: _Facts, snapshot: str, root: Root) -> bytes:
        return core.fit_card(
            Card(
                snapshot=snapshot,
                title=self.words.title,
                description=self.words.description,
                licence=self.words.licence,
                provenance=f"published from {self.listing.path.name} by island {island.__version__}",
                format=facts.format,
                rows=root.rows,
                size=root.size,
                files=root.files,
                columns=facts.columns,
                hidden=facts.hidden,
                moc=core.moc_fit(facts.moc, 128 * 1024),
                area=core.moc_area(facts.moc) if facts.moc else None,
                time=facts.time,
                position=facts.position,
                time_column=facts.time_column,
                details=facts.details,
                warnings=facts.warnings,
                software=f"island {island.__version__}",
            )
        )


class _Stopped(Exception):
    """Raised in a worker thread whose caller was cancelled."""


async def _watched(workers: Workers, folder: str, work: Callable[[Progress], T], progress: Progress) -> T:
    """Run `work(send)`, which reads files below `folder`, in a worker thread.

    Its calls of `send` become calls of `progress` in the event loop.

    If the caller is cancelled, the work stops at its next call of `send`, and the caller waits for it.
    """
    loop, stopped = asyncio.get_running_loop(), threading.Event()

    def send(done: int, total: int, what: str) -> None:
        if stopped.is_set():
            raise _Stopped
        loop.call_soon_threadsafe(progress, done, total, what)

    begun = workers.folder(folder, work, send)
    try:
        return await asyncio.shield(begun)
    except asyncio.CancelledError:
        stopped.set()
        await ended(begun)
        raise


# --- the previous snapshot ------------------------------------------------------------------


async def _nothing() -> AsyncIterator[tuple[FileEntry, FileStats, int, int]]:
    return
    yield


async def _published(previous: PreviousSnapshot) -> AsyncIterator[tuple[FileEntry, FileStats, int, int]]:
    """Yield (entry, statistics, modification time in ns, inode) of all files of the previous snapshot."""
    async for ref in previous.manifest.pages():
        local = previous.local_pages.get(ref.page.hex())
        if local is None:
            continue
        files = await previous.manifest.page(ref)
        stats = await previous.manifest.stats(ref)
        facts = codec.decode(await previous.manifest.load(local), LocalPage).files
        for entry, item, (mtime_ns, inode) in zip(files, stats, facts, strict=True):
            yield entry, item, mtime_ns, inode


def _is_same(old: tuple[FileEntry, FileStats, int, int], found: FoundFile) -> bool:
    entry, _, mtime_ns, inode = old
    return (entry.path, entry.size, mtime_ns, inode) == (found.path, found.size, found.mtime_ns, found.inode)


async def _known_pages(previous: PreviousSnapshot) -> set[str]:
    known = {previous.local, *previous.local_pages.values()}
    async for ref in previous.manifest.pages():
        known.add(ref.page.hex())
        known.add(ref.stats.hex())
    return known


def _is_comparable(previous: PreviousSnapshot, listing: FileListing, words: DatasetMetadata) -> bool:
    """Whether entries and properties of the previous snapshot can be reused."""
    return (
        previous.path == str(listing.path)
        and (previous.words.ra, previous.words.dec) == (words.ra, words.dec)
        and (previous.record.format == "hats") == listing.is_hats
    )


def _merged_words(words: DatasetMetadata, previous: PreviousSnapshot | None) -> DatasetMetadata:
    if (words.ra == "") != (words.dec == ""):
        raise BadInput("--ra and --dec must be given together", hint="Give both --ra and --dec.")
    if previous is None:
        return words
    before = previous.words
    return DatasetMetadata(
        words.title or before.title,
        words.description or before.description,
        words.licence or before.licence,
        words.ra or before.ra,
        words.dec or before.dec,
    )


# --- properties of the dataset --------------------------------------------------------------


def _facts(description: DatasetDescription) -> _Facts:
    position = description.position
    return _Facts(
        format=description.format,
        columns=tuple(
            CardColumn(
                name=core.shorten_text(column.name, 4000),
                type=core.shorten_text(column.type, 4000),
                unit=core.shorten_text(column.unit, 256),
                ucd=core.shorten_text(column.ucd, 256),
                description=core.shorten_text(column.description, 1000),
                nullable=column.nullable,
            )
            for column in description.columns
        ),
        coverage=core.pack_coverage(description.coverage) if description.coverage is not None else b"",
        moc=description.moc or "",
        time=_seconds(description.time_range),
        position=(position.ra, position.dec, position.how) if position is not None else (),
        time_column=description.time_column.name if description.time_column is not None else "",
        details=_details(description),
        warnings=tuple(core.shorten_text(text, 2000) for text in (*description.problems, *description.warnings))[:200],
    )


def _details(description: DatasetDescription) -> tuple[tuple[str, str], ...]:
    cut = description.partitioning
    if cut is None:
        return ()
    details = [
        ("hats", "collection" if cut.is_collection else cut.main.kind),
        ("hats.name", core.shorten_text(cut.name, 256)),
        # Where the rows of the main catalog are, for the URL to read.
        ("hats.rows", f"{cut.main.path}/dataset".lstrip("/")),
    ]
    for part in cut.parts[:50]:
        text = f"{part.role}, {part.kind}, {part.rows} rows in {part.partitions} partitions"
        if part.orders:
            text += f" of orders {', '.join(map(str, part.orders))}"
        if part.margin_arcsec is not None:
            text += f", margin {part.margin_arcsec:g} arcsec"
        if part.index_column:
            text += f", by {part.index_column}"
        details.append((core.shorten_text(f"part {part.path or part.name}", 250), core.shorten_text(text, 1000)))
    return tuple(details)


def _known_facts(previous: PreviousSnapshot) -> _Facts:
    card, record = previous.card, previous.record
    return _Facts(
        format=record.format,
        columns=card.columns,
        hidden=card.hidden,
        coverage=record.coverage,
        moc=card.moc,
        time=record.time,
        position=card.position,
        time_column=card.time_column,
        details=card.details,
        warnings=card.warnings,
    )


def _with_added(facts: _Facts, added: list[_Facts]) -> _Facts:
    everything = [facts, *added]
    located = all(part.coverage and part.moc for part in everything)
    times = [part.time for part in everything if part.time is not None]
    # The warning that positions may be in radians is only valid for the dataset if all parts have it.
    shared = [set(part.warnings) for part in everything]
    kept = [text for text in facts.warnings if "never exceeds 2π" not in text or all(text in s for s in shared)]
    new = [text for part in added for text in part.warnings if "never exceeds 2π" not in text]
    return replace(
        facts,
        coverage=core.join_coverages([part.coverage for part in everything], core.COVERAGE_ORDER) if located else b"",
        moc=core.moc_union([part.moc for part in everything]) if located else "",
        time=(min(t[0] for t in times), max(t[1] for t in times)) if times else None,
        warnings=tuple(dict.fromkeys([*kept, *new]))[:200],
    )


def _check_columns(facts: _Facts, new: _Facts, path: Path) -> None:
    known = {column.name: column.type for column in facts.columns}
    added = {column.name: column.type for column in new.columns}
    for name, kind in added.items():
        if name in known and not _same_type(known[name], kind):
            what = f"column {name} has type {kind[:120]} instead of {known[name][:120]}"
        elif name not in known and not facts.hidden:
            what = f"it has an additional column {name}"
        else:
            continue
        raise _other_schema(path, what)
    if missing := [name for name in known if name not in added]:
        raise _other_schema(path, f"column {missing[0]} is missing")


def _same_type(one: str, other: str) -> bool:
    # Long types may have been shortened in the card.
    cut = one.endswith("…") or other.endswith("…")
    return one == other or (cut and one.rstrip("…")[:150] == other.rstrip("…")[:150])


def _other_schema(path: Path, what: str) -> BadInput:
    return BadInput(
        f"{path} has another schema than the published files of this dataset: {what}",
        hint="All files of a dataset must have the same schema. Publish this file as another dataset, or convert it.",
    )


def file_stats(file: DataFile) -> FileStats:
    """The statistics of one described file in the manifest."""
    ranges = []
    for column in file.stats:
        low, high = column.low, column.high
        if low is None or high is None or "." in column.name or len(column.name) > 256:
            continue
        if max(abs(low), abs(high)) >= _EXACT and isinstance(low, int):
            continue  # inexact as a float, and a range must never be smaller than the actual one
        ranges.append((column.name, float(low), float("inf") if column.nans else float(high)))
    return FileStats(
        coverage=core.pack_coverage(file.coverage) if file.coverage is not None else b"",
        time=_seconds(file.time_range),
        ranges=tuple(ranges[:MAX_RANGES]),
    )


def _seconds(iso: tuple[str, str] | None) -> tuple[float, float] | None:
    if iso is None:
        return None
    return (
        datetime.datetime.fromisoformat(iso[0]).timestamp(),
        datetime.datetime.fromisoformat(iso[1]).timestamp(),
    )
