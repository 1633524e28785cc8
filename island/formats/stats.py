"""Statistics that are collected while the rows of a file are read once: ranges, sky coverage, time range."""

from __future__ import annotations

import datetime
import math
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from island.formats.columns import PositionColumns, TimeColumn, is_number, leaf_arrays, leaves, type_name
from island.formats.coverage import BITMAP_ORDER, FINE_ORDER, SkyTally, cells_of

MAX_STAT_COLUMNS = 256
TWO_PI = 2 * math.pi


class ColumnStats(msgspec.Struct, frozen=True, omit_defaults=True):
    """Range of one numeric column in one file. `low` and `high` are None if the column has no number.

    `nans` is true if the column has NaN, which compares greater than every number, as in Spark.
    Readers that skip files by range must take this into account.
    """

    name: str
    low: int | float | None = None
    high: int | float | None = None
    nulls: int = 0
    nans: bool = False


class _Range:
    """Running minimum, maximum and counts of one column."""

    def __init__(self) -> None:
        self.low: int | float | None = None
        self.high: int | float | None = None
        self.nulls = 0
        self.nans = False

    def add(self, array: Any) -> None:
        self.nulls += array.null_count
        if pa.types.is_floating(array.type):
            array = array.cast(pa.float64())
            bad = pc.is_nan(array)
            if pc.any(bad).as_py():
                self.nans = True
                array = pc.if_else(bad, pa.scalar(None, pa.float64()), array)
        found = pc.min_max(array)
        low, high = found["min"].as_py(), found["max"].as_py()
        if low is not None:
            self.low = low if self.low is None else min(self.low, low)
            self.high = high if self.high is None else max(self.high, high)


class FileStatsCollector:
    """Collects the ColumnStats, the order-5 coverage and the time range of one file."""

    def __init__(self, names: frozenset[str]) -> None:
        self.rows = 0
        self._names = names
        self._ranges: dict[str, _Range] = {}
        self.sky = SkyTally(BITMAP_ORDER)
        self.times = TimeSpan()

    def add(self, arrays: dict[str, Any], rows: int) -> None:
        """Add the flattened columns of a batch."""
        self.rows += rows
        for name in self._names:
            array = arrays.get(name)
            if array is not None:
                self._ranges.setdefault(name, _Range()).add(array)

    def columns(self) -> tuple[ColumnStats, ...]:
        """The ranges of the batches added so far, sorted by name."""
        return tuple(
            ColumnStats(name, item.low, item.high, item.nulls, item.nans) for name, item in sorted(self._ranges.items())
        )


class TimeSpan:
    """Earliest and latest time, in Unix seconds."""

    def __init__(self) -> None:
        self.low = math.inf
        self.high = -math.inf

    def add(self, low: float, high: float) -> None:
        """Extend the span by a range in Unix seconds."""
        self.low, self.high = min(self.low, low), max(self.high, high)

    def add_iso(self, span: tuple[str, str] | None) -> None:
        """Extend the span by a result of `iso`."""
        if span is not None:
            low, high = (datetime.datetime.fromisoformat(moment).timestamp() for moment in span)
            self.add(low, high)

    def iso(self) -> tuple[str, str] | None:
        """(earliest, latest) as ISO 8601 in UTC with milliseconds, rounded outwards; None for an empty span."""
        if self.low > self.high:
            return None
        return _iso(math.floor(self.low * 1000)), _iso(math.ceil(self.high * 1000))


