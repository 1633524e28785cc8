"""Pure functions of the catalog: encoded coverages, MOCs, records and cards within limits, search conditions."""

from __future__ import annotations

import bisect
import datetime
import difflib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from island.catalog.messages import (
    CARD_LIMIT,
    COLUMNS_LIMIT,
    RECORD_LIMIT,
    TITLE_LIMIT,
    Card,
    CardColumn,
    DatasetRecord,
)
from island.errors import BadInput
from island.kernel import codec
from island.kernel.codec import Malformed

COVERAGE_ORDER = 5
ROLL_UP_ORDER = 3
FULL_SKY_DEG2 = 129_600 / math.pi
KEEP_SNAPSHOTS = 64
"""Maximum number of snapshots of a dataset that are served, including the newest."""

_RAW, _RUNS = 0, 1


# --- encoded coverages ----------------------------------------------------------------------


def cells(order: int) -> int:
    """The number of HEALPix cells of an order."""
    return int(12 * 4**order)


def pack_coverage(bitmap: bytes) -> bytes:
    """Encode a bitmap (cell i is bit i % 8, least significant first, of byte i // 8) of an order from 0 to 5.

    The encoding is one byte for the order, one byte for the form, and the bitmap itself (form 0)
    or, if that is shorter, the lengths of its runs as varints, beginning with unset cells (form 1).
    """
    order = _order_of(len(bitmap))
    runs = _runs(bitmap, cells(order))
    return bytes((order, _RUNS)) + runs if len(runs) < len(bitmap) else bytes((order, _RAW)) + bitmap


def unpack_coverage(packed: bytes) -> tuple[int, bytes]:
    """Decode a coverage into (order, bitmap); raises `Malformed`. The bitmap has at most 1,536 bytes (order 5)."""
    if len(packed) < 2 or packed[0] > COVERAGE_ORDER or packed[1] not in (_RAW, _RUNS):
        raise Malformed("a coverage has an invalid header")
    order, body = packed[0], packed[2:]
    size = _bitmap_bytes(order)
    if packed[1] == _RAW:
        if len(body) != size or body[-1] >> ((cells(order) - 1) % 8 + 1):
            raise Malformed("a coverage bitmap of the wrong length")
        return order, body
    return order, _from_runs(body, cells(order)).to_bytes(size, "little")


def coarser(bitmap: bytes, order: int) -> bytes:
    """Convert a bitmap to a coarser order (or its own): a cell is set if any of its subcells is set."""
    for level in range(_order_of(len(bitmap)), order, -1):
        pairs = bitmap.translate(_HALVES) + bytes(-len(bitmap) % 4)
        quarters = (pairs[0::4], pairs[1::4], pairs[2::4], pairs[3::4])
        packed = bytes(a | b << 2 | c << 4 | d << 6 for a, b, c, d in zip(*quarters, strict=True))
        bitmap = packed[: _bitmap_bytes(level - 1)]
    return bitmap


def set_cells(bitmap: bytes) -> list[int]:
    """The set cells, in ascending order."""
    return [8 * at + bit for at, byte in enumerate(bitmap) if byte for bit in _BITS[byte]]


_HALVES = bytes((byte & 0x0F != 0) | (byte & 0xF0 != 0) << 1 for byte in range(256))
"""For each byte of eight cells: the two bits of their parent cells."""
_BITS = [[bit for bit in range(8) if byte >> bit & 1] for byte in range(256)]


def join_coverages(packed: Sequence[bytes], order: int = ROLL_UP_ORDER) -> bytes:
    """The encoded union of coverages, at `order` or the coarsest order of the coverages; b"" for an empty list."""
    if not packed:
        return b""
    unpacked = [unpack_coverage(item) for item in packed]
    least = min(order, *(found for found, _ in unpacked))
    number = 0
    for _, bitmap in unpacked:
        number |= int.from_bytes(coarser(bitmap, least), "little")
    return pack_coverage(number.to_bytes(_bitmap_bytes(least), "little"))


