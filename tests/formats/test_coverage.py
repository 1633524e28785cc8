"""HEALPix bitmaps, MOCs and regions, against mocpy and against random positions."""

from __future__ import annotations

import mocpy
import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import Angle, Latitude, Longitude, SkyCoord
from hypothesis import given, settings
from hypothesis import strategies as st

from island.errors import BadInput
from island.formats import coverage
from island.formats.region import Region


@given(st.sets(st.integers(0, 12 * 4**5 - 1), max_size=200))
def test_bitmap_round_trip(cells: set[int]) -> None:
    data = coverage.bitmap(cells)
    assert len(data) == coverage.BITMAP_BYTES
    assert coverage.from_bitmap(data) == sorted(cells)


@given(st.sets(st.integers(0, 200), max_size=5), st.sets(st.integers(0, 200), max_size=5))
def test_intersects_and_union(first: set[int], second: set[int]) -> None:
    a, b = coverage.bitmap(first), coverage.bitmap(second)
    assert coverage.intersects(a, b) == bool(first & second)
    assert coverage.from_bitmap(coverage.union(a, b)) == sorted(first | second)


def test_bitmap_refuses_what_it_is_not() -> None:
    with pytest.raises(BadInput):
        coverage.bitmap([12 * 4**5])
    with pytest.raises(BadInput):
        coverage.bitmap([-1])
    with pytest.raises(BadInput):
        coverage.from_bitmap(b"abc")
    with pytest.raises(BadInput):
        coverage.intersects(bytes(1536), bytes(384))


def test_bits_are_least_significant_first() -> None:
    assert coverage.bitmap([0, 9])[:2] == b"\x01\x02"


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 6), st.data())
def test_moc_is_what_mocpy_reads(order: int, data: st.DataObject) -> None:
    cells = data.draw(st.sets(st.integers(0, coverage.cell_count(order) - 1), max_size=300))
    flags = np.zeros(coverage.cell_count(order), dtype=np.bool_)
    flags[sorted(cells)] = True
    text = coverage.moc_ascii(flags)
    moc = mocpy.MOC.from_string(text, format="ascii")
    assert moc.max_order == order
    assert {int(cell) for cell in moc.flatten()} == cells
    assert np.array_equal(coverage.moc_flags(text, order), flags)


def test_moc_that_does_not_fit_grows_and_never_shrinks() -> None:
    generator = np.random.default_rng(1)
    flags = generator.random(coverage.cell_count(7)) < 0.3
    text = coverage.moc_ascii(flags, limit=20_000)
    assert len(text) <= 20_000
    assert not np.any(flags & ~coverage.moc_flags(text, 7))


@pytest.mark.parametrize("text", ["5/x", "5/12288", "30/1", "1", "5/3-2", "-1/0", "5/-3"])
def test_moc_flags_refuses(text: str) -> None:
    with pytest.raises(BadInput):
        coverage.moc_flags(text)


def test_cell_radius_bounds_every_cell() -> None:
    from cdshealpix.nested import vertices

    for order in range(6):
        cells = np.arange(coverage.cell_count(order), dtype=np.uint64)
        ra, dec = coverage.centres_of(cells, order)
        lon, lat = vertices(cells, order)
        centre = SkyCoord(ra[:, None] * u.deg, dec[:, None] * u.deg)
        farthest = SkyCoord(lon, lat).separation(centre).rad.max()
        assert farthest <= coverage.cell_radius(order) + 1e-12
        assert farthest >= coverage.cell_radius(order) * 0.99


positions = st.tuples(st.floats(0, 360), st.floats(-90, 90))


@settings(deadline=None, max_examples=60)
@given(positions, st.floats(0.01, 180), st.integers(0, 6), st.integers(0, 2**31))
def test_circle_cells_miss_nothing(centre: tuple[float, float], radius: float, order: int, seed: int) -> None:
    region = Region.parse(f"circle {centre[0]} {centre[1]} {radius}")
    generator = np.random.default_rng(seed)
    middle = SkyCoord(centre[0] * u.deg, centre[1] * u.deg)
    away = radius * np.sqrt(generator.random(200))
    points = middle.directional_offset_by(generator.random(200) * 360 * u.deg, away * u.deg)
    ra, dec = points.ra.deg, points.dec.deg
    inside = region.contains(ra, dec)
    assert np.count_nonzero(inside) >= 190  # the rim itself may round outwards
    cells = set(region.healpix(order))
    assert {int(cell) for cell in coverage.cells_of(ra[inside], dec[inside], order)} <= cells
    exact = mocpy.MOC.from_cone(
        Longitude(centre[0] * u.deg), Latitude(centre[1] * u.deg), radius=Angle(radius * u.deg), max_depth=order
    )
    # A handful of cells too many along the rim, not a sky of them.
    assert len(cells) <= len(exact.flatten()) * 1.5 + 24


