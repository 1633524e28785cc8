"""Reads a manifest from the root down, page by page, and verifies each page."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from island.catalog import manifest
from island.catalog.manifest import FileEntry, FileHashes, FileStats, HashIndex, PageRef, Root
from island.errors import NotFound
from island.kernel.codec import Malformed
from island.kernel.ids import IslandId

PageLoader = Callable[[str], Awaitable[bytes]]
"""Loads a page by its hash and verifies it; raises `Unreachable` or `Corrupt`."""

_CACHED_PAGES = 64
T = TypeVar("T")


class ManifestReader:
    """The files of one snapshot. Pages are loaded on demand; the last few are cached in decoded form."""

    def __init__(self, owner: IslandId, snapshot: str, root: Root, load: PageLoader) -> None:
        self.owner = owner
        self.snapshot = snapshot
        self.root = root
        self.load = load
        """Loads a page by its hash and verifies it."""
        self._cache: OrderedDict[tuple[object, ...], object] = OrderedDict()

    async def files(self) -> AsyncIterator[FileEntry]:
        """Yield all files, sorted by path."""
        async for ref in self.pages():
            for entry in await self.page(ref):
                yield entry

    async def listing(self) -> list[FileEntry]:
        """All files as a list, sorted by path."""
        return [entry async for entry in self.files()]

    async def pages(self) -> AsyncIterator[PageRef]:
        """Yield the references to all pages of files, in order."""
        waiting = [(self.root.level, list(self.root.refs))]
        while waiting:
            level, refs = waiting[-1]
            if not refs:
                waiting.pop()
            elif level == 1:
                waiting.pop()
                for ref in refs:
                    yield ref
            else:
                waiting.append((level - 1, list(await self._node(refs.pop(0), level - 1))))

    async def page(self, ref: PageRef) -> tuple[FileEntry, ...]:
        """The files of one page."""
        return await self._cached(("files", ref), ref.page.hex(), lambda data: manifest.decode_page(data, ref))

    async def stats(self, ref: PageRef) -> tuple[FileStats, ...]:
        """The statistics of the files of one page, in the same order; empty ones if the page has none."""
        if not ref.stats:
            return (FileStats(),) * ref.files
        return await self._cached(("stats", ref), ref.stats.hex(), lambda data: manifest.decode_stats(data, ref))

    async def find(self, path: str) -> FileEntry:
        """The file with this path; raises `NotFound`."""
        _, entries, at = await self.locate(path)
        return entries[at]

    async def locate(self, path: str) -> tuple[PageRef, tuple[FileEntry, ...], int]:
        """Return (reference, files, index of the file) of the page with a path; raises `NotFound`."""
        level, refs = self.root.level, self.root.refs
        while (ref := manifest.find_ref(refs, path)) is not None:
            if level > 1:
                level, refs = level - 1, await self._node(ref, level - 1)
                continue
            entries = await self.page(ref)
            for at, entry in enumerate(entries):
                if entry.path == path:
                    return ref, entries, at
            break
        raise NotFound(
            f"snapshot {self.snapshot[:12]} has no file {path[:200]!r}",
            hint="Check the path: it is relative to the published folder.",
        )

    async def hashes(self, entry: FileEntry, start: int = 0, end: int | None = None) -> FileHashes:
        """Return borders and hashes of the chunks of [start, end) of a file; loads only the necessary pages.

        Raises `Malformed` if they contradict the entry, `Unreachable` if no island has the pages.
        """
        known = manifest.known_hashes(entry)
        if known is not None:
            return known
        stop = entry.size if end is None else min(end, entry.size)
        starts: list[int] = []
        hashes: list[bytes] = []
        first = last = 0
        async for low, high, number, page in self._chunk_pages(entry, max(0, min(start, entry.size - 1)), stop):
            data = await self.load(page)
            more, digests = manifest.decode_chunk_page(entry, data, low, high)
            if not starts:
                first = number
            elif number != first + len(starts):
                raise Malformed(f"the chunks of {entry.path!r} have wrong numbers")
            starts += more
            hashes += digests
            last = high
        found = FileHashes(entry, first, starts, last, hashes)
        if last == entry.size and first + len(starts) != entry.chunks:
            raise Malformed(f"the number of chunks of {entry.path!r} differs from its entry")
        if found.is_whole():
            found.check_whole()
        return found

    async def _chunk_pages(self, entry: FileEntry, start: int, end: int) -> AsyncIterator[tuple[int, int, int, str]]:
        """Yield (first byte, end, number of the first chunk, hash) of the chunk pages that overlap [start, end)."""
        waiting: list[tuple[str, int | None, int, int, int]] = [(entry.index.hex(), None, 0, entry.size, 0)]
        while waiting:
            page, level, low, high, number = waiting.pop(0)
            index = await self._index(entry, page, level, low, high, number)
            inner = []
            for at, ref in enumerate(index.refs):
                stop = index.refs[at + 1].start if at + 1 < len(index.refs) else high
                if ref.start >= max(end, start + 1) or stop <= start:
                    continue
                if index.level == 0:
                    yield ref.start, stop, ref.first, ref.page.hex()
                else:
                    inner.append((ref.page.hex(), index.level - 1, ref.start, stop, ref.first))
            waiting = inner + waiting

    async def _index(
        self, entry: FileEntry, page: str, level: int | None, start: int, end: int, first: int
    ) -> HashIndex:
        return await self._cached(
            ("index", page, level, start, end, first, entry.chunks),
            page,
            lambda data: manifest.decode_index(entry, data, level, start, end, first),
        )

    async def _node(self, ref: PageRef, level: int) -> tuple[PageRef, ...]:
        node = await self._cached(
            ("node", level, ref), ref.page.hex(), lambda data: manifest.decode_node(data, level, ref)
        )
        return node.refs

    async def _cached(self, key: tuple[object, ...], page: str, decode: Callable[[bytes], T]) -> T:
        # The key contains everything that decoding checks: a page may have a correct and a wrong reference.
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]  # type: ignore[return-value]  # the key begins with the type
        decoded = decode(await self.load(page))
        self._cache[key] = decoded
        if len(self._cache) > _CACHED_PAGES:
            self._cache.popitem(last=False)
        return decoded


async def live_pages(snapshot: ManifestReader, seen: set[str], local: str) -> None:
    """Add the hashes of all pages of a snapshot to `seen`. Subtrees that are in `seen` are not read again."""
    seen.update((snapshot.snapshot, local))
    waiting = [(snapshot.root.level, ref) for ref in snapshot.root.refs]
    while waiting:
        level, ref = waiting.pop()
        page = ref.page.hex()
        if page in seen:
            continue
        if level > 1:
            waiting += [(level - 1, inner) for inner in await snapshot._node(ref, level - 1)]
        else:
            for entry in await snapshot.page(ref):
                if entry.index and entry.index.hex() not in seen:
                    await _live_hashes(snapshot, entry, seen)
        seen.add(page)
        if ref.stats:
            seen.add(ref.stats.hex())


async def _live_hashes(snapshot: ManifestReader, entry: FileEntry, seen: set[str]) -> None:
    waiting: list[tuple[str, int | None, int, int, int]] = [(entry.index.hex(), None, 0, entry.size, 0)]
    while waiting:
        page, level, low, high, number = waiting.pop()
        seen.add(page)
        index = await snapshot._index(entry, page, level, low, high, number)
        for at, ref in enumerate(index.refs):
            stop = index.refs[at + 1].start if at + 1 < len(index.refs) else high
            if index.level:
                waiting.append((ref.page.hex(), index.level - 1, ref.start, stop, ref.first))
            else:
                seen.add(ref.page.hex())