class DatasetStatsCollector:
    """Collects statistics of the dataset as a whole while its files are read."""

    def __init__(self, position: PositionColumns | None, time: TimeColumn | None) -> None:
        self.position, self.time = position, time
        self.sky = SkyTally(FINE_ORDER)
        self.times = TimeSpan()
        self.positioned = 0
        self.unplaced = 0
        self.untimed = 0
        self.highest_ra = -math.inf
        self.highest_dec = -math.inf
        self.lowest_dec = math.inf
        self.negative_ra = False

    def add(self, batch: Any, file: FileStatsCollector, partition: tuple[int, int] | None = None) -> int:
        """Add a batch to the statistics of the dataset and of its file.

        Returns the number of rows outside of `partition`, the HEALPix (order, cell) of the file.
        """
        arrays = dict(leaf_arrays(batch))
        file.add(arrays, batch.num_rows)
        if self.time is not None and self.time.name in arrays:
            self._add_times(arrays[self.time.name], file)
        if self.position is not None:
            return self._add_positions(arrays, file, partition)
        return 0

    def _add_positions(
        self, arrays: dict[str, Any], file: FileStatsCollector, partition: tuple[int, int] | None
    ) -> int:
        position = self.position
        if position is None or position.ra not in arrays or position.dec not in arrays:
            return 0
        ra, dec = _floats(arrays[position.ra]), _floats(arrays[position.dec])
        finite = np.isfinite(ra) & np.isfinite(dec)
        self._note_range(ra[finite], dec[finite])
        ra, dec = ra * position.ra_scale, dec * position.dec_scale
        # Up to 0.36 milliarcseconds beyond a pole is a rounding error; more is not a declination.
        good = finite & (np.abs(dec) <= 90.0 + 1e-7) & (np.abs(ra) <= 720.0)
        cells = cells_of(ra[good], np.clip(dec[good], -90.0, 90.0), FINE_ORDER)
        self.sky.add(cells, FINE_ORDER)
        file.sky.add(cells, FINE_ORDER)
        self.positioned += int(good.sum())
        self.unplaced += int(ra.size - good.sum())
        if partition is None or partition[0] > FINE_ORDER:
            return 0
        order, cell = partition
        return int(np.count_nonzero((cells >> np.uint64(2 * (FINE_ORDER - order))) != cell))

    def _note_range(self, ra: Any, dec: Any) -> None:
        if ra.size:
            self.highest_ra = max(self.highest_ra, float(ra.max()))
            self.negative_ra = self.negative_ra or float(ra.min()) < 0
            self.highest_dec = max(self.highest_dec, float(dec.max()))
            self.lowest_dec = min(self.lowest_dec, float(dec.min()))

    def looks_like_radians(self) -> bool:
        """Whether all coordinates are within the range of radians."""
        return (
            self.positioned + self.unplaced > 0
            and self.highest_ra <= TWO_PI
            and self.highest_dec <= math.pi / 2
            and self.lowest_dec >= -math.pi / 2
        )

    def _add_times(self, array: Any, file: FileStatsCollector) -> None:
        if self.time is None:
            return
        seconds = unix_seconds(array, self.time.kind)
        good = np.isfinite(seconds) & (seconds >= _EARLIEST) & (seconds <= _LATEST)
        self.untimed += int(seconds.size - good.sum())
        if not good.any():
            return
        slack = 600.0 if self.time.kind.endswith("_barycentric") else 0.0
        low, high = float(seconds[good].min()) - slack, float(seconds[good].max()) + slack
        self.times.add(low, high)
        file.times.add(low, high)


_EARLIEST = datetime.datetime(1600, 1, 1, tzinfo=datetime.UTC).timestamp()
_LATEST = datetime.datetime(2200, 1, 1, tzinfo=datetime.UTC).timestamp()
_MJD_OF_UNIX = 40587.0
_JD_OF_UNIX = 2440587.5
_UNIX_J2000 = 946_727_935.816  # 2000-01-01T12:00:00 TT in UTC
_JULIAN_YEAR = 31_557_600.0

# MJD (UTC) from which TAI - UTC has a value: IERS Bulletin C, complete since 1972.
_LEAPS = (
    (41317, 10), (41499, 11), (41683, 12), (42048, 13), (42413, 14), (42778, 15), (43144, 16), (43509, 17),
    (43874, 18), (44239, 19), (44786, 20), (45151, 21), (45516, 22), (46247, 23), (47161, 24), (47892, 25),
    (48257, 26), (48804, 27), (49169, 28), (49534, 29), (50083, 30), (50630, 31), (51179, 32), (53736, 33),
    (54832, 34), (56109, 35), (57204, 36), (57754, 37),
)  # fmt: skip


def unix_seconds(array: Any, kind: str) -> Any:
    """A column of times of the given `TimeKind` as Unix seconds in float64; NaN for null."""
    if pa.types.is_date(array.type) or pa.types.is_timestamp(array.type):
        # Microseconds in float64 are exact to 0.25 µs until 2200.
        micros = array.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
        return _floats(micros) / 1e6
    values = _floats(array)
    if kind == "days":
        return np.where(values > 1e6, (values - _JD_OF_UNIX), (values - _MJD_OF_UNIX)) * 86400.0
    if kind in ("jd", "jd_barycentric"):
        return (values - _JD_OF_UNIX) * 86400.0
    if kind in ("mjd", "mjd_barycentric"):
        return (values - _MJD_OF_UNIX) * 86400.0
    if kind == "julian_year":
        return (values - 2000.0) * _JULIAN_YEAR + _UNIX_J2000
    starts = np.array([start for start, _ in _LEAPS], dtype=np.float64)
    shifts = np.array([0, *(shift for _, shift in _LEAPS)], dtype=np.float64)
    return (values - _MJD_OF_UNIX) * 86400.0 - shifts[np.searchsorted(starts, values, side="right")]


def stat_names(schema: Any) -> frozenset[str]:
    """The numeric columns for which ranges are collected: at most 256, top-level columns before record fields."""
    names = [path for path, field, _ in leaves(schema) if is_number(type_name(field.type))]
    names.sort(key=lambda name: name.count("."))
    return frozenset(names[:MAX_STAT_COLUMNS])


def _floats(array: Any) -> Any:
    plain = array.cast(pa.float64(), safe=False)
    return plain.to_numpy(zero_copy_only=False).astype(np.float64, copy=False)


def _iso(milliseconds: int) -> str:
    moment = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(milliseconds=milliseconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
