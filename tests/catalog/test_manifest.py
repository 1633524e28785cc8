"""Borders, hashes and the tree of pages: what holds for every input, honest or hostile."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterable

import blake3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from island.catalog import manifest
from island.catalog.core import join_coverages
from island.catalog.manifest import (
    CHUNK,
    NEAR,
    ChunkPage,
    FileEntry,
    FileHasher,
    FileStats,
    HashIndex,
    PageRef,
    Root,
    TreeBuilder,
)
from island.catalog.manifest_reader import ManifestReader, live_pages
from island.errors import BadInput, IslandError, NotFound
from island.kernel import codec
from island.kernel.codec import Malformed
from island.kernel.ids import IslandId

OWNER = IslandId("ab" * 32)


class Pages(dict[str, bytes]):
    """Pages by hash, as a sink and as a source."""

    def sink(self, data: bytes) -> str:
        assert len(data) <= manifest.PAGE_LIMIT
        name = manifest.blob_hash(data)
        self[name] = data
        return name

    async def load(self, name: str) -> bytes:
        return self[name]


def hashed(pages: Pages, path: str, data: bytes, hard: Iterable[int] = ()) -> FileEntry:
    hasher, at = FileHasher(pages.sink), 0
    for end in manifest.borders(len(data), hard):
        hasher.add(data[at:end])
        at = end
    return hasher.finish(path, form="parquet", rows=len(data))


def built(pages: Pages, entries: Iterable[FileEntry], stats: FileStats | None = None) -> ManifestReader:
    builder = TreeBuilder("parquet", pages.sink, join_coverages)
    for entry in sorted(entries, key=lambda entry: entry.path):
        builder.add(entry, stats or FileStats())
    snapshot, root = builder.finish()
    assert len(pages[snapshot]) <= manifest.ROOT_LIMIT
    assert manifest.decode_root(pages[snapshot]) == root
    return ManifestReader(OWNER, snapshot, root, pages.load)


def plain(path: str, size: int = 0) -> FileEntry:
    if size == 0:
        return FileEntry(path=path, size=0, hash=manifest.file_hash(0, ()), chunks=0)
    return FileEntry(path=path, size=size, hash=blake3.blake3(path.encode()).digest(), chunks=1)


# --- borders --------------------------------------------------------------------------------

SIZES = st.one_of(
    st.integers(0, 3 * CHUNK), st.integers(0, 40 * CHUNK), st.sampled_from([CHUNK, CHUNK + NEAR, 2 * CHUNK])
)


@given(SIZES, st.lists(st.one_of(st.integers(0, 40 * CHUNK), st.integers(0, 3 * CHUNK)), max_size=60))
@settings(max_examples=500)
def test_borders_cut_a_file_into_chunks_of_the_right_size(size: int, hard: list[int]) -> None:
    ends = list(manifest.borders(size, hard))
    assert ends == sorted(set(ends))
    if size == 0:
        assert ends == []
        return
    assert ends[-1] == size
    lengths = [end - start for start, end in itertools.pairwise([0, *ends])]
    assert all(NEAR <= length <= CHUNK for length in lengths[:-1])
    assert 0 < lengths[-1] <= CHUNK
    # Every offset of the format is a border, or nearer than NEAR to a kept one, the start or the end.
    kept = set(manifest.kept(size, hard))
    assert kept <= set(ends)
    near = [0, size, *kept]
    assert all(offset in kept or offset > size or min(abs(offset - k) for k in near) < NEAR for offset in hard)


@given(SIZES)
def test_without_offsets_of_the_format_borders_are_multiples(size: int) -> None:
    assert list(manifest.borders(size)) == [*range(CHUNK, size, CHUNK), *([size] if size else [])]


def test_the_order_and_repetition_of_offsets_do_not_matter() -> None:
    assert list(manifest.borders(10 * CHUNK, [90_000, 70_000, 70_000])) == list(
        manifest.borders(10 * CHUNK, [70_000, 90_000])
    )


# --- hashes ---------------------------------------------------------------------------------


def test_levels_are_separated_and_cover_length_and_borders() -> None:
    data = random.Random(1).randbytes(200_000)
    pages = Pages()
    whole = hashed(pages, "a", data)
    cut = hashed(pages, "a", data, [100_000])
    assert whole.hash != cut.hash
    assert whole.hash == manifest.file_hash(
        200_000,
        [
            manifest.group_hash(
                [CHUNK, CHUNK, CHUNK, 200_000 - 3 * CHUNK],
                [manifest.chunk_hash(data[at : at + CHUNK]) for at in range(0, 200_000, CHUNK)],
            )
        ],
    )
    one = b"x" * 32
    assert len({manifest.chunk_hash(one), blake3.blake3(one).digest(), manifest.file_hash(32, [])}) == 3
    assert manifest.file_hash(1, []) != manifest.file_hash(2, [])


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1, 4 * CHUNK, 4 * CHUNK + 1, 64 * CHUNK, 513 * CHUNK + 7])
async def test_any_part_of_a_file_is_verified_by_the_pages_that_it_takes(size: int) -> None:
    data = random.Random(size).randbytes(size)
    pages = Pages()
    entry = hashed(pages, "a", data, [70_001, 300_000])
    listed = built(pages, [entry])
    asked: list[str] = []

    async def load(name: str) -> bytes:
        asked.append(name)
        return pages[name]

    listed.load = load
    whole = await listed.hashes(await listed.find("a"))
    assert whole.is_whole()
    whole.check_whole()
    covered = whole.chunks(0, size)
    assert b"".join(data[chunk.start : chunk.end] for chunk in covered) == data
    assert all(whole.verify(chunk.index, data[chunk.start : chunk.end]) for chunk in covered)
    for chunk in covered[:2] + covered[-2:]:
        part = data[chunk.start : chunk.end]
        assert not whole.verify(chunk.index, part[:-1] + bytes([part[-1] ^ 1]))
        assert not whole.verify(chunk.index, part[:-1])
        assert not whole.verify(chunk.index, part + b"\0")
    if size > 512 * CHUNK:
        asked.clear()
        few = await listed.hashes(entry, size - 10, size)
        assert len(asked) == 1
        assert not few.is_whole()
        assert few.chunks(size - 10, size)[-1].end == size
        assert few.chunk(entry.chunks - 1) == whole.chunk(entry.chunks - 1)
        assert few.verify(entry.chunks - 1, data[few.chunk(entry.chunks - 1).start :])
    assert whole.chunks(size, size + 1) == whole.chunks(5, 5) == []


@given(st.integers(1, 30 * CHUNK), st.lists(st.integers(0, 30 * CHUNK), max_size=20), st.data())
@settings(max_examples=60, deadline=None)
def test_chunks_of_a_range_are_exactly_those_that_touch_it(size: int, hard: list[int], data: st.DataObject) -> None:
    pages = Pages()
    hashes = asyncio.run(built(pages, [entry := hashed(pages, "a", bytes(size), hard)]).hashes(entry))
    start = data.draw(st.integers(0, size - 1))
    end = data.draw(st.integers(start + 1, size))
    found = hashes.chunks(start, end)
    everything = hashes.chunks(0, size)
    assert found == [chunk for chunk in everything if chunk.start < end and chunk.end > start]


# --- the tree -------------------------------------------------------------------------------


def paths(count: int, seed: int = 0) -> list[str]:
    return sorted({f"Norder={n % 7}/Dir={n % 3}/Npix={n + seed}.parquet" for n in range(count)})


@pytest.mark.parametrize("count", [1, 2, 300, 5000, 40_000])
async def test_every_file_can_be_looked_up(count: int) -> None:
    pages = Pages()
    stats = FileStats(coverage=join_coverages([bytes((0, 0, 1, 0))]), time=(1.0, 2.0), ranges=(("ra", 0.0, 1.0),))
    listed = built(pages, (plain(path, 100) for path in paths(count)), stats)
    assert [entry.path for entry in await listed.listing()] == paths(count)
    assert (listed.root.files, listed.root.size) == (count, 100 * count)
    for path in random.Random(2).sample(paths(count), min(count, 20)):
        assert (await listed.find(path)).path == path
        with pytest.raises(NotFound):
            await listed.find(path + "x")
    for missing in ("", "A", "zzz"):
        with pytest.raises(NotFound):
            await listed.find(missing)
    async for ref in listed.pages():
        assert len(await listed.stats(ref)) == ref.files
        assert (ref.time, ref.coverage) == ((1.0, 2.0), stats.coverage)
    live: set[str] = set()
    await live_pages(listed, live, listed.snapshot)
    assert live == set(pages)


async def test_a_small_change_shares_all_but_a_few_pages() -> None:
    pages = Pages()
    names = paths(20_000)
    before = built(pages, (plain(path, 100) for path in names))
    old = set(pages)
    built(pages, (plain(path, 100) for path in [*names, "Norder=3/Dir=1/Npix=new.parquet"]))
    assert before.root.level > 1
    assert len(set(pages) - old) <= before.root.level + 2
    assert len(old) > 60


def test_the_tree_does_not_depend_on_anything_but_its_files() -> None:
    first, second = Pages(), Pages()
    assert built(first, map(plain, paths(3000))).snapshot == built(second, map(plain, paths(3000))).snapshot
    assert first == second


def test_long_paths_still_fit() -> None:
    pages = Pages()
    deep = [f"{n:05d}/" + "/".join(["d" * 199] * 5) for n in range(2000)]
    listed = built(pages, map(plain, deep))
    assert listed.root.files == 2000


def test_snapshot_without_files_is_refused() -> None:
    with pytest.raises(BadInput):
        TreeBuilder("parquet", Pages().sink, join_coverages).finish()


def test_summary_has_only_values_that_all_files_have() -> None:
    pages = Pages()
    builder = TreeBuilder("parquet", pages.sink, join_coverages)
    builder.add(plain("a", 5), FileStats(coverage=bytes((0, 0, 1, 0)), time=(1.0, 2.0)))
    builder.add(plain("b", 5), FileStats(time=(0.0, 1.5)))
    _, root = builder.finish()
    assert (root.refs[0].coverage, root.refs[0].time) == (b"", (0.0, 2.0))


# --- hostile --------------------------------------------------------------------------------

BAD_PATHS = [
    "",
    "/etc/passwd",
    "../x",
    "a/../../x",
    "a/./b",
    "a//b",
    "a/",
    "a\0b",
    "a\nb",
    "a\\b",
    "..",
    ".",
    "x" * 256,
    "é" * 200,
    "/".join(["a" * 200] * 6),
    "a\ud800",
]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_paths_outside_the_snapshot_are_refused(path: str) -> None:
    with pytest.raises(Malformed):
        manifest.check_path(path)


@pytest.mark.parametrize("path", ["a", "a/b.parquet", "Norder=0/Dir=0/Npix=1.parquet", "…/ü", "..a", "a b"])
def test_valid_paths_are_accepted(path: str) -> None:
    assert manifest.check_path(path) == path


def ref_to(files: list[FileEntry], /, **changes: object) -> PageRef:
    said: dict[str, object] = {
        "first": files[0].path,
        "page": b"p" * 32,
        "files": len(files),
        "size": sum(entry.size for entry in files),
        "rows": sum(entry.rows for entry in files),
    }
    return PageRef(**(said | changes))  # type: ignore[arg-type]  # a test's own mapping


@pytest.mark.parametrize(
    "files",
    [
        [plain("b"), plain("a")],
        [plain("a"), plain("a")],
        [FileEntry(path="../a", size=0, hash=manifest.file_hash(0, ()), chunks=0)],
        [FileEntry(path="a", size=0, hash=b"x" * 32, chunks=0)],
        [FileEntry(path="a", size=10, hash=b"x" * 32, chunks=0)],
        [FileEntry(path="a", size=10, hash=b"x" * 32, chunks=2)],
        [FileEntry(path="a", size=10 * CHUNK, hash=b"x" * 32, chunks=9, index=b"i" * 32)],
        [FileEntry(path="a", size=10 * CHUNK, hash=b"x" * 32, chunks=10)],
        [FileEntry(path="a", size=2 * CHUNK, hash=b"x" * 32, chunks=2, inline=b"x" * 36)],
        [FileEntry(path="a", size=10, hash=b"x" * 32, chunks=1, index=b"i" * 32)],
    ],
)
def test_pages_that_contradict_themselves_are_refused(files: list[FileEntry]) -> None:
    data = codec.encode({"files": files})
    with pytest.raises(Malformed):
        manifest.decode_page(data, ref_to(files))


def test_sums_that_do_not_fit_are_refused() -> None:
    files = [plain("a", 10), plain("b", 20)]
    data = codec.encode({"files": files})
    assert manifest.decode_page(data, ref_to(files)) == tuple(files)
    for wrong in ({"files": 3}, {"size": 31}, {"rows": 1}, {"first": "aa"}):
        with pytest.raises(Malformed):
            manifest.decode_page(data, ref_to(files, **wrong))
    with pytest.raises(Malformed):
        manifest.decode_stats(codec.encode({"files": [FileStats()]}), ref_to(files))
    with pytest.raises(Malformed):
        manifest.decode_root(codec.encode(Root(format="x", level=1, files=3, size=30, rows=0, refs=(ref_to(files),))))


def test_inline_hashes_that_do_not_make_the_file_are_refused() -> None:
    entry = hashed(Pages(), "a", bytes(3 * CHUNK))
    assert manifest.known_hashes(entry) is not None
    for broken in (entry.inline[:35] + b"\1" + entry.inline[36:], entry.inline[36:72] * 3):
        import msgspec

        with pytest.raises(Malformed):
            manifest.known_hashes(msgspec.structs.replace(entry, inline=broken, hash=b"h" * 32))


@pytest.mark.parametrize(
    ("lengths", "end"),
    [
        ([CHUNK + 1], CHUNK + 1),
        ([0, CHUNK], CHUNK),
        ([100, CHUNK], CHUNK + 100),
        ([CHUNK, CHUNK], 3 * CHUNK),
        ([CHUNK, 100], CHUNK + 100),
    ],
)
def test_chunk_pages_with_impossible_lengths_are_refused(lengths: list[int], end: int) -> None:
    entry = FileEntry(path="a", size=100 * CHUNK, hash=b"x" * 32, chunks=100, index=b"i" * 32)
    page = ChunkPage(lengths=b"".join(n.to_bytes(4) for n in lengths), hashes=bytes(32 * len(lengths)))
    with pytest.raises(Malformed):
        manifest.decode_chunk_page(entry, codec.encode(page), 0, end)


def test_indexes_out_of_order_are_refused() -> None:
    entry = FileEntry(path="a", size=1000 * CHUNK, hash=b"x" * 32, chunks=1000, index=b"i" * 32)

    def index(*refs: tuple[int, int], level: int = 0) -> bytes:
        return codec.encode(
            HashIndex(
                level=level,
                refs=tuple(manifest.IndexRef(start=start, first=first, page=b"p" * 32) for start, first in refs),
            )
        )

    assert manifest.decode_index(entry, index((0, 0), (CHUNK, 1)), None, 0, entry.size, 0)
    for bad in (
        index((CHUNK, 0)),
        index((0, 1)),
        index((0, 0), (0, 1)),
        index((0, 0), (CHUNK, 0)),
        index((0, 0), (entry.size, 1)),
        index((0, 0), (CHUNK, 1000)),
    ):
        with pytest.raises(Malformed):
            manifest.decode_index(entry, bad, None, 0, entry.size, 0)
    with pytest.raises(Malformed):
        manifest.decode_index(entry, index((0, 0), level=1), 0, 0, entry.size, 0)


@given(st.binary(max_size=400))
@settings(max_examples=300)
def test_random_bytes_are_malformed_manifests(data: bytes) -> None:
    entry = FileEntry(path="a", size=100 * CHUNK, hash=b"x" * 32, chunks=100, index=b"i" * 32)
    for decode in (
        lambda: manifest.decode_root(data),
        lambda: manifest.decode_page(data, ref_to([plain("a")])),
        lambda: manifest.decode_node(data, 1, ref_to([plain("a")])),
        lambda: manifest.decode_stats(data, ref_to([plain("a")])),
        lambda: manifest.decode_chunk_page(entry, data, 0, CHUNK),
        lambda: manifest.decode_index(entry, data, None, 0, entry.size, 0),
    ):
        try:
            decode()
        except IslandError as error:
            assert isinstance(error, Malformed)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_page_with_a_flipped_bit_is_refused(data: st.DataObject) -> None:
    pages = Pages()
    entry = hashed(pages, "a", bytes(3 * CHUNK + 5), [70_000])
    built(pages, [entry, plain("b", 9)])
    name = data.draw(st.sampled_from(sorted(pages)))
    at = data.draw(st.integers(0, 8 * len(pages[name]) - 1))
    flipped = bytearray(pages[name])
    flipped[at // 8] ^= 1 << at % 8
    assert manifest.blob_hash(bytes(flipped)) != name