@settings(deadline=None)
@given(positions, st.floats(0.001, 179), positions)
def test_circle_contains_is_the_great_circle_distance(
    centre: tuple[float, float], radius: float, point: tuple[float, float]
) -> None:
    separation = SkyCoord(*centre, unit="deg").separation(SkyCoord(*point, unit="deg")).deg
    if abs(separation - radius) > 1e-9:
        found = Region("circle", (*centre, radius)).contains(np.array([point[0]]), np.array([point[1]]))[0]
        assert found == (separation <= radius)


def test_circle_over_the_pole_and_the_meridian() -> None:
    pole = Region.parse("circle 10 89 3")
    assert pole.contains(np.array([190.0, 190.0]), np.array([89.0, 87.5])).tolist() == [True, False]
    meridian = Region.parse("CIRCLE(0, 0, 2)")
    assert meridian.contains(np.array([359.0, 1.0, -1.0, 357.0]), np.zeros(4)).tolist() == [True, True, True, False]
    assert not meridian.contains(np.array([np.nan, 0.0, np.inf]), np.array([0.0, 91.0, 0.0])).any()


@settings(deadline=None, max_examples=60)
@given(positions, st.floats(0.01, 360), st.floats(0.01, 180), st.integers(0, 2**31))
def test_box_cells_miss_nothing(centre: tuple[float, float], width: float, height: float, seed: int) -> None:
    region = Region("box", (*centre, width, height))
    generator = np.random.default_rng(seed)
    ra = centre[0] + (generator.random(300) - 0.5) * width
    dec = np.clip(centre[1] + (generator.random(300) - 0.5) * height, -90, 90)
    inside = region.contains(ra, dec)
    assert np.count_nonzero(inside) >= 250
    assert {int(cell) for cell in coverage.cells_of(ra[inside], dec[inside], 5)} <= set(region.healpix(5))


@settings(deadline=None, max_examples=40)
@given(st.floats(0, 360), st.floats(-60, 60), st.floats(0.5, 20), st.integers(3, 8), st.integers(0, 2**31))
def test_polygon(ra0: float, dec0: float, radius: float, corners: int, seed: int) -> None:
    middle = SkyCoord(ra0 * u.deg, dec0 * u.deg)
    rim = middle.directional_offset_by(np.arange(corners) * (360 / corners) * u.deg, radius * u.deg)
    text = "polygon " + " ".join(f"{ra} {dec}" for ra, dec in zip(rim.ra.deg, rim.dec.deg, strict=True))
    region = Region.parse(text)
    assert region.contains(np.array([ra0]), np.array([dec0]))[0]
    generator = np.random.default_rng(seed)
    points = middle.directional_offset_by(generator.random(200) * 360 * u.deg, radius * generator.random(200) * u.deg)
    inside = region.contains(points.ra.deg, points.dec.deg)
    exact = mocpy.MOC.from_polygon_skycoord(rim, max_depth=5)
    cells = set(region.healpix(5))
    assert {int(c) for c in coverage.cells_of(points.ra.deg[inside], points.dec.deg[inside], 5)} <= cells
    assert {int(c) for c in exact.flatten()} <= cells
    inner = radius * np.cos(np.pi / corners) * 0.9
    near = points.separation(middle).deg < inner
    assert inside[near].all()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "circle",
        "circle 1 2",
        "circle 1 2 x",
        "circle nan 0 1",
        "circle 0 91 1",
        "circle 0 0 0",
        "circle 0 0 -1",
        "circle 400 0 1",
        "circle 0 0 1e309",
        "square 0 0 1",
        "polygon 0 0 1 1",
        "polygon 0 0 1 1 0 0",
        "polygon 0 0 10 0 10 10 5 2 0 10",
        "box 0 0 0 1",
        "circle 0 0 1; drop table",
        "circle " + "1 " * 5000,
    ],
)
def test_regions_refused(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        Region.parse(text)
    assert "circle" in caught.value.hint


def test_region_bitmap_finds_the_dataset_that_lies_there() -> None:
    data = coverage.bitmap(int(cell) for cell in coverage.cells_of(np.array([187.706]), np.array([12.391]), 5))
    assert coverage.intersects(Region.parse("circle 187.7 12.4 5").bitmap(), data)
    assert not coverage.intersects(Region.parse("circle 0 -60 5").bitmap(), data)


def test_region_text_round_trip() -> None:
    region = Region.parse("circle(187.7, 12.4, 5)")
    assert Region.parse(str(region)) == region
