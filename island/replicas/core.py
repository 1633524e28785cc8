"""Decisions of the chunk store: which chunks are missing, how they are grouped, who is asked, what is evicted.

Chunks are known by their numbers within a file; `ChunkBorders` tells where those of a part of the
file begin and end. What is here is one byte a chunk (`ABSENT`, `STORED`, `VERIFIED`), so
that runs are found by C code.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, TypeVar

from island.kernel.ids import IslandId

ABSENT = 0
STORED = 1
"""On disk by what the database says; its hash was not looked at since the daemon started."""
VERIFIED = 2
"""On disk, and its hash was right when it was written or first read by this daemon."""

GUESSED_BANDWIDTH = 8.0 * 2**20
"""Bytes a second assumed of a holder from whom nothing was received yet."""
GUESSED_RTT = 0.05

ChunkRange = tuple[int, int]
"""Chunks `first` to `last`, the last one not included."""

K = TypeVar("K")

_TO_DIGITS = bytes([48, 49, 49]) + bytes([49]) * 253


@dataclass(frozen=True, slots=True)
class ChunkBorders:
    """Where consecutive chunks begin: chunk `first + i` is the bytes from `at[i]` to `at[i + 1]`."""

    first: int
    at: Sequence[int]

    def offset(self, chunk: int) -> int:
        """Where a chunk begins; for the number after the last one, where that one ends."""
        return self.at[chunk - self.first]

    def cover(self, start: int, end: int) -> ChunkRange:
        """The chunks that hold the bytes from `start` to `end` (not included); an empty run for no bytes."""
        if start >= end:
            return (self.first, self.first)
        return self.first + bisect_right(self.at, start) - 1, self.first + bisect_left(self.at, end)

    def size(self, run: ChunkRange) -> int:
        """Bytes in a run."""
        return self.offset(run[1]) - self.offset(run[0])

    def portions(self, run: ChunkRange, limit: int) -> Iterator[ChunkRange]:
        """`run` cut into runs of at most `limit` bytes each (a single chunk may be larger)."""
        first, last = run
        while first < last:
            reach = self.first + bisect_right(self.at, self.offset(first) + limit) - 1
            until = min(last, max(first + 1, reach))
            yield first, until
            first = until


def missing(present: bytearray, run: ChunkRange) -> list[ChunkRange]:
    """The runs of absent chunks within `run`."""
    found = []
    position, last = run
    while (first := present.find(ABSENT, position, last)) >= 0:
        ends = [at for at in (present.find(STORED, first, last), present.find(VERIFIED, first, last)) if at >= 0]
        position = min(ends, default=last)
        found.append((first, position))
    return found


def pack_bitmap(present: bytearray) -> bytes:
    """What is here as it is stored: one bit a chunk, the first chunk in the lowest bit."""
    digits = present.translate(_TO_DIGITS)[::-1]
    return int(digits or b"0", 2).to_bytes((len(present) + 7) // 8, "little")


def unpack_bitmap(bits: bytes, chunks: int) -> bytearray:
    """The inverse of `pack_bitmap`, every chunk `STORED` at most; bits that are not there count as absent."""
    value = int.from_bytes(bits, "little") & ((1 << chunks) - 1)
    if not chunks:
        return bytearray()
    digits = bin(value)[2:].rjust(chunks, "0").encode()[::-1]
    return bytearray(digits.translate(bytes(max(0, code - 48) & 1 for code in range(256))))


def group_requests(
    parts: Iterable[tuple[K, ChunkBorders, ChunkRange]], limit: int, count: int
) -> Iterator[list[tuple[K, ChunkBorders, ChunkRange]]]:
    """Group runs of several files into requests of at most `limit` bytes and `count` runs.

    Neighbouring files share a request, so that many small files do not cost a round trip
    each; a long run is cut over several requests.
    """
    batch: list[tuple[K, ChunkBorders, ChunkRange]] = []
    size = 0
    for key, edges, run in parts:
        for piece in edges.portions(run, limit):
            cost = edges.size(piece)
            if batch and (size + cost > limit or len(batch) >= count):
                yield batch
                batch, size = [], 0
            batch.append((key, edges, piece))
            size += cost
    if batch:
        yield batch


# --- who is asked -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HolderLoad:
    """Measured properties of a holder."""

    island: IslandId
    linked: bool
    """Whether there is a live session with it."""
    bandwidth: float | None
    """Measured bytes a second, None before anything was moved."""
    rtt: float | None
    queued: int
    """Bytes already asked of it and not yet received."""
    strikes: int
    """How often it sent wrong bytes of late."""
    rest_until: float
    """Monotonic time before which it is not asked again, after a failure."""


def choose_holder(candidates: Sequence[HolderLoad], size: int, now: float) -> IslandId | None:
    """The holder from whom `size` bytes are expected first, or None while all of them rest.

    Holders with a live session come before those without, honest ones before those that
    sent wrong bytes; among equals the queue and the bytes over the measured bandwidth decide.
    """
    ready = [candidate for candidate in candidates if candidate.rest_until <= now]
    if not ready:
        return None
    return min(ready, key=lambda c: (not c.linked, c.strikes, expected_seconds(c, size), c.island)).island


def expected_seconds(candidate: HolderLoad, size: int) -> float:
    """Seconds until `size` more bytes of this holder would be here."""
    bandwidth = max(candidate.bandwidth or GUESSED_BANDWIDTH, 1.0)
    return (candidate.rtt if candidate.rtt is not None else GUESSED_RTT) + (candidate.queued + size) / bandwidth


@dataclass(frozen=True, slots=True)
class FailedHolder:
    """A holder that could not deliver, as shown in an error."""

    name: str
    state: Literal["self", "up", "suspect", "down", "unknown"]
    since: float
    """Wall time since when it is in that state."""
    reason: str = ""
    """What it answered, where it answered."""


def explain_absence(holders: Sequence[FailedHolder]) -> str:
    """Who holds the bytes and why none of them gave any, for an error's text."""
    if not holders:
        return "held by no island that is known here"
    parts = []
    for holder in holders:
        if holder.reason:
            parts.append(f"{holder.name} ({holder.reason})")
        elif holder.state == "up":
            parts.append(f"{holder.name} (up, but it does not answer)")
        elif holder.state == "unknown":
            parts.append(f"{holder.name} (never seen from here)")
        else:
            parts.append(f"{holder.name} ({holder.state} since {clock_time(holder.since)})")
    return "held by " + ", ".join(parts) + ", and nobody else"