def may_overlap(packed: bytes, region: bytes) -> bool:
    """Whether a coverage shares a cell with a region's bitmap of order 5. False if the coverage is not known."""
    if not packed:
        return False
    order, bitmap = unpack_coverage(packed)
    return bool(int.from_bytes(bitmap, "little") & int.from_bytes(coarser(region, order), "little"))


def _bitmap_bytes(order: int) -> int:
    return (cells(order) + 7) // 8


def _order_of(size: int) -> int:
    for order in range(COVERAGE_ORDER + 1):
        if size == _bitmap_bytes(order):
            return order
    raise BadInput(f"a coverage bitmap of {size} bytes has no order from 0 to 5")


def _runs(bitmap: bytes, count: int) -> bytes:
    bits = bin(int.from_bytes(bitmap, "little") | 1 << count)[3:][::-1]
    lengths = [len(run) for run in re.findall("0+|1+", bits)]
    if bits[0] == "1":
        lengths.insert(0, 0)
    out = bytearray()
    for length in lengths:
        while length >= 0x80:
            out.append(length & 0x7F | 0x80)
            length >>= 7
        out.append(length)
    return bytes(out)


def _from_runs(body: bytes, count: int) -> int:
    number = position = value = shift = 0
    is_set = False
    for byte in body:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte & 0x80:
            if shift > 14:
                raise Malformed("a run in a coverage is too long")
            continue
        if position + value > count:
            raise Malformed("the runs of a coverage go beyond the sky")
        if is_set:
            number |= ((1 << value) - 1) << position
        position += value
        is_set = not is_set
        value = shift = 0
    if shift or position != count:
        raise Malformed("the runs of a coverage do not cover the whole sky")
    return number


INDEX_ORDER = 4
"""The finest HEALPix order of cells in the search index."""


def coarsest(found: Iterable[int], order: int) -> list[tuple[int, int]]:
    """Combine cells of one order into as few cells as possible: (order, cell) of each."""
    level: list[int] = sorted(set(found))
    result: list[tuple[int, int]] = []
    for depth in range(order, -1, -1):
        sisters: dict[int, list[int]] = {}
        for cell in level:
            sisters.setdefault(cell >> 2, []).append(cell)
        level = []
        for parent, children in sisters.items():
            if depth and len(children) == 4:
                level.append(parent)
            else:
                result += [(depth, cell) for cell in children]
    return sorted(result)


def index_cells(packed: bytes) -> tuple[list[str], list[str]]:
    """Return (the cells of a coverage, all their ancestors) as terms of the index; empty for an unknown coverage."""
    if not packed:
        return [], []
    order, bitmap = unpack_coverage(packed)
    order = min(order, INDEX_ORDER)
    own = coarsest(set_cells(coarser(bitmap, order)), order)
    above = {(level, cell >> 2 * (depth - level)) for depth, cell in own for level in range(depth)}
    return [f"{level}/{cell}" for level, cell in own], [f"{level}/{cell}" for level, cell in sorted(above)]


def query_cells(found: Iterable[int], order: int) -> tuple[list[str], list[str]]:
    """Return terms for a search of coverages that overlap these cells.

    An overlapping coverage has a term of the first list among its own cells, or a term of the
    second list among the ancestors of its cells (see `index_cells`).
    """
    wanted = coarsest(found, order)
    own = {(level, cell >> 2 * (depth - level)) for depth, cell in wanted for level in range(depth + 1)}
    return [f"{level}/{cell}" for level, cell in sorted(own)], [f"{level}/{cell}" for level, cell in wanted]


# --- MOCs -----------------------------------------------------------------------------------

CellRanges = list[tuple[int, int]]
MOC_ORDER = 13
"""The finest supported order of a MOC."""


