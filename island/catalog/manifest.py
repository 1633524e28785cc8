"""Manifests: the files of a snapshot and the hashes of their chunks, as a tree of pages. Pure functions.

From the top: the **root** (its hash names the snapshot) → nodes → **pages** of files sorted by
path, each with a sibling page of statistics → for a file of more than a few chunks an **index** →
pages of chunk lengths and hashes. Every page is a blob named by its plain BLAKE3 hash and checked
when it is decoded. Snapshots share unchanged pages, because the hashes of paths determine where
pages end. `protocols/manifest-v1.md` specifies the format.

The hash of a file does not depend on the paging of its chunk hashes. It is computed over chunks,
groups of 64 chunks, and the file, each with its own `derive_key` context. Lengths are hashed too,
so that the hash covers the size of the file and its borders.
"""

from __future__ import annotations

import bisect
import itertools
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import blake3
from msgspec import Meta

from island.errors import BadInput
from island.kernel import codec
from island.kernel.codec import Malformed, Message

CHUNK = 64 * 1024
"""Maximum size of a chunk, and the distance between borders where the format has none."""
NEAR = 4 * 1024
"""Minimum size of a chunk, except for the last chunk of a file. Nearer borders are merged."""
TINY = 64
"""Smaller parts never get their own chunk: for example the magic bytes at the start of a file."""
GROUP = 64
"""Number of chunks in a group."""
CHUNK_PAGE = 8 * GROUP
"""Maximum number of chunks in a page of chunk hashes: 18 KiB of lengths and hashes for at most 32 MiB of data."""
INLINE = 4
"""Maximum number of chunks of a file whose hashes are stored in its entry."""
INDEX_FAN = 4096
"""Maximum number of references in one page of an index."""

ROOT_LIMIT = 64 * 1024
PAGE_LIMIT = 256 * 1024
MAX_PATH = 1024
MAX_FILES = 10_000_000
MAX_FILE = 1 << 50
MAX_LEVEL = 6

_PAGE_TARGET = 192 * 1024
_NODE_TARGET = 56 * 1024
_PAGE_BITS = 8
_NODE_BITS = 5

Size = Annotated[int, Meta(ge=0, le=MAX_FILE)]
Count = Annotated[int, Meta(ge=0, le=(1 << 62))]
Moment = Annotated[float, Meta(ge=-1e14, le=1e14)]
Blake3Hash = Annotated[bytes, Meta(min_length=32, max_length=32)]


# --- borders and hashes ---------------------------------------------------------------------


