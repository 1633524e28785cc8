"""Pure functions of gossip: encode and check batches, compare heads, limit rates.

The log of an origin is a chain of signed batches. A `Head` is the position up to which an island
has a log; a `HeadVector` has all heads of an island. Comparing two of them shows what each side lacks.
"""

from __future__ import annotations

import bisect
import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from blake3 import blake3

from island.errors import BadInput
from island.gossip.messages import (
    BATCH_LIMIT,
    HEADS_A_PAGE,
    KEY,
    KEY_LIMIT,
    VALUE_LIMIT,
    BatchBody,
    Digest,
    HeadAt,
    HeadOf,
    Heads,
    LogEntry,
    PullRange,
    SignedBatch,
)
from island.kernel import codec
from island.kernel.codec import Malformed
from island.kernel.ids import IslandId, island_id, key_bytes

EPOCH = 1
"""The only epoch of this version. A later epoch would begin with a checkpoint, which this version cannot read."""

MAX_ORIGINS = 10_000
MAX_KEYS = 10_000
"""Maximum number of records of one origin, including tombstones."""

MAX_LOG_BYTES = 256 * 2**20
"""Maximum number of bytes of one origin's batches. This version cannot remove old batches."""

KEY_INTERVAL = 10.0
"""Minimum number of seconds between two signed changes of one key."""

ZERO = bytes(32)
FROZEN = b"\xff" * 8


# Batches


@dataclass(frozen=True, slots=True)
class LogBatch:
    """A well-formed batch. Its signature is not verified yet."""

    origin: IslandId
    epoch: int
    first: int
    last: int
    previous: bytes
    hash: bytes
    entries: tuple[LogEntry, ...]
    body: bytes
    signature: bytes
    signed: bytes
    """The encoded `SignedBatch`, as sent and stored."""


def batch_hash(body: bytes) -> bytes:
    """The hash of a batch, which the next batch and the head contain."""
    return blake3(body).digest()


def open_batch(signed: bytes) -> LogBatch:
    """Decode a batch; raises `Malformed` unless sizes, keys and sequence numbers are valid."""
    outer = codec.decode(signed, SignedBatch)
    body = codec.decode(outer.body, BatchBody)
    for place, entry in enumerate(body.entries):
        if entry.seq != body.first + place:
            raise Malformed(f"a batch has seq {entry.seq} instead of {body.first + place}")
        if not KEY.match(entry.key):
            raise Malformed(f"{entry.key[:80]!r} is not the key of a record")
    return LogBatch(
        origin=island_id(body.origin),
        epoch=body.epoch,
        first=body.first,
        last=body.first + len(body.entries) - 1,
        previous=body.previous,
        hash=batch_hash(outer.body),
        entries=body.entries,
        body=outer.body,
        signature=outer.signature,
        signed=signed,
    )


def check_record(key: str, value: bytes | None) -> None:
    """Raise `BadInput` unless key and value are valid in a log."""
    if not isinstance(key, str) or len(key) > KEY_LIMIT or not KEY.match(key):
        raise BadInput(
            f"{str(key)[:80]!r} is not the key of a record",
            hint=f"Keys are kind/rest in printable ASCII without spaces, at most {KEY_LIMIT} bytes.",
        )
    if value is not None and len(value) > VALUE_LIMIT:
        raise BadInput(
            f"the record {key} has {len(value)} bytes, over the limit of {VALUE_LIMIT}",
            hint="Put large content into a blob, and its hash into the record.",
        )


def cut_batches(me: IslandId, head: Head, changes: Sequence[tuple[str, bytes | None]]) -> list[bytes]:
    """Return the bodies of batches that append `changes` to `head`, each within the limit when signed.

    They must be signed and stored in this order, because each contains the hash of the previous one.
    """
    bodies: list[bytes] = []
    previous, seq, start = head.hash, head.seq, 0
    while start < len(changes):
        size, end = 256, start  # 256: fields of the body, the signature and its envelope
        while end < len(changes) and end - start < 1000:
            size += len(changes[end][0]) + len(changes[end][1] or b"") + 24
            if size > BATCH_LIMIT and end > start:
                break
            end += 1
        entries = tuple(
            LogEntry(key=key, value=value, seq=seq + place)
            for place, (key, value) in enumerate(changes[start:end], start=1)
        )
        body = codec.encode(
            BatchBody(origin=key_bytes(me), epoch=head.epoch, first=seq + 1, previous=previous, entries=entries)
        )
        bodies.append(body)
        previous, seq, start = batch_hash(body), seq + len(entries), end
    return bodies


# Heads


