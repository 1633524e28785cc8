"""Coverage as it travels, MOCs, records and cards that fit, times, words, and names of views."""

from __future__ import annotations

import math
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from island.catalog import core
from island.catalog.messages import CARD_LIMIT, RECORD_LIMIT, Card, CardColumn, DatasetRecord, SearchQuery
from island.catalog.view_names import view_name, view_names
from island.errors import BadInput
from island.formats import coverage
from island.kernel import codec
from island.kernel.codec import Malformed

RECORD = DatasetRecord(
    format="parquet", rows=1, size=1, files=1, snapshot="a" * 64, created=1.0, updated=2.0, card="b" * 64
)


def bitmap_of(order: int, cells: set[int]) -> bytes:
    number = sum(1 << cell for cell in cells)
    return number.to_bytes((core.cells(order) + 7) // 8, "little")


ORDERS = st.integers(0, 5)


@st.composite
def bitmaps(draw: st.DrawFn, order: int | None = None) -> tuple[int, set[int]]:
    level = draw(ORDERS) if order is None else order
    most = core.cells(level) - 1
    runs = draw(st.lists(st.tuples(st.integers(0, most), st.integers(1, 40)), max_size=30))
    return level, {cell for start, length in runs for cell in range(start, min(start + length, most + 1))}


@given(bitmaps())
def test_coverage_survives_packing_with_little_growth(found: tuple[int, set[int]]) -> None:
    order, cells = found
    bitmap = bitmap_of(order, cells)
    packed = core.pack_coverage(bitmap)
    assert core.unpack_coverage(packed) == (order, bitmap)
    assert len(packed) <= len(bitmap) + 2


@given(bitmaps(5))
def test_coarser_coverage_contains_the_finer_cells(found: tuple[int, set[int]]) -> None:
    _, cells = found
    for order in range(6):
        assert core.coarser(bitmap_of(5, cells), order) == bitmap_of(order, {cell >> 2 * (5 - order) for cell in cells})


@given(st.lists(bitmaps(), min_size=1, max_size=4))
def test_a_union_is_never_smaller(found: list[tuple[int, set[int]]]) -> None:
    order, bitmap = core.unpack_coverage(core.join_coverages([core.pack_coverage(bitmap_of(*one)) for one in found], 5))
    least = min(one[0] for one in found)
    assert order == least
    assert bitmap == bitmap_of(order, {cell >> 2 * (level - order) for level, cells in found for cell in cells})


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"\5",
        bytes((6, 0)) + bytes(6144),
        bytes((5, 2)),
        bytes((5, 0)) + bytes(1535),
        bytes((0, 0)) + b"\0\xf0",
        bytes((0, 1)),
        bytes((0, 1)) + b"\x0d",
        bytes((0, 1)) + b"\x0b",
        bytes((0, 1)) + b"\x8c",
        bytes((5, 1)) + b"\xff\xff\xff\xff\x0f",
    ],
)
def test_broken_coverages_are_refused(packed: bytes) -> None:
    with pytest.raises(Malformed):
        core.unpack_coverage(packed)


@given(st.binary(max_size=60))
def test_random_bytes_are_malformed_coverages(packed: bytes) -> None:
    try:
        order, bitmap = core.unpack_coverage(packed)
    except Malformed:
        return
    assert len(bitmap) == (core.cells(order) + 7) // 8


# --- MOCs -----------------------------------------------------------------------------------


@given(bitmaps(4))
@settings(deadline=None)
def test_mocs_are_equal_to_those_of_the_formats_package(found: tuple[int, set[int]]) -> None:
    _, cells = found
    flags = coverage.unpack_flags(bitmap_of(4, cells))
    text = core.moc_of_coverage(core.pack_coverage(bitmap_of(4, cells)))
    assert text == coverage.moc_ascii(flags)
    order, ranges = core.moc_ranges(text)
    assert (order, {cell for low, high in ranges for cell in range(low, high)}) == (4, cells)
    assert core.moc_area(text) == pytest.approx(len(cells) / core.cells(4) * core.FULL_SKY_DEG2)
    coarse = core.moc_coarser(text, 2)
    assert core.moc_ranges(coarse)[0] == 2
    assert {c for low, high in core.moc_ranges(coarse)[1] for c in range(low, high)} == {cell >> 4 for cell in cells}
    wanted = sorted(random.Random(len(cells)).sample(range(core.cells(4)), 20))
    assert core.moc_overlaps(text, wanted, 4) == bool(cells & set(wanted))
    assert core.moc_union([text, text]) == text


@pytest.mark.parametrize("text", ["5/x", "5/99999999", "99/1", "5/3-1", "-1/2", "5/1-2-3", "a/1", "5/٣"])
def test_invalid_mocs_are_refused(text: str) -> None:
    with pytest.raises(BadInput):
        core.moc_ranges(text)


def test_long_moc_becomes_coarser_and_never_covers_less() -> None:
    cells = set(range(0, core.cells(5), 2))
    text = core.moc_of_coverage(core.pack_coverage(bitmap_of(5, cells)))
    assert len(text) > 20_000
    shorter = core.moc_fit(text, 1000)
    assert len(shorter) <= 1000
    assert core.moc_area(shorter) >= core.moc_area(text)


# --- records and cards ----------------------------------------------------------------------