def moc_ranges(text: str) -> tuple[int, CellRanges]:
    """Parse an ASCII MOC into (order, sorted disjoint half-open ranges of cells of that order); raises `BadInput`."""
    order = finest = 0
    raw: list[tuple[int, int, int]] = []
    for word in text.replace(",", " ").split():
        head, slash, tail = word.rpartition("/")
        if slash:
            order = _number(head, MOC_ORDER)
            finest = max(finest, order)
        if not tail:
            continue
        low, dash, high = tail.partition("-")
        first = _number(low, cells(order) - 1)
        raw.append((order, first, _number(high, cells(order) - 1) + 1 if dash else first + 1))
    shifted = sorted((first << 2 * (finest - order), end << 2 * (finest - order)) for order, first, end in raw)
    return finest, _merged(shifted)


def moc_text(order: int, ranges: CellRanges) -> str:
    """Format ranges of cells of one order as a normalized ASCII MOC: the coarsest cells, adjacent ones joined."""
    runs: dict[int, list[tuple[int, int]]] = {level: [] for level in range(order + 1)}
    for low, high in ranges:
        while low < high:
            level, width = order, 1
            while level > 0 and low % (4 * width) == 0 and low + 4 * width <= high:
                level, width = level - 1, 4 * width
            cell, found = low // width, runs[level]
            if found and found[-1][1] == cell - 1:
                found[-1] = (found[-1][0], cell)
            else:
                found.append((cell, cell))
            low += width
    parts = [
        f"{level}/" + " ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in found)
        for level, found in runs.items()
        if found or level == order
    ]
    return " ".join(parts)


def moc_coarser(text: str, order: int) -> str:
    """Convert a MOC to a coarser order. The result covers at least the same area."""
    have, ranges = moc_ranges(text)
    if have <= order:
        return text
    shift = 2 * (have - order)
    return moc_text(order, _merged([(low >> shift, -(-high >> shift)) for low, high in ranges]))


def moc_fit(text: str, limit: int) -> str:
    """Return a MOC with at most `limit` bytes: unchanged, or at the finest coarser order that fits."""
    if len(text) <= limit:
        return text
    order, _ = moc_ranges(text)
    for level in range(order - 1, -1, -1):
        if len(shorter := moc_coarser(text, level)) <= limit:
            return shorter
    return "0/0-11"


def moc_union(texts: Iterable[str]) -> str:
    """The union of MOCs, at the coarsest of their orders; "" for an empty list."""
    parsed = [moc_ranges(text) for text in texts]
    if not parsed:
        return ""
    order = min(found for found, _ in parsed)
    joined = [
        (low >> 2 * (found - order), -(-high >> 2 * (found - order)))
        for found, ranges in parsed
        for low, high in ranges
    ]
    return moc_text(order, _merged(sorted(joined)))


def moc_of_coverage(packed: bytes) -> str:
    """Convert an encoded coverage to a MOC."""
    order, bitmap = unpack_coverage(packed)
    return moc_text(order, _merged([(cell, cell + 1) for cell in set_cells(bitmap)]))


def moc_area(text: str) -> float:
    """The area of a MOC in square degrees."""
    order, ranges = moc_ranges(text)
    return sum(high - low for low, high in ranges) / cells(order) * FULL_SKY_DEG2


def moc_overlaps(text: str, region: Sequence[int], order: int) -> bool:
    """Whether a MOC shares a cell with a region, given as sorted cells of `order`."""
    have, ranges = moc_ranges(text)
    shift = 2 * (have - order)
    for low, high in ranges:
        first, end = (low >> shift, -(-high >> shift)) if shift >= 0 else (low << -shift, high << -shift)
        at = bisect.bisect_left(region, first)
        if at < len(region) and region[at] < end:
            return True
    return False


def _number(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 12 and int(text) <= most):
        raise BadInput(f"not a MOC: {text[:40]!r}")
    return int(text)


def _merged(ranges: CellRanges) -> CellRanges:
    merged: CellRanges = []
    for low, high in ranges:
        if high <= low:
            raise BadInput("not a MOC: a range that ends before it begins")
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return merged


