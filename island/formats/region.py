"""Regions of the sky in text form: `circle RA DEC RADIUS`, `box`, `polygon`; ICRS, degrees."""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import numpy as np

from island.errors import BadInput
from island.formats import coverage
from island.formats.coverage import Cells, Flags, Floats

MAX_TEXT = 4096
MAX_VERTICES = 64
_FORMS = (
    "Write 'circle RA DEC RADIUS', 'box RA DEC WIDTH HEIGHT' or 'polygon RA DEC RA DEC RA DEC ...'"
    " in degrees (ICRS), for example 'circle 187.7 12.4 5'."
)
# Tolerance in radians for rounding in the conversion of degrees to unit vectors and back: far
# above double precision, far below an arcsecond.
_SLACK = 1e-9


class Region(msgspec.Struct, frozen=True):
    """A region of the sky. `numbers` are the numbers of its text form, in degrees.

    circle: centre and radius of a spherical cap, border included.
    box: centre, width and height; the range ra ± width/2 (in coordinate, not along a great
    circle) by dec ± height/2.
    polygon: a convex polygon of great circles, smaller than a hemisphere, border included.
    """

    shape: Literal["circle", "box", "polygon"]
    numbers: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> Region:
        """Parse the text form of a region. Raises BadInput with the reason."""
        if len(text) > MAX_TEXT:
            raise BadInput(f"the region has more than {MAX_TEXT} characters", hint=_FORMS)
        words = text.replace(",", " ").replace("(", " ").replace(")", " ").split()
        shape = words[0].lower() if words else ""
        try:
            numbers = tuple(float(word) for word in words[1:])
        except ValueError as error:
            raise BadInput(f"region {text!r} contains a word that is not a number", hint=_FORMS) from error
        if not all(math.isfinite(number) for number in numbers):
            raise BadInput(f"region {text!r} has a number that is not finite", hint=_FORMS)
        if shape == "circle":
            return cls._circle(text, numbers)
        if shape == "box":
            return cls._box(text, numbers)
        if shape == "polygon":
            return cls._polygon(text, numbers)
        raise BadInput(f"region {text!r} does not begin with circle, box or polygon", hint=_FORMS)

    @classmethod
    def _circle(cls, text: str, numbers: tuple[float, ...]) -> Region:
        if len(numbers) != 3:
            raise BadInput(f"region {text!r}: a circle needs three numbers", hint=_FORMS)
        _check_position(text, numbers[0], numbers[1])
        if not 0 < numbers[2] <= 180:
            raise BadInput(f"region {text!r}: the radius must be more than 0 and at most 180 degrees", hint=_FORMS)
        return cls("circle", numbers)

    @classmethod
    def _box(cls, text: str, numbers: tuple[float, ...]) -> Region:
        if len(numbers) != 4:
            raise BadInput(f"region {text!r}: a box needs four numbers", hint=_FORMS)
        _check_position(text, numbers[0], numbers[1])
        if not (0 < numbers[2] <= 360 and 0 < numbers[3] <= 180):
            raise BadInput(
                f"region {text!r}: the width must be more than 0 and at most 360 degrees,"
                " the height more than 0 and at most 180 degrees",
                hint=_FORMS,
            )
        return cls("box", numbers)

    @classmethod
    def _polygon(cls, text: str, numbers: tuple[float, ...]) -> Region:
        if len(numbers) < 6 or len(numbers) % 2 or len(numbers) > 2 * MAX_VERTICES:
            raise BadInput(f"region {text!r}: a polygon needs 3 to {MAX_VERTICES} pairs of numbers", hint=_FORMS)
        for ra, dec in zip(numbers[::2], numbers[1::2], strict=True):
            _check_position(text, ra, dec)
        region = cls("polygon", numbers)
        vertices = region._vertices()
        inside = vertices @ region._edges().T
        # In a convex polygon each vertex lies on its own two edges and strictly inside all others.
        on_edge = np.eye(len(vertices), dtype=bool) | np.roll(np.eye(len(vertices), dtype=bool), -1, axis=1)
        if not np.all((inside > 1e-12) | on_edge):
            raise BadInput(f"region {text!r}: the polygon is not convex, or crosses itself", hint=_FORMS)
        return region

    def __str__(self) -> str:
        return " ".join((self.shape, *(f"{number:.15g}" for number in self.numbers)))

    def contains(self, ra: Floats, dec: Floats) -> Flags:
        """Whether each position (degrees) lies inside. False for NaN and for declinations beyond a pole."""
        ra, dec = np.asarray(ra, dtype=np.float64), np.asarray(dec, dtype=np.float64)
        good = np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90.0)
        lon, lat = np.where(good, ra, 0.0), np.where(good, dec, 0.0)
        if self.shape == "circle":
            inside = _distance(lon, lat, self.numbers[0], self.numbers[1]) <= self.numbers[2] + 1e-12
        elif self.shape == "box":
            inside = self._in_box(lon, lat, 0.0)
        else:
            inside = np.all(_unit(lon, lat) @ self._edges().T >= -1e-15, axis=-1)
        return np.asarray(inside & good, dtype=np.bool_)

    def healpix(self, order: int) -> list[int]:
        """The nested cells of an order (0 to 12) that may intersect the region, in ascending order.

        Every cell that intersects the region is included; a few others near its border may be.
        The search begins with the twelve base cells and keeps those whose centre is close enough.
        """
        if not 0 <= order <= 12:
            raise BadInput(f"HEALPix order {order} is outside 0 to 12", hint="Coverage bitmaps have order 5.")
        cells: Cells = np.arange(12, dtype=np.uint64)
        for level in range(order + 1):
            if level:
                cells = (
                    np.repeat(cells << np.uint64(2), 4) + np.tile(np.arange(4, dtype=np.uint64), cells.size)
                ).astype(np.uint64)
            ra, dec = coverage.centres_of(cells, level)
            cells = cells[self._near(ra, dec, coverage.cell_radius(level) + _SLACK)]
        return [int(cell) for cell in np.sort(cells)]

    def bitmap(self, order: int = coverage.BITMAP_ORDER) -> bytes:
        """The result of `healpix` as a bitmap, for comparison with the coverage of a dataset."""
        return coverage.bitmap(self.healpix(order), order)

    def _near(self, ra: Floats, dec: Floats, reach: float) -> Flags:
        """Whether each point lies within `reach` radians of the region. Some points beyond it may be included."""
        if self.shape == "circle":
            near = _distance(ra, dec, self.numbers[0], self.numbers[1]) <= self.numbers[2] + math.degrees(reach)
        elif self.shape == "box":
            near = self._in_box(ra, dec, math.degrees(reach))
        else:
            # The distance to a half-space is the arc below its great circle. Near a sharp corner
            # this includes a few cells more than necessary.
            near = np.all(_unit(ra, dec) @ self._edges().T >= -math.sin(min(reach, math.pi / 2)), axis=-1)
        return np.asarray(near, dtype=np.bool_)

    def _in_box(self, ra: Floats, dec: Floats, margin: float) -> Flags:
        """Whether each position lies inside the box extended by `margin` degrees of arc."""
        centre_ra, centre_dec, width, height = self.numbers
        across = np.abs(np.mod(ra - centre_ra + 180.0, 360.0) - 180.0)
        in_dec = np.abs(dec - centre_dec) <= height / 2 + margin
        if margin == 0.0:
            return np.asarray((across <= width / 2) & in_dec, dtype=np.bool_)
        # An arc of `margin` that starts at a declination up to `highest` spans at most `spread` in ra.
        highest = min(90.0, max(abs(centre_dec - height / 2), abs(centre_dec + height / 2)) + margin)
        sine = math.sin(math.radians(margin)) / max(math.cos(math.radians(highest)), 1e-12)
        spread = 180.0 if sine >= 1.0 or margin >= 90.0 else math.degrees(math.asin(sine))
        return np.asarray((across <= width / 2 + spread) & in_dec, dtype=np.bool_)

    def _vertices(self) -> Floats:
        return _unit(np.array(self.numbers[::2]), np.array(self.numbers[1::2]))

    def _edges(self) -> Floats:
        """Inward unit normals of the polygon's edges; edge i runs from vertex i to vertex i + 1."""
        vertices = self._vertices()
        normals = np.cross(vertices, np.roll(vertices, -1, axis=0))
        lengths = np.linalg.norm(normals, axis=1, keepdims=True)
        if np.any(lengths < 1e-12):
            raise BadInput("two neighbouring vertices of the polygon are equal or opposite", hint=_FORMS)
        normals = normals / lengths
        if np.sum(normals @ vertices.sum(axis=0)) < 0:
            normals = -normals
        return np.asarray(normals, dtype=np.float64)


def _check_position(text: str, ra: float, dec: float) -> None:
    if not -360.0 <= ra <= 360.0:
        raise BadInput(f"region {text!r}: right ascension {ra} is outside 0 to 360 degrees", hint=_FORMS)
    if not -90.0 <= dec <= 90.0:
        raise BadInput(f"region {text!r}: declination {dec} is outside -90 to 90 degrees", hint=_FORMS)


def _distance(ra: Floats, dec: Floats, ra0: float, dec0: float) -> Floats:
    """Great-circle distances in degrees to one point, accurate at all distances (Vincenty's formula)."""
    delta = np.radians(ra - ra0)
    lat, lat0 = np.radians(dec), math.radians(dec0)
    east = np.cos(lat) * np.sin(delta)
    north = math.cos(lat0) * np.sin(lat) - math.sin(lat0) * np.cos(lat) * np.cos(delta)
    along = math.sin(lat0) * np.sin(lat) + math.cos(lat0) * np.cos(lat) * np.cos(delta)
    return np.asarray(np.degrees(np.arctan2(np.hypot(east, north), along)), dtype=np.float64)


def _unit(ra: Floats, dec: Floats) -> Floats:
    lon, lat = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)