@dataclass(frozen=True, slots=True)
class Head:
    """The position up to which an island has the log of one origin."""

    epoch: int = EPOCH
    seq: int = 0
    hash: bytes = ZERO
    frozen: bool = False

    def after(self, batch: LogBatch) -> Head:
        """The head after `batch` was appended. The batch must fit."""
        return Head(batch.epoch, batch.last, batch.hash)

    @property
    def short(self) -> bytes:
        """The part of the hash in digests; empty for a frozen origin."""
        return b"" if self.frozen else self.hash[:8]

    @property
    def shown(self) -> int:
        """The sequence number in digests; 0 for a frozen origin."""
        return 0 if self.frozen else self.seq


class HeadVector:
    """The heads of all origins at one island, and two hashes that summarize them."""

    def __init__(self, heads: Mapping[IslandId, Head] | None = None) -> None:
        self._heads: dict[IslandId, Head] = dict(heads or {})
        self._roster: list[IslandId] = sorted(self._heads)
        self._hashes: tuple[bytes, bytes] | None = None

    def __contains__(self, origin: IslandId) -> bool:
        return origin in self._heads

    def __len__(self) -> int:
        return len(self._heads)

    def get(self, origin: IslandId) -> Head:
        """The head of `origin`; the head of an empty log if the origin is not known."""
        return self._heads.get(origin, Head())

    def set(self, origin: IslandId, head: Head) -> None:
        if origin not in self._heads:
            bisect.insort(self._roster, origin)
        self._heads[origin] = head
        self._hashes = None

    def freeze(self, origin: IslandId) -> None:
        self.set(origin, replace(self.get(origin), frozen=True))

    @property
    def roster(self) -> Sequence[IslandId]:
        """The known origins, sorted by key."""
        return self._roster

    def digest(self, after: bytes = b"") -> Digest:
        """Roster hash and state root."""
        roster, root = self._hash()
        return Digest(roster=roster, root=root, after=after)

    def answer(self, asked: Digest) -> Heads:
        """The answer to the digest of another island."""
        roster, root = self._hash()
        if (roster, root) == (asked.roster, asked.root):
            return Heads(roster=roster, root=root)
        start = bisect.bisect_right(self._roster, IslandId(asked.after.hex())) if asked.after else 0
        origins = self._roster[start : start + HEADS_A_PAGE]
        more = start + HEADS_A_PAGE < len(self._roster)
        heads = [(origin, self._heads[origin]) for origin in origins]
        if roster == asked.roster:
            indexed = tuple(HeadAt(epoch=h.epoch, seq=h.shown, head=h.short) for _, h in heads)
            return Heads(roster=roster, root=root, indexed=indexed, more=more)
        keyed = tuple(HeadOf(origin=key_bytes(o), epoch=h.epoch, seq=h.shown, head=h.short) for o, h in heads)
        return Heads(roster=roster, root=root, keyed=keyed, more=more)

    def read(self, asked: Digest, answer: Heads) -> tuple[list[HeadOf], bytes | None]:
        """Return (heads of an answer with their keys, key after which to continue or None at the end).

        Raises `Malformed` if the answer does not match the request.
        """
        if answer.indexed:
            if answer.roster != asked.roster:
                raise Malformed("heads by index for another roster")
            if self._hash()[0] != asked.roster:  # it changed during the request; the next one uses the new roster
                return [], None
            start = bisect.bisect_right(self._roster, IslandId(asked.after.hex())) if asked.after else 0
            origins = self._roster[start : start + len(answer.indexed)]
            if len(origins) != len(answer.indexed):
                raise Malformed("more heads by index than the roster has")
            heads = [
                HeadOf(origin=key_bytes(o), epoch=h.epoch, seq=h.seq, head=h.head)
                for o, h in zip(origins, answer.indexed, strict=True)
            ]
        else:
            heads = list(answer.keyed)
            keys = [head.origin for head in heads]
            if any(a >= b for a, b in zip([asked.after, *keys], keys, strict=False)):
                raise Malformed("heads that are not in the order of keys")
        return heads, heads[-1].origin if answer.more and heads else None

    def _hash(self) -> tuple[bytes, bytes]:
        if self._hashes is None:
            keys = [key_bytes(origin) for origin in self._roster]
            lines = []
            for origin, key in zip(self._roster, keys, strict=True):
                head = self._heads[origin]
                lines += [key, head.epoch.to_bytes(8), head.shown.to_bytes(8), head.short or FROZEN]
            self._hashes = blake3(b"".join(keys)).digest(), blake3(b"".join(lines)).digest()
        return self._hashes