def clock_time(wall: float) -> str:
    """A wall time as `12:03:11 UTC`."""
    return datetime.fromtimestamp(wall, UTC).strftime("%H:%M:%S UTC") if math.isfinite(wall) else "an unknown time"


# --- room -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EvictionCandidate:
    """One snapshot in the store, as far as eviction looks at it."""

    id: int
    bytes_local: int
    used_at: float
    pinned: bool
    in_use: bool
    elsewhere: bool
    """Whether another island holds it whole."""


def evict(kept: Sequence[EvictionCandidate], needed: int) -> list[int]:
    """Ids of the snapshots to drop, least recently used first, so that `needed` bytes become free.

    Never one that is pinned, in use, or held by nobody else. Empty where even all that may
    be dropped would not be enough: then nothing is dropped in vain.
    """
    chosen, freed = [], 0
    for item in sorted(kept, key=lambda k: (k.used_at, k.id)):
        if freed >= needed:
            break
        if item.bytes_local and item.elsewhere and not item.pinned and not item.in_use:
            chosen.append(item.id)
            freed += item.bytes_local
    return chosen if freed >= needed else []


def safe_path(path: str) -> bool:
    """Whether a manifest's path can be a file below a folder: relative, plain parts, no escape."""
    parts = path.split("/")
    return (
        0 < len(path.encode("utf-8", "replace")) <= 1024
        and "\0" not in path
        and all(part not in {"", ".", ".."} and len(part.encode("utf-8", "replace")) <= 255 for part in parts)
    )
