"""The decisions of the chunk store, as examples and properties."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from island.kernel.ids import IslandId
from island.replicas import core
from island.replicas.core import ChunkBorders, EvictionCandidate, FailedHolder, HolderLoad

EDGES = ChunkBorders(0, [0, 10, 30, 60, 100])


def test_cover_is_the_chunks_that_share_a_byte() -> None:
    assert EDGES.cover(0, 1) == (0, 1)
    assert EDGES.cover(9, 10) == (0, 1)
    assert EDGES.cover(9, 11) == (0, 2)
    assert EDGES.cover(10, 30) == (1, 2)
    assert EDGES.cover(0, 100) == (0, 4)
    first, last = EDGES.cover(50, 50)
    assert first == last


def test_edges_of_a_part_keep_the_numbers_of_the_file() -> None:
    part = ChunkBorders(7, [1000, 1010, 1030])
    assert part.cover(1010, 1011) == (8, 9)
    assert part.offset(9) == 1030
    assert part.size((7, 9)) == 30


@given(st.lists(st.sampled_from([core.ABSENT, core.STORED, core.VERIFIED]), max_size=300))
def test_a_bitmap_survives_being_stored(states: list[int]) -> None:
    present = bytearray(states)
    stored = core.unpack_bitmap(core.pack_bitmap(present), len(present))
    assert [bool(a) for a in stored] == [bool(a) for a in present]
    assert set(stored) <= {core.ABSENT, core.STORED}


@given(st.binary(max_size=8), st.integers(0, 100))
def test_any_bits_make_a_bitmap_of_the_right_length(bits: bytes, chunks: int) -> None:
    assert len(core.unpack_bitmap(bits, chunks)) == chunks


@given(st.lists(st.integers(0, 2), min_size=1, max_size=60), st.data())
def test_missing_is_exactly_what_is_absent(states: list[int], data: st.DataObject) -> None:
    present = bytearray(states)
    first = data.draw(st.integers(0, len(states)))
    last = data.draw(st.integers(first, len(states)))
    runs = core.missing(present, (first, last))
    found = [index for run in runs for index in range(*run)]
    assert found == [index for index in range(first, last) if present[index] == core.ABSENT]
    assert all(a[1] < b[0] for a, b in itertools.pairwise(runs))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 120), st.integers(1, 5))
def test_batches_ask_for_everything_once_within_the_limits(sizes: list[int], limit: int, count: int) -> None:
    edges = ChunkBorders(0, [0, *itertools.accumulate(sizes)])
    run = (0, len(sizes))
    batches = list(core.group_requests([("a", edges, run), ("b", edges, run)], limit, count))
    asked = [(key, index) for batch in batches for key, _, (a, b) in batch for index in range(a, b)]
    assert asked == [("a", i) for i in range(len(sizes))] + [("b", i) for i in range(len(sizes))]
    for batch in batches:
        assert len(batch) <= count
        size = sum(edges.size(piece) for _, _, piece in batch)
        assert size <= limit or (len(batch) == 1 and batch[0][2][1] - batch[0][2][0] == 1)


def _candidate(name: str, **changes: object) -> HolderLoad:
    plain: dict[str, object] = {
        "linked": True,
        "bandwidth": 1e6,
        "rtt": 0.01,
        "queued": 0,
        "strikes": 0,
        "rest_until": 0.0,
    }
    return HolderLoad(island=IslandId(name), **{**plain, **changes})  # type: ignore[arg-type]  # as in the dict


def test_the_quicker_holder_is_asked_until_its_queue_is_long() -> None:
    slow, quick = _candidate("slow", bandwidth=1e6), _candidate("quick", bandwidth=10e6)
    assert core.choose_holder([slow, quick], 1_000_000, 0.0) == "quick"
    busy = _candidate("quick", bandwidth=10e6, queued=20_000_000)
    assert core.choose_holder([slow, busy], 1_000_000, 0.0) == "slow"


def test_a_holder_without_a_link_or_with_a_strike_comes_last() -> None:
    good = _candidate("good", bandwidth=1.0)
    assert core.choose_holder([_candidate("away", linked=False), good], 10, 0.0) == "good"
    assert core.choose_holder([_candidate("liar", strikes=1), good], 10, 0.0) == "good"
    assert core.choose_holder([_candidate("liar", strikes=1)], 10, 0.0) == "liar"


def test_nobody_is_chosen_while_all_rest() -> None:
    assert core.choose_holder([_candidate("a", rest_until=5.0)], 10, 4.0) is None
    assert core.choose_holder([_candidate("a", rest_until=5.0)], 10, 5.0) == "a"
    assert core.choose_holder([], 10, 5.0) is None


def test_the_error_says_who_and_since_when() -> None:
    clusters = FailedHolder("clusters", "down", 43_391.0)
    assert core.explain_absence([clusters]) == "held only by clusters (down since 12:03:11 UTC)"
    assert "no known island holds it" in core.explain_absence([])
    assert "sent bytes" in core.explain_absence([FailedHolder("x", "up", 0.0, "sent bytes that do not match")])


def _kept(ident: int, **changes: object) -> EvictionCandidate:
    plain: dict[str, object] = {
        "bytes_local": 100,
        "used_at": float(ident),
        "pinned": False,
        "in_use": False,
        "elsewhere": True,
    }
    return EvictionCandidate(id=ident, **{**plain, **changes})  # type: ignore[arg-type]  # as in the dict


def test_eviction_takes_the_least_recently_used_and_no_more_than_needed() -> None:
    assert core.evict([_kept(2), _kept(1), _kept(3)], 150) == [1, 2]


def test_eviction_spares_what_is_pinned_in_use_or_held_by_nobody_else() -> None:
    spared = [_kept(1, pinned=True), _kept(2, in_use=True), _kept(3, elsewhere=False)]
    assert core.evict([*spared, _kept(4)], 100) == [4]
    assert core.evict([*spared, _kept(4)], 101) == []


def test_paths_that_could_leave_the_store_are_not_safe() -> None:
    assert core.safe_path("a/b=1/c.parquet")
    for path in ("", "/a", "a//b", "../a", "a/..", "a/./b", "a\0b", "a/" + "x" * 256, "x/" * 600):
        assert not core.safe_path(path), path