class BatchVerdict(enum.Enum):
    """How a well-formed batch relates to a log that ends at some head."""

    FITS = "fits"
    PAST = "past"
    """At or below the head: a duplicate, or proof of a fork."""
    GAP = "gap"
    """Entries before it are missing."""
    BREAKS = "breaks"
    """It follows the head by number, but contains the hash of another batch: there is a fork at or below the head."""
    FROZEN = "frozen"
    OTHER_EPOCH = "other epoch"


def judge_batch(head: Head, batch: LogBatch) -> BatchVerdict:
    """How `batch` relates to a log that ends at `head`."""
    if head.frozen:
        return BatchVerdict.FROZEN
    if batch.epoch != head.epoch:
        return BatchVerdict.OTHER_EPOCH
    if batch.first <= head.seq:
        return BatchVerdict.PAST
    if batch.first > head.seq + 1:
        return BatchVerdict.GAP
    return BatchVerdict.FITS if batch.previous == head.hash else BatchVerdict.BREAKS


def contradict(one: LogBatch, other: LogBatch) -> bool:
    """Whether two batches with valid signatures prove a fork."""
    return (
        one.origin == other.origin
        and one.epoch == other.epoch
        and one.hash != other.hash
        and one.first <= other.last
        and other.first <= one.last
    )


@dataclass(slots=True)
class Difference:
    """What two islands lack compared with each other."""

    wants: list[PullRange] = field(default_factory=list)
    """What this island lacks and must pull."""
    offers: list[PullRange] = field(default_factory=list)
    """What the other island lacks."""


def compare_heads(mine: HeadVector, theirs: Iterable[HeadOf], after: bytes, until: bytes | None) -> Difference:
    """Compare heads of the origins above `after` up to `until` (None: to the end).

    If the heads of an origin differ at the same seq, its last batch is requested too, so that one
    side has both versions and can prove the fork. An origin that only the other side has frozen is
    requested to get the proof.
    """
    result = Difference()
    seen: set[IslandId] = set()
    for their in theirs:
        origin = island_id(their.origin)
        seen.add(origin)
        head = mine.get(origin)
        frozen = not their.head
        if frozen or head.frozen:
            if not head.frozen:
                result.wants.append(PullRange(origin=their.origin, epoch=head.epoch, after=head.seq))
            elif not frozen:
                result.offers.append(PullRange(origin=their.origin, epoch=their.epoch, after=their.seq))
        elif their.epoch != head.epoch:
            continue  # a later epoch would begin with a checkpoint, which this version cannot read
        elif their.seq > head.seq:
            result.wants.append(PullRange(origin=their.origin, epoch=head.epoch, after=head.seq))
        elif their.seq < head.seq:
            result.offers.append(PullRange(origin=their.origin, epoch=head.epoch, after=their.seq))
        elif their.seq and their.head != head.short:
            result.wants.append(PullRange(origin=their.origin, epoch=head.epoch, after=head.seq - 1))
    low = bisect.bisect_right(mine.roster, IslandId(after.hex())) if after else 0
    high = len(mine.roster) if until is None else bisect.bisect_right(mine.roster, IslandId(until.hex()))
    for origin in mine.roster[low:high]:
        if origin not in seen:
            result.offers.append(PullRange(origin=key_bytes(origin), epoch=mine.get(origin).epoch, after=0))
    return result


# Rate limits


def due_keys(pending: Iterable[str], signed: Mapping[str, float], now: float) -> tuple[list[str], float | None]:
    """Return (keys that may be signed at `now`, time at which the next key may be). Times are monotonic seconds."""
    ready, later = [], None
    for key in pending:
        at = signed.get(key, -KEY_INTERVAL) + KEY_INTERVAL
        if at <= now:
            ready.append(key)
        elif later is None or at < later:
            later = at
    return ready, later


@dataclass(slots=True)
class TokenBucket:
    """A token bucket that limits the work that one peer may cause: `rate` units per second, at most `burst` at once."""

    rate: float
    burst: float
    left: float = -1.0
    at: float = 0.0

    def take(self, amount: float, now: float) -> bool:
        """Take `amount` units at `now` (monotonic seconds) and return True; return False if there are too few."""
        if self.left < 0:
            self.left, self.at = self.burst, now
        self.left = min(self.burst, self.left + (now - self.at) * self.rate)
        self.at = now
        if self.left < amount:
            return False
        self.left -= amount
        return True


class RecentHashes:
    """The last `limit` hashes that were added, to recognize most duplicates cheaply."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: dict[bytes, None] = {}

    def __contains__(self, item: bytes) -> bool:
        return item in self._seen

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._seen)

    def add(self, item: bytes) -> None:
        self._seen[item] = None
        if len(self._seen) > self._limit:
            del self._seen[next(iter(self._seen))]

    def clear(self) -> None:
        """Remove all hashes."""
        self._seen.clear()