# --- records and cards within limits --------------------------------------------------------


def shorten_text(text: str, limit: int) -> str:
    """Shorten text to at most `limit` bytes of UTF-8, at a character, with an ellipsis if it was shortened."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= limit:
        return encoded.decode()
    return encoded[: limit - 3].decode("utf-8", "ignore") + "…"


def fit_columns(names: Iterable[str], limit: int = COLUMNS_LIMIT) -> tuple[tuple[str, ...], int]:
    """Return (names that fit in `limit` bytes, number of the others). Top-level columns precede nested ones."""
    fitting, room, hidden = [], limit, 0
    for name in sorted(names, key=lambda name: name.count(".")):
        size = len(name.encode("utf-8", "replace")) + 1
        if size <= room and len(name) <= 256 and hidden == 0:
            fitting.append(name)
            room -= size
        else:
            hidden += 1
    return tuple(fitting), hidden


def fit_record(record: DatasetRecord) -> DatasetRecord:
    """Shorten a record to at most RECORD_LIMIT bytes: first with a coarser coverage, then with fewer columns."""
    record = msgspec.structs.replace(record, title=shorten_text(record.title, TITLE_LIMIT))
    while len(codec.encode(record)) > RECORD_LIMIT and record.coverage:
        order, bitmap = unpack_coverage(record.coverage)
        if order == 0:
            break
        record = msgspec.structs.replace(record, coverage=pack_coverage(coarser(bitmap, order - 1)))
    while len(codec.encode(record)) > RECORD_LIMIT and record.columns:
        record = msgspec.structs.replace(record, columns=record.columns[:-1], hidden=record.hidden + 1)
    return record


def fit_card(card: Card) -> bytes:
    """Encode a card in at most CARD_LIMIT bytes, shortening the least important parts first; `cut` lists them.

    Raises `BadInput` if it does not fit.
    """
    for step in (_same, _short_notes, _coarse_moc, _no_notes, _coarser_moc, _few_columns):
        card = step(card)
        if len(data := codec.encode(card)) <= CARD_LIMIT:
            return data
    raise BadInput(
        f"the description of this dataset does not fit in {CARD_LIMIT} bytes",
        hint="Shorten its description and the names of its columns.",
    )


def read_card(data: bytes) -> Card:
    """Decode a card; raises `Malformed`, also if its MOC is invalid."""
    card = codec.decode(data, Card)
    try:
        moc_ranges(card.moc)
    except BadInput as error:
        raise Malformed(f"a card has an invalid MOC: {error.message}") from error
    return card


def _same(card: Card) -> Card:
    return card


def _short_notes(card: Card) -> Card:
    columns = tuple(msgspec.structs.replace(c, description=shorten_text(c.description, 120)) for c in card.columns)
    return msgspec.structs.replace(card, columns=columns, cut=(*card.cut, "descriptions of columns"))


def _coarse_moc(card: Card) -> Card:
    return msgspec.structs.replace(card, moc=moc_fit(card.moc, 32 * 1024), cut=(*card.cut, "moc"))


def _no_notes(card: Card) -> Card:
    columns = tuple(msgspec.structs.replace(c, description="", type=shorten_text(c.type, 200)) for c in card.columns)
    return msgspec.structs.replace(card, columns=columns)


def _coarser_moc(card: Card) -> Card:
    return msgspec.structs.replace(
        card,
        moc=moc_fit(card.moc, 8 * 1024),
        description=shorten_text(card.description, 8192),
        warnings=tuple(shorten_text(text, 500) for text in card.warnings[:64]),
        details=(),
    )


def _few_columns(card: Card) -> Card:
    room, kept = 150 * 1024, 0
    for column in card.columns:
        room -= len(codec.encode(column))
        if room < 0:
            break
        kept += 1
    return msgspec.structs.replace(
        card,
        columns=card.columns[:kept],
        hidden=card.hidden + len(card.columns) - kept,
        cut=(*card.cut, "columns"),
    )


# --- search ---------------------------------------------------------------------------------

_TIME_HINT = "Write FROM..TO with ISO 8601 dates or times in UTC: 2019-12-01..2019-12-31. Either side may be empty."


def parse_times(text: str) -> tuple[float, float]:
    """Parse `FROM..TO` into Unix seconds. An empty side is infinite; a date as TO includes the whole day.

    Raises `BadInput`.
    """
    first, dots, last = text.strip().partition("..")
    if not dots or not (first or last):
        raise BadInput(f"{text[:80]!r} is not a time range", hint=_TIME_HINT)
    low = _moment(first, text)[0] if first else -math.inf
    high = _moment(last, text)[1] if last else math.inf
    if low > high:
        raise BadInput(f"the time range {text[:80]!r} ends before it begins", hint=_TIME_HINT)
    return low, high


def _moment(word: str, text: str) -> tuple[float, float]:
    """The first and the last instant of a time, day, month or year."""
    word = word.strip()
    try:
        start = end = None
        if re.fullmatch(r"\d{4}", word):
            start, end = _utc(f"{word}-01-01"), _utc(f"{int(word) + 1:04}-01-01")
        elif match := re.fullmatch(r"(\d{4})-(\d{2})", word):
            months = int(match[1]) * 12 + int(match[2])
            start, end = _utc(f"{word}-01"), _utc(f"{months // 12:04}-{months % 12 + 1:02}-01")
        else:
            start = _utc(word)
            end = start + 86400.0 if len(word) == 10 else None
    except (ValueError, OverflowError) as error:
        raise BadInput(f"{word[:40]!r} in {text[:80]!r} is not a date or time", hint=_TIME_HINT) from error
    # Times in records have a resolution of one millisecond.
    return start, start if end is None else end - 0.001


def _utc(word: str) -> float:
    moment = datetime.datetime.fromisoformat(word)
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()


@dataclass(frozen=True, slots=True)
class DatasetFilter:
    """The conditions of a search except the sky region."""

    words: tuple[str, ...] = ()
    column: str = ""
    time: tuple[float, float] | None = None
    format: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether words are the only condition."""
        return not (self.column or self.time or self.format)


