"""Decisions of the chunk store: which chunks are missing, how requests are grouped, which holder to ask, what to evict.

Chunks are numbered within a file; `ChunkBorders` has the offsets of consecutive chunks. The
state of a chunk is one byte of a `bytearray` (`ABSENT`, `STORED`, `VERIFIED`), which makes
searching for runs fast.
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
"""On disk according to the database; its hash was not checked since the daemon started."""
VERIFIED = 2
"""On disk; its hash was correct when this daemon wrote it or first read it."""

GUESSED_BANDWIDTH = 8.0 * 2**20
"""Bytes per second assumed for a holder without a measured bandwidth."""
GUESSED_RTT = 0.05
"""Round-trip time in seconds assumed for a holder without a measured one."""

ChunkRange = tuple[int, int]
"""Numbers of consecutive chunks: (first, last), last exclusive."""

K = TypeVar("K")

_TO_DIGITS = bytes([48, 49, 49]) + bytes([49]) * 253


@dataclass(frozen=True, slots=True)
class ChunkBorders:
    """Offsets of consecutive chunks: chunk `first + i` contains the bytes from `at[i]` to `at[i + 1]`."""

    first: int
    at: Sequence[int]

    def offset(self, chunk: int) -> int:
        """The offset at which a chunk begins. For the number after the last chunk: the end of the last chunk."""
        return self.at[chunk - self.first]

    def cover(self, start: int, end: int) -> ChunkRange:
        """The chunks that contain the bytes from `start` to `end` (exclusive); an empty run if there are no bytes."""
        if start >= end:
            return (self.first, self.first)
        return self.first + bisect_right(self.at, start) - 1, self.first + bisect_left(self.at, end)

    def size(self, run: ChunkRange) -> int:
        """Number of bytes in a run."""
        return self.offset(run[1]) - self.offset(run[0])

    def portions(self, run: ChunkRange, limit: int) -> Iterator[ChunkRange]:
        """`run` split into runs of at most `limit` bytes each. A single chunk may be larger."""
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
    """The stored form of the chunk states: one bit per chunk, 1 if it is stored; chunk 0 is the lowest bit."""
    digits = present.translate(_TO_DIGITS)[::-1]
    return int(digits or b"0", 2).to_bytes((len(present) + 7) // 8, "little")


def unpack_bitmap(bits: bytes, chunks: int) -> bytearray:
    """The inverse of `pack_bitmap`: each chunk is `STORED` or `ABSENT`. Chunks beyond the end of `bits` are absent."""
    value = int.from_bytes(bits, "little") & ((1 << chunks) - 1)
    if not chunks:
        return bytearray()
    digits = bin(value)[2:].rjust(chunks, "0").encode()[::-1]
    return bytearray(digits.translate(bytes(max(0, code - 48) & 1 for code in range(256))))


def group_requests(
    parts: Iterable[tuple[K, ChunkBorders, ChunkRange]], limit: int, count: int
) -> Iterator[list[tuple[K, ChunkBorders, ChunkRange]]]:
    """Group runs of several files into requests of at most `limit` bytes and `count` runs.

    Neighbouring files share a request, so that small files do not need a round trip each. A
    long run is split over several requests.
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


# --- choice of a holder -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HolderLoad:
    """Measured properties and current load of a holder."""

    island: IslandId
    linked: bool
    """Whether a session with it exists."""
    bandwidth: float | None
    """Measured bytes per second; None before the first transfer."""
    rtt: float | None
    """Measured round-trip time in seconds; None if unknown."""
    queued: int
    """Bytes in the transfers that are in progress with this holder."""
    strikes: int
    """How often it recently sent bytes that did not match their hash."""
    rest_until: float
    """Monotonic time before which it is not asked, after a failure or while it is busy."""


def choose_holder(candidates: Sequence[HolderLoad], size: int, now: float) -> IslandId | None:
    """The holder that is expected to deliver `size` bytes first; None if no holder may be asked at `now`.

    Holders with a session are preferred to those without, then holders with fewer strikes.
    Among the rest, `expected_seconds` decides.
    """
    ready = [candidate for candidate in candidates if candidate.rest_until <= now]
    if not ready:
        return None
    return min(ready, key=lambda c: (not c.linked, c.strikes, expected_seconds(c, size), c.island)).island


def expected_seconds(candidate: HolderLoad, size: int) -> float:
    """Estimated seconds until this holder has delivered its queue and `size` more bytes."""
    bandwidth = max(candidate.bandwidth or GUESSED_BANDWIDTH, 1.0)
    return (candidate.rtt if candidate.rtt is not None else GUESSED_RTT) + (candidate.queued + size) / bandwidth


@dataclass(frozen=True, slots=True)
class FailedHolder:
    """A holder that could not deliver, for an error message."""

    name: str
    state: Literal["self", "up", "suspect", "down", "unknown"]
    since: float
    """Unix time at which it entered that state."""
    reason: str = ""
    """The error that it answered or caused; empty if it did not answer."""


def explain_absence(holders: Sequence[FailedHolder]) -> str:
    """The text of an error that lists the holders, each with the reason why it did not deliver."""
    if not holders:
        return "no known island holds it"
    parts = []
    for holder in holders:
        if holder.reason:
            parts.append(f"{holder.name} ({holder.reason})")
        elif holder.state == "up":
            parts.append(f"{holder.name} (up, but it does not answer)")
        elif holder.state == "unknown":
            parts.append(f"{holder.name} (this island has never had a session with it)")
        else:
            parts.append(f"{holder.name} ({holder.state} since {clock_time(holder.since)})")
    return "held only by " + ", ".join(parts)


def clock_time(wall: float) -> str:
    """A Unix time as `12:03:11 UTC`."""
    return datetime.fromtimestamp(wall, UTC).strftime("%H:%M:%S UTC") if math.isfinite(wall) else "an unknown time"


# --- eviction ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EvictionCandidate:
    """The properties of one replica that decide about its eviction."""

    id: int
    bytes_local: int
    used_at: float
    pinned: bool
    in_use: bool
    elsewhere: bool
    """Whether its data can be fetched again from another island."""


def evict(kept: Sequence[EvictionCandidate], needed: int) -> list[int]:
    """Ids of the replicas to drop, least recently used first, to free `needed` bytes.

    Replicas that are pinned, in use, or cannot be fetched again are never dropped. The list is
    empty if dropping all others would not free enough.
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
    """Whether a path of a manifest is a valid relative path that stays below its folder."""
    parts = path.split("/")
    return (
        0 < len(path.encode("utf-8", "replace")) <= 1024
        and "\0" not in path
        and all(part not in {"", ".", ".."} and len(part.encode("utf-8", "replace")) <= 255 for part in parts)
    )