def borders(size: int, hard: Iterable[int] = ()) -> Iterator[int]:
    """Yield the ends of the chunks of a file of `size` bytes in ascending order; the last one is `size`.

    `hard` are offsets at which a part of the format begins (Parquet column chunks and footer);
    `kept` selects those that become borders. From the start and from each selected offset, a
    border follows every CHUNK bytes. If the remainder before the next selected offset is longer
    than CHUNK and shorter than CHUNK + NEAR, it is split NEAR bytes before that offset. Every chunk
    therefore has NEAR to CHUNK bytes, except the last, which has 1 to CHUNK.
    """
    start = 0
    for stop in kept(size, hard):
        yield from range(start + CHUNK, stop - NEAR + 1, CHUNK)
        last = start + max(0, (stop - NEAR - start) // CHUNK) * CHUNK
        if stop - last > CHUNK:
            yield stop - NEAR
        yield stop
        start = stop
    yield from range(start + CHUNK, size, CHUNK)
    if size > start:
        yield size


def kept(size: int, hard: Iterable[int]) -> Iterator[int]:
    """Yield the borders that result from the format's offsets, in ascending order, at least NEAR bytes apart.

    An offset at least NEAR bytes after the previous border (or the start) is a border. A nearer
    offset is merged with the following part if it is less than TINY bytes after that border, or
    if the next offset that is far enough (or the end of the file) is within 2 * NEAR of the border.
    Otherwise there is a border NEAR bytes after the previous one, so that reading a small column
    does not fetch a large one (`protocols/decisions/0005-small-columns.md`).
    """
    offsets = sorted({offset for offset in hard if 0 < offset < size})
    previous = 0
    for offset in offsets:
        border = offset
        if offset - previous < NEAR:
            at = bisect.bisect_left(offsets, previous + NEAR)
            following = offsets[at] if at < len(offsets) else size
            if offset - previous < TINY or following - previous < 2 * NEAR:
                continue
            border = previous + NEAR
        yield border
        previous = border


_CHUNK_KEY = blake3.blake3(derive_key_context="island/1 chunk")
_GROUP_KEY = blake3.blake3(derive_key_context="island/1 group")
_FILE_KEY = blake3.blake3(derive_key_context="island/1 file")
_U32, _U64 = struct.Struct(">I"), struct.Struct(">Q")


def chunk_hash(data: bytes | memoryview) -> bytes:
    """The 32-byte hash of one chunk."""
    hasher = _CHUNK_KEY.copy()
    hasher.update(data)
    return bytes(hasher.digest())


def group_hash(lengths: Sequence[int], hashes: Sequence[bytes]) -> bytes:
    """The hash of a group of up to 64 chunks, over the length (4 bytes, big-endian) and hash of each."""
    hasher = _GROUP_KEY.copy()
    for length, digest in zip(lengths, hashes, strict=True):
        hasher.update(_U32.pack(length) + digest)
    return bytes(hasher.digest())


def file_hash(size: int, groups: Iterable[bytes]) -> bytes:
    """The hash of a file, over its size (8 bytes, big-endian) and the hashes of its groups in order."""
    hasher = _FILE_KEY.copy()
    hasher.update(_U64.pack(size))
    for digest in groups:
        hasher.update(digest)
    return bytes(hasher.digest())


def blob_hash(data: bytes) -> str:
    """The name of a page or blob: its plain BLAKE3 hash, 64 hex digits."""
    return blake3.blake3(data).hexdigest()


# --- pages of chunk hashes ------------------------------------------------------------------


class ChunkPage(Message, frozen=True, kw_only=True):
    """Lengths (4 bytes each, big-endian) and hashes (32 bytes each) of up to CHUNK_PAGE consecutive chunks."""

    MAX_BYTES = PAGE_LIMIT

    lengths: Annotated[bytes, Meta(min_length=4, max_length=4 * CHUNK_PAGE)]
    hashes: Annotated[bytes, Meta(min_length=32, max_length=32 * CHUNK_PAGE)]


class IndexRef(Message, frozen=True, kw_only=True):
    """A reference to a page below an index: offset and number of its first chunk, and the page's hash."""

    start: Size
    first: Count
    page: Blake3Hash


class HashIndex(Message, frozen=True, kw_only=True):
    """The index of a file's chunk pages (level 0), or of indexes of the level below (level 1 and up)."""

    MAX_BYTES = PAGE_LIMIT

    level: Annotated[int, Meta(ge=0, le=3)] = 0
    refs: Annotated[tuple[IndexRef, ...], Meta(min_length=1, max_length=INDEX_FAN)]


# --- files and pages of files ---------------------------------------------------------------


class FileEntry(Message, frozen=True, kw_only=True):
    """One file of a snapshot.

    `role` is "data" for rows of the dataset, "margin" and "index" (of HATS), or "metadata" for
    other files. For data, `format` is "parquet" or "avro", and `rows` is the number of rows; for all
    other roles they are "" and 0. `chunks` is the number of chunks. A file of one chunk has no
    chunk hashes, because its `hash` is sufficient. A file of 2 to INLINE chunks has them in `inline`
    (36 bytes each: length and hash). For larger files `index` is the hash of a `HashIndex`.
    """

    path: Annotated[str, Meta(min_length=1, max_length=MAX_PATH)]
    size: Size
    hash: Blake3Hash
    chunks: Count
    format: Annotated[str, Meta(max_length=32)] = ""
    role: Annotated[str, Meta(max_length=32)] = "data"
    rows: Count = 0
    inline: Annotated[bytes, Meta(max_length=36 * INLINE)] = b""
    index: Annotated[bytes, Meta(max_length=32)] = b""


class FileStats(Message, frozen=True, kw_only=True):
    """Statistics of one file, used to skip files. None and empty values mean "not known", never "no rows".

    `coverage` is encoded as in a dataset record; `time` is in Unix seconds; `ranges` has
    (column, minimum, maximum).
    """

    coverage: Annotated[bytes, Meta(max_length=2048)] = b""
    time: tuple[Moment, Moment] | None = None
    ranges: Annotated[tuple[tuple[Annotated[str, Meta(max_length=256)], float, float], ...], Meta(max_length=64)] = ()


class FilePage(Message, frozen=True, kw_only=True):
    """Consecutive files of a snapshot, sorted by path."""

    MAX_BYTES = PAGE_LIMIT

    files: Annotated[tuple[FileEntry, ...], Meta(min_length=1, max_length=4096)]


class StatsPage(Message, frozen=True, kw_only=True):
    """The statistics of the files of one `FilePage`, in the same order."""

    MAX_BYTES = PAGE_LIMIT

    files: Annotated[tuple[FileStats, ...], Meta(min_length=1, max_length=4096)]


class PageRef(Message, frozen=True, kw_only=True):
    """A reference to a page or node, with sums, coverage and time range of all files below it."""

    first: Annotated[str, Meta(min_length=1, max_length=MAX_PATH)]
    page: Blake3Hash
    stats: Annotated[bytes, Meta(max_length=32)] = b""
    files: Count
    size: Count
    rows: Count
    coverage: Annotated[bytes, Meta(max_length=2048)] = b""
    time: tuple[Moment, Moment] | None = None


class Node(Message, frozen=True, kw_only=True):
    """An inner page of the tree. A node of `level` 1 refers to pages of files."""

    MAX_BYTES = PAGE_LIMIT

    level: Annotated[int, Meta(ge=1, le=MAX_LEVEL)]
    refs: Annotated[tuple[PageRef, ...], Meta(min_length=1, max_length=4096)]


class Root(Message, frozen=True, kw_only=True):
    """The top page of a manifest. The BLAKE3 hash of its bytes names the snapshot."""

    MAX_BYTES = ROOT_LIMIT

    version: Literal[1] = 1
    format: Annotated[str, Meta(max_length=32)]
    level: Annotated[int, Meta(ge=1, le=MAX_LEVEL)]
    files: Annotated[int, Meta(ge=1, le=MAX_FILES)]
    size: Count
    rows: Count
    refs: Annotated[tuple[PageRef, ...], Meta(min_length=1, max_length=4096)]


def check_path(path: str) -> str:
    """Return `path` if it is a relative POSIX path that stays inside a snapshot; raises `Malformed` otherwise."""
    try:
        length = len(path.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise Malformed(f"a path that is not Unicode text: {path[:80]!r}") from error
    parts = path.split("/")
    if not 0 < length <= MAX_PATH or any(ord(char) < 32 or char in "\\\x7f" for char in path):
        raise Malformed(f"a path is too long, empty, or has control characters or a backslash: {path[:80]!r}")
    if any(part in ("", ".", "..") for part in parts) or max(len(part.encode()) for part in parts) > 255:
        raise Malformed(f"a path is not plain and relative: {path[:80]!r}")
    return path


def check_entry(entry: FileEntry) -> FileEntry:
    """Return `entry` if its fields are consistent; raises `Malformed` otherwise."""
    check_path(entry.path)
    fewest = -(-entry.size // CHUNK)
    most = max(fewest, entry.size // NEAR + 1) if entry.size else 0
    if not fewest <= entry.chunks <= most:
        raise Malformed(f"{entry.path!r} of {entry.size} bytes cannot have {entry.chunks} chunks")
    inline = 36 * entry.chunks if 2 <= entry.chunks <= INLINE else 0
    if len(entry.inline) != inline or len(entry.index) != (32 if entry.chunks > INLINE else 0):
        raise Malformed(f"{entry.path!r} has the wrong kind of chunk hashes")
    if entry.chunks == 0 and entry.hash != file_hash(0, ()):
        raise Malformed(f"{entry.path!r} is empty, but does not have the hash of an empty file")
    return entry


# --- hashing a file -------------------------------------------------------------------------

Sink = Callable[[bytes], str]
"""Stores a page and returns its hash."""


class FileHasher:
    """Collects the hashes of a file's chunks in order, and writes full pages of them to a sink."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._lengths: list[int] = []
        self._hashes: list[bytes] = []
        self._groups: list[bytes] = []
        self._refs: list[IndexRef] = []
        self._size = 0
        self._chunks = 0
        self._start = 0

    def add(self, data: bytes | memoryview) -> None:
        """Add the next chunk."""
        if self._chunks > INLINE and len(self._lengths) == CHUNK_PAGE:
            self._flush()
        self._lengths.append(len(data))
        self._hashes.append(chunk_hash(data))
        self._size += len(data)
        self._chunks += 1
        if self._chunks % GROUP == 0:
            self._groups.append(group_hash(self._lengths[-GROUP:], self._hashes[-GROUP:]))

    def finish(self, path: str, *, form: str = "", role: str = "data", rows: int = 0) -> FileEntry:
        """Write the last pages and return the entry of the file."""
        if tail := self._chunks % GROUP:
            self._groups.append(group_hash(self._lengths[-tail:], self._hashes[-tail:]))
        inline = index = b""
        if self._chunks > INLINE:
            self._flush()
            index = bytes.fromhex(self._sink(self._index()))
        elif self._chunks > 1:
            inline = b"".join(
                _U32.pack(length) + digest for length, digest in zip(self._lengths, self._hashes, strict=True)
            )
        return FileEntry(
            path=path,
            size=self._size,
            hash=file_hash(self._size, self._groups),
            chunks=self._chunks,
            format=form,
            role=role,
            rows=rows,
            inline=inline,
            index=index,
        )

    def _flush(self) -> None:
        page = ChunkPage(
            lengths=b"".join(map(_U32.pack, self._lengths)),
            hashes=b"".join(self._hashes),
        )
        page_hash = bytes.fromhex(self._sink(codec.encode(page)))
        self._refs.append(IndexRef(start=self._start, first=self._chunks - len(self._lengths), page=page_hash))
        self._start = self._size
        self._lengths, self._hashes = [], []

    def _index(self) -> bytes:
        refs, level = self._refs, 0
        while len(refs) > INDEX_FAN:
            above = []
            for at in range(0, len(refs), INDEX_FAN):
                part = refs[at : at + INDEX_FAN]
                page = codec.encode(HashIndex(level=level, refs=tuple(part)))
                above.append(IndexRef(start=part[0].start, first=part[0].first, page=bytes.fromhex(self._sink(page))))
            refs, level = above, level + 1
        return codec.encode(HashIndex(level=level, refs=tuple(refs)))


# --- the chunk hashes of a file, or of a part of it -----------------------------------------


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk of a file: its number, and the range [start, end) of its bytes."""

    index: int
    start: int
    end: int


class FileHashes:
    """Borders and hashes of consecutive chunks that cover a part [start, end) of a file, or all of it."""

    def __init__(self, entry: FileEntry, first: int, starts: Sequence[int], end: int, hashes: Sequence[bytes]) -> None:
        self.entry = entry
        self.first = first
        """Number of the first of these chunks."""
        self.starts = starts
        self.end = end
        self.hashes = hashes
        """Empty for a file of one chunk, which is verified with the hash of its entry."""

    @property
    def start(self) -> int:
        """Offset of the first of these chunks."""
        return self.starts[0] if self.starts else 0

    def chunk(self, index: int) -> Chunk:
        """A chunk by its number; raises `IndexError` if it is not one of these chunks."""
        at = index - self.first
        if not 0 <= at < len(self.starts):
            raise IndexError(index)
        return Chunk(index, self.starts[at], self.starts[at + 1] if at + 1 < len(self.starts) else self.end)

    def chunks(self, start: int, end: int) -> list[Chunk]:
        """The chunks that overlap [start, end)."""
        start, end = max(start, self.start), min(end, self.end)
        if start >= end:
            return []
        low = max(0, bisect.bisect_right(self.starts, start) - 1)
        high = bisect.bisect_left(self.starts, end)
        return [self.chunk(self.first + at) for at in range(low, high)]

    def verify(self, index: int, data: bytes | memoryview) -> bool:
        """Whether `data` is the content of chunk `index`."""
        chunk = self.chunk(index)
        if len(data) != chunk.end - chunk.start:
            return False
        digest = chunk_hash(data)
        if self.entry.chunks == 1:
            return file_hash(len(data), [group_hash([len(data)], [digest])]) == self.entry.hash
        return digest == self.hashes[index - self.first]

    def is_whole(self) -> bool:
        """Whether these are all chunks of the file."""
        return self.first == 0 and len(self.starts) == self.entry.chunks

    def check_whole(self) -> None:
        """Raise `Malformed` unless the hashes of all chunks result in the hash of the file."""
        if self.entry.chunks <= 1:
            return
        lengths = [end - start for start, end in itertools.pairwise([*self.starts, self.end])]
        groups = [
            group_hash(lengths[at : at + GROUP], self.hashes[at : at + GROUP]) for at in range(0, len(lengths), GROUP)
        ]
        if not self.is_whole() or file_hash(self.entry.size, groups) != self.entry.hash:
            raise Malformed(f"the chunk hashes of {self.entry.path!r} do not match its hash")


def known_hashes(entry: FileEntry) -> FileHashes | None:
    """The chunk hashes in the entry itself; None if they are in pages."""
    if entry.chunks == 0:
        return FileHashes(entry, 0, [], 0, [])
    if entry.chunks == 1:
        return FileHashes(entry, 0, [0], entry.size, [])
    if entry.chunks > INLINE:
        return None
    lengths = [_U32.unpack_from(entry.inline, at)[0] for at in range(0, len(entry.inline), 36)]
    hashes = [entry.inline[at + 4 : at + 36] for at in range(0, len(entry.inline), 36)]
    _check_lengths(lengths, 0, entry.size, entry.size, entry.path)
    whole = FileHashes(entry, 0, list(itertools.accumulate(lengths[:-1], initial=0)), entry.size, hashes)
    whole.check_whole()
    return whole


def decode_index(entry: FileEntry, data: bytes, level: int | None, start: int, end: int, first: int) -> HashIndex:
    """Decode an index page of bytes [start, end), whose first chunk has number `first`; raises `Malformed`.

    `level` is the required level of the page, or None for the top page.
    """
    index = codec.decode(data, HashIndex)
    starts = [ref.start for ref in index.refs]
    firsts = [ref.first for ref in index.refs]
    if level is not None and index.level != level:
        raise Malformed(f"an index has level {index.level} instead of {level}")
    if starts[0] != start or starts[-1] >= end or firsts[0] != first or firsts[-1] >= entry.chunks:
        raise Malformed(f"an index of {entry.path!r} does not cover the expected range")
    if not all(a < b for a, b in itertools.pairwise(starts)) or not all(a < b for a, b in itertools.pairwise(firsts)):
        raise Malformed(f"an index of {entry.path!r} is not sorted")
    return index


def decode_chunk_page(entry: FileEntry, data: bytes, start: int, end: int) -> tuple[list[int], list[bytes]]:
    """Decode a page of chunk hashes into (starts, hashes) of the chunks of [start, end); raises `Malformed`."""
    page = codec.decode(data, ChunkPage)
    count = len(page.lengths) // 4
    if len(page.lengths) != 4 * count or len(page.hashes) != 32 * count:
        raise Malformed(f"a page of chunk hashes of {entry.path!r} has lists of different lengths")
    lengths = list(struct.unpack(f">{count}I", page.lengths))
    _check_lengths(lengths, start, end, entry.size, entry.path)
    starts = list(itertools.accumulate(lengths[:-1], initial=start))
    return starts, [page.hashes[at : at + 32] for at in range(0, len(page.hashes), 32)]


def _check_lengths(lengths: Sequence[int], start: int, end: int, size: int, path: str) -> None:
    short = [length for length in lengths if not NEAR <= length <= CHUNK]
    # Only the file's last chunk may be short.
    if short and (len(short) > 1 or lengths[-1] != short[0] or not 0 < short[0] < NEAR or end != size):
        raise Malformed(f"{path!r} has a chunk of {short[0]} bytes")
    if sum(lengths) != end - start:
        raise Malformed(f"the chunks of {path!r} do not add up to its size")


# --- building the tree ----------------------------------------------------------------------


@dataclass(slots=True)
class _Below:
    """A finished page or node: the reference for its parent, its last path, and the size of the reference."""

    ref: PageRef
    last: str
    size: int


Combine = Callable[[Sequence[bytes]], bytes]
"""Joins encoded coverages into one that covers at least the same area."""


OnPage = Callable[[str, Sequence[FileEntry]], None]
"""Called with the hash and the files of every finished page of files."""


class TreeBuilder:
    """Builds a manifest in bounded memory, from files in ascending order of their paths."""

    def __init__(self, form: str, sink: Sink, combine: Combine, on_page: OnPage | None = None) -> None:
        self._form = form
        self._sink = sink
        self._combine = combine
        self._on_page = on_page
        self._files: list[FileEntry] = []
        self._stats: list[FileStats] = []
        self._bytes = 0
        self._levels: list[list[_Below]] = []
        self._previous = ""

    def add(self, entry: FileEntry, stats: FileStats) -> None:
        """Add the next file. Raises `Malformed` if its path does not sort after the previous one."""
        check_entry(entry)
        if self._previous and entry.path.encode() <= self._previous.encode():
            raise Malformed(f"{entry.path!r} does not sort after {self._previous!r}")
        self._previous = entry.path
        size = max(len(codec.encode(entry)), len(codec.encode(stats)))
        if self._files and (self._bytes + size > _PAGE_TARGET or len(self._files) == 4096):
            self._close_page()
        self._files.append(entry)
        self._stats.append(stats)
        self._bytes += size
        if is_cut(entry.path, _PAGE_BITS):
            self._close_page()

    def finish(self) -> tuple[str, Root]:
        """Write the last pages and return (snapshot, root). Raises `BadInput` if no file was added."""
        if not self._previous:
            raise BadInput("there are no files to publish", hint="Publish a file, or a folder that contains files.")
        if self._files:
            self._close_page()
        level = 0
        while len(self._levels) > level + 1 or sum(below.size for below in self._levels[level]) > _NODE_TARGET:
            self._close_node(level)
            level += 1
        refs = tuple(below.ref for below in self._levels[level])
        root = Root(
            format=self._form,
            level=level + 1,
            files=sum(ref.files for ref in refs),
            size=sum(ref.size for ref in refs),
            rows=sum(ref.rows for ref in refs),
            refs=refs,
        )
        return self._sink(codec.encode(root)), root

    def _close_page(self) -> None:
        files, stats = tuple(self._files), tuple(self._stats)
        known = any(item != FileStats() for item in stats)
        data = [(item.coverage, item.time) for entry, item in zip(files, stats, strict=True) if entry.role == "data"]
        coverage, time = _roll_up(data, self._combine)
        ref = PageRef(
            first=files[0].path,
            page=bytes.fromhex(self._sink(codec.encode(FilePage(files=files)))),
            stats=bytes.fromhex(self._sink(codec.encode(StatsPage(files=stats)))) if known else b"",
            files=len(files),
            size=sum(entry.size for entry in files),
            rows=sum(entry.rows for entry in files),
            coverage=coverage,
            time=time,
        )
        if self._on_page is not None:
            self._on_page(ref.page.hex(), files)
        self._files, self._stats, self._bytes = [], [], 0
        self._put(0, _Below(ref, files[-1].path, len(codec.encode(ref))))

    def _put(self, level: int, below: _Below) -> None:
        if len(self._levels) == level:
            self._levels.append([])
        waiting = self._levels[level]
        if waiting and sum(item.size for item in waiting) + below.size > _NODE_TARGET:
            self._close_node(level)
        self._levels[level].append(below)
        if is_cut(below.last, _PAGE_BITS + _NODE_BITS * (level + 1)):
            self._close_node(level)

    def _close_node(self, level: int) -> None:
        items = self._levels[level]
        if not items:
            return
        self._levels[level] = []
        refs = tuple(item.ref for item in items)
        coverage, time = _roll_up([(item.coverage, item.time) for item in refs], self._combine)
        ref = PageRef(
            first=refs[0].first,
            page=bytes.fromhex(self._sink(codec.encode(Node(level=level + 1, refs=refs)))),
            files=sum(item.files for item in refs),
            size=sum(item.size for item in refs),
            rows=sum(item.rows for item in refs),
            coverage=coverage,
            time=time,
        )
        self._put(level + 1, _Below(ref, items[-1].last, len(codec.encode(ref))))


def is_cut(path: str, bits: int) -> bool:
    """Whether a page or node ends after this path.

    It does if the first 8 bytes of BLAKE3(path), as a big-endian number, end with at least `bits` zero bits.
    """
    return int.from_bytes(blake3.blake3(path.encode()).digest(length=8), "big") % (1 << min(bits, 63)) == 0


def _roll_up(
    items: list[tuple[bytes, tuple[float, float] | None]], combine: Combine
) -> tuple[bytes, tuple[float, float] | None]:
    """Coverage and time range of all items; each is "not known" if that of any item is not known."""
    coverages = [coverage for coverage, _ in items if coverage]
    times = [time for _, time in items if time is not None]
    coverage = combine(coverages) if items and len(coverages) == len(items) else b""
    time = (min(t[0] for t in times), max(t[1] for t in times)) if items and len(times) == len(items) else None
    return coverage, time


# --- reading the tree -----------------------------------------------------------------------


def decode_root(data: bytes) -> Root:
    """Decode the root of a manifest; raises `Malformed`."""
    root = codec.decode(data, Root)
    _check_refs(root.refs, "")
    if (
        sum(ref.files for ref in root.refs) != root.files
        or sum(ref.size for ref in root.refs) != root.size
        or sum(ref.rows for ref in root.refs) != root.rows
    ):
        raise Malformed("the sums in a manifest's root differ from those of its references")
    return root


def decode_node(data: bytes, level: int, ref: PageRef) -> Node:
    """Decode the node of `level` to which `ref` refers; raises `Malformed`."""
    node = codec.decode(data, Node)
    if node.level != level:
        raise Malformed(f"a node has level {node.level} instead of {level}")
    _check_refs(node.refs, ref.first)
    _check_sums(ref, sum(r.files for r in node.refs), sum(r.size for r in node.refs), sum(r.rows for r in node.refs))
    return node


def decode_page(data: bytes, ref: PageRef) -> tuple[FileEntry, ...]:
    """Decode the page of files to which `ref` refers; raises `Malformed`."""
    files = codec.decode(data, FilePage).files
    for entry in files:
        check_entry(entry)
    _check_order([entry.path for entry in files], ref.first)
    _check_sums(ref, len(files), sum(entry.size for entry in files), sum(entry.rows for entry in files))
    return files


def decode_stats(data: bytes, ref: PageRef) -> tuple[FileStats, ...]:
    """Decode the statistics of the page to which `ref` refers; raises `Malformed`."""
    stats = codec.decode(data, StatsPage).files
    if len(stats) != ref.files:
        raise Malformed("a page of statistics has a different number of files than its page of files")
    return stats


def find_ref(refs: Sequence[PageRef], path: str) -> PageRef | None:
    """The reference to the page or node that may contain `path`; None if `path` sorts before all of them."""
    at = bisect.bisect_right([ref.first.encode() for ref in refs], path.encode())
    return refs[at - 1] if at else None


def _check_refs(refs: Sequence[PageRef], first: str) -> None:
    for ref in refs:
        check_path(ref.first)
        if ref.files == 0 or len(ref.stats) not in (0, 32):
            raise Malformed("a reference to an empty page")
    _check_order([ref.first for ref in refs], first)


def _check_order(paths: Sequence[str], first: str) -> None:
    keys = [path.encode() for path in paths]
    if (first and paths[0] != first) or not all(a < b for a, b in itertools.pairwise(keys)):
        raise Malformed("paths are not sorted or not unique")


def _check_sums(ref: PageRef, files: int, size: int, rows: int) -> None:
    if (files, size, rows) != (ref.files, ref.size, ref.rows):
        raise Malformed("the sums of a page differ from those in its reference")
