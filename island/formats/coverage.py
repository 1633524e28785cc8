"""Sky coverage on the nested HEALPix grid, ICRS: bitmaps, cells of positions, MOCs.

A coverage is never smaller than the truth. A bitmap of order n has 12 * 4**n bits, cell i in
bit i % 8 (least significant first) of byte i // 8: 1,536 bytes at order 5. A MOC is written in
the IVOA's ASCII form (`5/17 20-23 6/100`; MOC 2.0, section 4.3.1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from island.errors import BadInput

BITMAP_ORDER = 5
BITMAP_BYTES = 1536
FINE_ORDER = 10
MAX_MOC_BYTES = 128 * 1024

Cells = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Bitmap = bytes


def cell_count(order: int) -> int:
    """Cells of the whole sky at an order."""
    return int(12 * 4**order)


def bitmap(ipix: Iterable[int], order: int = BITMAP_ORDER) -> bytes:
    """The bitmap of some cells of one order. Raises BadInput for a cell outside the grid."""
    cells = np.fromiter((int(cell) for cell in ipix), dtype=np.int64)
    if cells.size and (cells.min() < 0 or cells.max() >= cell_count(order)):
        raise BadInput(f"a HEALPix cell lies outside order {order}", hint=f"Cells are 0 to {cell_count(order) - 1}.")
    flags = np.zeros(cell_count(order), dtype=np.bool_)
    flags[cells] = True
    return pack_flags(flags)


def from_bitmap(data: bytes) -> list[int]:
    """The cells that are set, ascending. Raises BadInput unless the length is that of an order 0 to 10."""
    return [int(cell) for cell in np.flatnonzero(unpack_flags(data))]


def pack_flags(flags: Flags) -> bytes:
    """Flags of all cells of an order as a bitmap."""
    return np.packbits(flags, bitorder="little").tobytes()


def unpack_flags(data: bytes) -> Flags:
    """The inverse of `pack_flags`; BadInput where the length is that of no order from 0 to 10."""
    for order in range(FINE_ORDER + 1):
        if len(data) == (cell_count(order) + 7) // 8:
            bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=cell_count(order), bitorder="little")
            return bits.astype(np.bool_)
    raise BadInput(f"a coverage bitmap of {len(data)} bytes has no HEALPix order", hint="Order 5 has 1,536 bytes.")


def intersects(first: bytes, second: bytes) -> bool:
    """Whether two bitmaps of one order share a cell. Raises BadInput where their lengths differ."""
    if len(first) != len(second):
        raise BadInput("two coverage bitmaps differ in order", hint="Compare bitmaps of one order.")
    return bool(int.from_bytes(first, "little") & int.from_bytes(second, "little"))


def union(first: bytes, second: bytes) -> bytes:
    """The cells of either bitmap. Raises BadInput where their lengths differ."""
    if len(first) != len(second):
        raise BadInput("two coverage bitmaps differ in order", hint="Join bitmaps of one order.")
    return (int.from_bytes(first, "little") | int.from_bytes(second, "little")).to_bytes(len(first), "little")


def cells_of(ra: Floats, dec: Floats, order: int) -> Cells:
    """The nested cell of every position; degrees, ra of any turn, dec within -90 to 90, all finite."""
    import astropy.units as u
    from astropy.coordinates import Latitude, Longitude
    from cdshealpix.nested import lonlat_to_healpix

    if not ra.size:
        return np.zeros(0, dtype=np.uint64)
    found = lonlat_to_healpix(Longitude(np.mod(ra, 360.0) * u.deg), Latitude(dec * u.deg), order)
    return np.asarray(found, dtype=np.uint64)


def centres_of(cells: Cells, order: int) -> tuple[Floats, Floats]:
    """Right ascension and declination in degrees of the centres of cells."""
    from cdshealpix.nested import healpix_to_lonlat

    lon, lat = healpix_to_lonlat(cells, order)
    return np.asarray(lon.deg, dtype=np.float64), np.asarray(lat.deg, dtype=np.float64)


def cell_radius(order: int) -> float:
    """The largest distance in radians from a cell's centre to a point of it.

    The cell with that distance touches the border of the polar caps: Gorski et al. 2005,
    ApJ 622, 759, section 5.
    """
    nside = 2**order
    z_side, phi_side = 2.0 / 3.0, math.pi / (4 * nside)
    z_top = 1.0 - (1.0 - 1.0 / nside) ** 2 / 3.0
    side = (math.sqrt(1 - z_side**2) * math.cos(phi_side), math.sqrt(1 - z_side**2) * math.sin(phi_side), z_side)
    top = (math.sqrt(max(0.0, 1 - z_top**2)), 0.0, z_top)
    return math.acos(max(-1.0, min(1.0, sum(a * b for a, b in zip(side, top, strict=True)))))


def degrade(flags: Flags, steps: int = 1) -> Flags:
    """The flags of a coarser order: a cell is set where any of its parts is."""
    for _ in range(steps):
        flags = np.asarray(_sisters(flags) != 0, dtype=np.bool_)
    return flags


def _sisters(flags: Flags) -> npt.NDArray[np.uint32]:
    """Each four sisters as one number, which is much faster than an axis: 0 for none set, 0x01010101 for all."""
    return np.ascontiguousarray(flags).view(np.uint32)


def order_of(flags: Flags) -> int:
    """The order that an array of flags has."""
    return round(math.log(flags.size / 12, 4))


def moc_ascii(flags: Flags, limit: int = MAX_MOC_BYTES) -> str:
    """The flags as an ASCII MOC of at most `limit` bytes; coarser, never smaller, where it would not fit."""
    while True:
        levels = _levels(flags)
        # A run takes two bytes or more, so what cannot fit is seen before it is written.
        if order_of(flags) == 0 or 2 * sum(_starts(left).size for left in levels) <= limit:
            text = _ascii(levels)
            if len(text) <= limit or order_of(flags) == 0:
                return text
        flags = degrade(flags)


def _levels(flags: Flags) -> list[Flags]:
    """The cells of a normal MOC, one array an order from 0 up: four sisters became their parent."""
    levels: list[Flags] = []
    while flags.size > 12:
        whole = np.asarray(_sisters(flags) == 0x01010101, dtype=np.bool_)
        left = np.array(flags)
        left.view(np.uint32)[whole] = 0
        levels.append(left)
        flags = whole
    return [flags, *reversed(levels)]


def _starts(flags: Flags) -> Any:
    """Where runs of set cells begin."""
    if _is_sparse(flags):
        cells = np.flatnonzero(flags)
        return cells[np.diff(cells, prepend=-2) != 1]
    return np.flatnonzero(flags & ~np.concatenate(([False], flags[:-1])))


def _ends(flags: Flags) -> Any:
    """Where runs of set cells end, inclusive."""
    if _is_sparse(flags):
        cells = np.flatnonzero(flags)
        return cells[np.diff(cells, append=flags.size + 1) != 1]
    return np.flatnonzero(flags & ~np.concatenate((flags[1:], [False])))


def _is_sparse(flags: Flags) -> bool:
    """Whether a list of the set cells is small beside the flags."""
    return bool(np.count_nonzero(flags) < flags.size // 64)


def moc_flags(text: str, order: int = FINE_ORDER) -> Flags:
    """The cells of an ASCII MOC as flags of an order; finer cells count whole. Raises BadInput for no MOC."""
    flags: Flags = np.zeros(cell_count(order), dtype=np.bool_)
    level = -1
    try:
        for word in text.replace(",", " ").replace("/", "/ ").split():
            if word.endswith("/"):
                level = int(word[:-1])
                continue
            first, _, last = word.partition("-")
            low, high = int(first), int(last or first)
            if not (0 <= level <= 29 and 0 <= low <= high < cell_count(level)):
                raise ValueError(word)
            if level <= order:
                width = 4 ** (order - level)
                flags[low * width : (high + 1) * width] = True
            else:
                flags[low >> (2 * (level - order)) : (high >> (2 * (level - order))) + 1] = True
    except ValueError as error:
        raise BadInput(f"this is no ASCII MOC: {str(error)[:80]}", hint="It looks like '5/17 20-23 6/100'.") from error
    return flags


def _ascii(levels: list[Flags]) -> str:
    parts = []
    for order, flags in enumerate(levels):
        firsts, lasts = _starts(flags), _ends(flags)
        runs = [f"{a}" if a == b else f"{a}-{b}" for a, b in zip(firsts.tolist(), lasts.tolist(), strict=True)]
        # The finest order is always written: it is the resolution of the MOC.
        if runs or order == len(levels) - 1:
            parts.append(f"{order}/" + " ".join(runs))
    return " ".join(parts)


class SkyTally:
    """Gathers the cells of positions as they are read, for one file (order 5) or a dataset (order 10)."""

    def __init__(self, order: int) -> None:
        self.order = order
        self.flags: Flags = np.zeros(cell_count(order), dtype=np.bool_)
        self.rows = 0

    def add(self, cells: Cells, order: int) -> None:
        """Add cells of a finer or equal order."""
        if cells.size:
            self.flags[(cells >> np.uint64(2 * (order - self.order))).astype(np.int64)] = True
            self.rows += int(cells.size)

    def add_cell(self, order: int, cell: int) -> None:
        """Add the whole of one cell of any order."""
        if order >= self.order:
            self.flags[cell >> (2 * (order - self.order))] = True
        else:
            width = 4 ** (self.order - order)
            self.flags[cell * width : (cell + 1) * width] = True

    def bitmap(self) -> bytes:
        """The cells so far at the bitmap's order."""
        return pack_flags(degrade(self.flags, self.order - BITMAP_ORDER))