def test_largest_record_fits_the_limit() -> None:
    noise = random.Random(3).randbytes(1536)
    names, hidden = core.fit_columns(f"column_{n:05d}_é" for n in range(5000))
    assert sum(len(name.encode()) + 1 for name in names) <= 1024
    assert hidden == 5000 - len(names) > 0
    record = core.fit_record(
        msgspec.structs.replace(
            RECORD,
            title="é" * 5000,
            rows=2**62,
            size=2**62,
            coverage=core.pack_coverage(noise),
            time=(-1e14, 1e14),
            columns=names,
            hidden=hidden,
        )
    )
    data = codec.encode(record)
    assert len(data) <= RECORD_LIMIT
    assert codec.decode(data, DatasetRecord, limit=RECORD_LIMIT) == record
    assert core.unpack_coverage(record.coverage) == (5, noise)
    assert record.title.endswith("…")


def test_plain_columns_come_before_nested_ones() -> None:
    assert core.fit_columns(["a.b", "c", "d.e.f", "g"]) == (("c", "g", "a.b", "d.e.f"), 0)
    assert core.fit_columns(["x" * 300, "y"]) == ((), 2)


@pytest.mark.parametrize("columns", [10, 3000, 50_000])
def test_largest_card_fits_the_limit(columns: int) -> None:
    cells = set(range(0, core.cells(5), 2))
    card = Card(
        snapshot="a" * 64,
        format="parquet",
        description="d" * 30_000,
        provenance="p" * 30_000,
        columns=tuple(
            CardColumn(name=f"name.{n}", type="double", unit="mas/yr", ucd="pos.pm", description="words " * 30)
            for n in range(columns)
        ),
        moc=core.moc_of_coverage(core.pack_coverage(bitmap_of(5, cells))),
        warnings=("w" * 2000,) * 100,
    )
    data = core.fit_card(card)
    assert len(data) <= CARD_LIMIT
    kept = codec.decode(data, Card, limit=CARD_LIMIT)
    assert len(kept.columns) + kept.hidden == columns
    assert core.moc_area(kept.moc) >= core.moc_area(card.moc)
    assert bool(kept.cut) == (len(codec.encode(card)) > CARD_LIMIT)


# --- times, columns, words ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("2019-12-01..2019-12-31", 1575158400.0, 1577836799.999),
        ("..1970-01-01", -math.inf, 86399.999),
        ("1970-01-02..", 86400.0, math.inf),
        ("1970-01-01T00:00:10..1970-01-01T00:00:20Z", 10.0, 20.0),
        ("1970-01-01T02:00:00+02:00..", 0.0, math.inf),
        ("1970..1970-01", 0.0, 31 * 86400.0 - 0.001),
        (" 1970-12..1970 ", 334 * 86400.0, 365 * 86400.0 - 0.001),
    ],
)
def test_times(text: str, low: float, high: float) -> None:
    assert core.parse_times(text) == (low, high)


@pytest.mark.parametrize(
    "text", ["", "..", "yesterday..", "2019", "2020..2019", "2019-13-01..", "1e9..", "9999..", "2019-02-30.."]
)
def test_invalid_times_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        core.parse_times(text)
    assert "2019-12-01..2019-12-31" in caught.value.hint


def test_columns_by_name_beginning_and_ucd() -> None:
    columns = [CardColumn(name="candidate.MagPSF", type="float", ucd="phot.mag;em.opt")]
    for wanted in ("magpsf", "MAG", "candidate.mag", "phot.mag", "PHOT", "em.opt"):
        assert core.has_column(wanted, (), columns)
    assert not core.has_column("psf", ("ra", "dec"), columns)
    assert core.has_column("RA", ("ra", "dec"), ())


@given(st.text(max_size=300))
def test_any_text_is_plain_words(text: str) -> None:
    assert all(word and word.isalnum() for word in core.tokens(text))
    assert len(core.tokens(text)) <= 32


def test_a_query_is_bounded() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"words": "x" * 2000}, SearchQuery)


# --- views ----------------------------------------------------------------------------------


def test_views_have_a_long_name_and_a_short_one_if_it_is_unique() -> None:
    assert view_name("obs.one", "gaia-dr3") == "obs_one__gaia_dr3"
    assert view_names([("my.site", "open-ngc")]) == [("my_site__open_ngc", "open_ngc")]
    assert view_names([("a", "x"), ("b", "X"), ("b", "y")]) == [("a__x",), ("b__X",), ("b__y", "y")]
    assert view_names([]) == []
    with pytest.raises(BadInput, match="would both have the view"):
        view_names([("a", "x-y"), ("a", "x_y")])


# --- cells of the index ---------------------------------------------------------------------


@given(bitmaps(4), bitmaps(4))
@settings(deadline=None)
def test_cells_of_the_index_meet_exactly_where_coverages_do(
    one: tuple[int, set[int]], two: tuple[int, set[int]]
) -> None:
    own, above = core.index_cells(core.pack_coverage(bitmap_of(4, one[1])))
    among_own, among_above = core.query_cells(two[1], 4)
    meets = bool(set(own) & set(among_own) or set(above) & set(among_above))
    assert meets == bool(one[1] & two[1])
    assert core.set_cells(bitmap_of(4, one[1])) == sorted(one[1])


def test_the_whole_sky_is_twelve_cells() -> None:
    own, above = core.index_cells(core.pack_coverage(b"\xff" * 1536))
    assert (len(own), above) == (12, [])
    assert core.index_cells(b"") == ([], [])