def fits(wanted: DatasetFilter, record: DatasetRecord) -> bool:
    """Whether a record has the wanted format and overlaps the wanted times. Unknown times do not overlap."""
    if wanted.format and record.format != wanted.format:
        return False
    if wanted.time is None:
        return True
    return record.time is not None and record.time[0] <= wanted.time[1] and record.time[1] >= wanted.time[0]


def fits_card(wanted: DatasetFilter, record: DatasetRecord, card: Card | None) -> bool:
    """Whether the record or the card of a dataset has the wanted column."""
    return not wanted.column or has_column(wanted.column, record.columns, card.columns if card is not None else ())


def has_column(wanted: str, names: Iterable[str], columns: Iterable[CardColumn]) -> bool:
    """Whether a column's name (or the last part of a nested one) begins with `wanted`, or its UCD matches.

    The comparison is case-insensitive.
    """
    key = wanted.strip().lower()
    for name in (*names, *(column.name for column in columns)):
        lower = name.lower()
        if lower.startswith(key) or lower.rsplit(".", 1)[-1].startswith(key):
            return True
    return any(_has_ucd(column.ucd.lower(), key) for column in columns)


def _has_ucd(ucd: str, key: str) -> bool:
    return bool(ucd) and (ucd.startswith(key) or key in ucd.split(";"))


def tokens(text: str) -> list[str]:
    """Split a query into at most 32 lower-case words of letters and digits. Other characters are ignored."""
    return [word.lower()[:100] for word in re.findall(r"[^\W_]+", text)][:32]


def close_matches(name: str, known: Iterable[str]) -> list[str]:
    """Close matches for a misspelled name, best first."""
    return difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.6)
