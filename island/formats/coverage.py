"""Sky coverage on the nested HEALPix grid, ICRS: bitmaps, cells of positions, MOCs.

A coverage contains at least every cell with a position of the data; where it is made coarser, it
only grows. A bitmap of order n has 12 * 4**n bits, cell i in bit i % 8 (least significant first)
of byte i // 8: 1,536 bytes at order 5. A MOC is written in the IVOA's ASCII form
(`5/17 20-23 6/100`; MOC 2.0, section 4.3.1).
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
    """Number of cells of the whole sky at an order."""
    return int(12 * 4**order)


def bitmap(ipix: Iterable[int], order: int = BITMAP_ORDER) -> bytes:
    """The bitmap of cells of one order. Raises BadInput for a cell outside the grid."""
    cells = np.fromiter((int(cell) for cell in ipix), dtype=np.int64)
    if cells.size and (cells.min() < 0 or cells.max() >= cell_count(order)):
        raise BadInput(
            f"a HEALPix cell is outside the grid of order {order}", hint=f"Cells are 0 to {cell_count(order) - 1}."
        )
    flags = np.zeros(cell_count(order), dtype=np.bool_)
    flags[cells] = True
    return pack_flags(flags)


def from_bitmap(data: bytes) -> list[int]:
    """The cells that are set, in ascending order. Raises BadInput if the length is not that of an order 0 to 10."""
    return [int(cell) for cell in np.flatnonzero(unpack_flags(data))]


def pack_flags(flags: Flags) -> bytes:
    """The bitmap of an array of flags, one for each cell of an order."""
    return np.packbits(flags, bitorder="little").tobytes()


def unpack_flags(data: bytes) -> Flags:
    """The inverse of `pack_flags`. Raises BadInput if the length is not that of an order 0 to 10."""
    for order in range(FINE_ORDER + 1):
        if len(data) == (cell_count(order) + 7) // 8:
            bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=cell_count(order), bitorder="little")
            return bits.astype(np.bool_)
    raise BadInput(
        f"a coverage bitmap of {len(data)} bytes does not have the length of a HEALPix order",
        hint="A bitmap of order 5 has 1,536 bytes.",
    )


def intersects(first: bytes, second: bytes) -> bool:
    """Whether two bitmaps of the same order share a cell. Raises BadInput if their lengths differ."""
    if len(first) != len(second):
        raise BadInput("two coverage bitmaps have different orders", hint="Compare bitmaps of the same order.")
    return bool(int.from_bytes(first, "little") & int.from_bytes(second, "little"))


def union(first: bytes, second: bytes) -> bytes:
    """The union of two bitmaps of the same order. Raises BadInput if their lengths differ."""
    if len(first) != len(second):
        raise BadInput("two coverage bitmaps have different orders", hint="Combine bitmaps of the same order.")
    return (int.from_bytes(first, "little") | int.from_bytes(second, "little")).to_bytes(len(first), "little")


def cells_of(ra: Floats, dec: Floats, order: int) -> Cells:
    """The nested cell of each position in degrees. `ra` may be any finite number, `dec` must be in -90 to 90."""
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
    """The largest distance in radians from the centre of a cell of this order to a point of the cell.

    The cell with the largest distance touches the border of a polar cap: Gorski et al. 2005,
    ApJ 622, 759, section 5.
    """
    nside = 2**order
    z_side, phi_side = 2.0 / 3.0, math.pi / (4 * nside)
    z_top = 1.0 - (1.0 - 1.0 / nside) ** 2 / 3.0
    side = (math.sqrt(1 - z_side**2) * math.cos(phi_side), math.sqrt(1 - z_side**2) * math.sin(phi_side), z_side)
    top = (math.sqrt(max(0.0, 1 - z_top**2)), 0.0, z_top)
    return math.acos(max(-1.0, min(1.0, sum(a * b for a, b in zip(side, top, strict=True)))))


def degrade(flags: Flags, steps: int = 1) -> Flags:
    """The flags `steps` orders coarser: a cell is set if any of its subcells is set."""
    for _ in range(steps):
        flags = np.asarray(_siblings(flags) != 0, dtype=np.bool_)
    return flags


def _siblings(flags: Flags) -> npt.NDArray[np.uint32]:
    """The flags of the four subcells of each cell as one number: 0 if none is set, 0x01010101 if all are.

    This is much faster than reducing along an axis.
    """
    return np.ascontiguousarray(flags).view(np.uint32)


def order_of(flags: Flags) -> int:
    """The HEALPix order of an array of flags."""
    return round(math.log(flags.size / 12, 4))


def moc_ascii(flags: Flags, limit: int = MAX_MOC_BYTES) -> str:
    """The flags as an ASCII MOC. If it exceeds `limit` bytes, the order is reduced until it fits."""
    while True:
        levels = _levels(flags)
        # A run takes at least two bytes, so a MOC that cannot fit is detected before it is written.
        if order_of(flags) == 0 or 2 * sum(_starts(left).size for left in levels) <= limit:
            text = _ascii(levels)
            if len(text) <= limit or order_of(flags) == 0:
                return text
        flags = degrade(flags)


def _levels(flags: Flags) -> list[Flags]:
    """The cells of a normalized MOC, one array per order from 0 up: four set subcells are merged into their parent."""
    levels: list[Flags] = []
    while flags.size > 12:
        whole = np.asarray(_siblings(flags) == 0x01010101, dtype=np.bool_)
        left = np.array(flags)
        left.view(np.uint32)[whole] = 0
        levels.append(left)
        flags = whole
    return [flags, *reversed(levels)]


def _starts(flags: Flags) -> Any:
    """The first cell of each run of set cells."""
    if _is_sparse(flags):
        cells = np.flatnonzero(flags)
        return cells[np.diff(cells, prepend=-2) != 1]
    return np.flatnonzero(flags & ~np.concatenate(([False], flags[:-1])))


def _ends(flags: Flags) -> Any:
    """The last cell of each run of set cells."""
    if _is_sparse(flags):
        cells = np.flatnonzero(flags)
        return cells[np.diff(cells, append=flags.size + 1) != 1]
    return np.flatnonzero(flags & ~np.concatenate((flags[1:], [False])))


def _is_sparse(flags: Flags) -> bool:
    """Whether so few cells are set that a list of them is faster to process than the flags."""
    return bool(np.count_nonzero(flags) < flags.size // 64)


def moc_flags(text: str, order: int = FINE_ORDER) -> Flags:
    """The cells of an ASCII MOC as flags of an order; a finer cell sets the cell that contains it.

    Raises BadInput if the text is not an ASCII MOC.
    """
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
        raise BadInput(
            f"this is not an ASCII MOC: {str(error)[:80]}", hint="An example of an ASCII MOC: '5/17 20-23 6/100'."
        ) from error
    return flags


def _ascii(levels: list[Flags]) -> str:
    parts = []
    for order, flags in enumerate(levels):
        firsts, lasts = _starts(flags), _ends(flags)
        runs = [f"{a}" if a == b else f"{a}-{b}" for a, b in zip(firsts.tolist(), lasts.tolist(), strict=True)]
        # The finest order is always written, even if empty: it is the resolution of the MOC.
        if runs or order == len(levels) - 1:
            parts.append(f"{order}/" + " ".join(runs))
    return " ".join(parts)


class SkyTally:
    """Collects the cells of positions while rows are read, for one file (order 5) or a dataset (order 10)."""

    def __init__(self, order: int) -> None:
        self.order = order
        self.flags: Flags = np.zeros(cell_count(order), dtype=np.bool_)
        self.rows = 0

    def add(self, cells: Cells, order: int) -> None:
        """Add cells of the same or a finer order."""
        if cells.size:
            self.flags[(cells >> np.uint64(2 * (order - self.order))).astype(np.int64)] = True
            self.rows += int(cells.size)

    def add_cell(self, order: int, cell: int) -> None:
        """Add all of one cell of any order."""
        if order >= self.order:
            self.flags[cell >> (2 * (order - self.order))] = True
        else:
            width = 4 ** (self.order - order)
            self.flags[cell * width : (cell + 1) * width] = True

    def bitmap(self) -> bytes:
        """The cells added so far as a bitmap of order `BITMAP_ORDER`."""
        return pack_flags(degrade(self.flags, self.order - BITMAP_ORDER))
