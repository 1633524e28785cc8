"""Messages of gossip, sent and stored. See `protocols/gossip-v1.md`.

Structs are encoded as maps of their fields. `LogEntry`, `PullRange` and the heads, which occur in
large numbers, are encoded as arrays in the order of their fields.
"""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta

from island.kernel.codec import Message

KEY_LIMIT = 200
"""Maximum size of a record's key, in bytes."""

VALUE_LIMIT = 4096
"""Maximum size of a record's value, in bytes. Larger content must be a blob."""

BATCH_LIMIT = 24 * 1024
"""Maximum size of a signed log batch, in bytes. A proof (two batches) and a chain fit in one control message."""

PAGE_LIMIT = 60_000
"""Maximum number of bytes of batches, chains and proofs in one message."""

CHAIN_LIMIT = 4096
"""Maximum size of an admission chain, in bytes (as in trust)."""

HEADS_A_PAGE = 800
"""Maximum number of heads in one answer: about 55 KiB with keys."""

WANTS_A_PAGE = 200
"""Maximum number of origins in one request."""

KEY = re.compile(r"[a-z][a-z0-9-]{0,31}/[\x21-\x7e]+\Z")
"""`kind/rest`, printable ASCII without spaces."""

Bytes32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
Number = Annotated[int, Meta(ge=0, le=2**53)]
Position = Annotated[int, Meta(ge=1, le=2**53)]
Signed = Annotated[bytes, Meta(min_length=1, max_length=BATCH_LIMIT)]


class LogEntry(Message, frozen=True, array_like=True):
    """One change of one key. Without a value it is a tombstone."""

    key: Annotated[str, Meta(min_length=3, max_length=KEY_LIMIT)]
    value: Annotated[bytes, Meta(max_length=VALUE_LIMIT)] | None
    seq: Position


class BatchBody(Message, frozen=True):
    """Consecutive entries of one origin. The signature and the head's hash are over these bytes."""

    MAX_BYTES = BATCH_LIMIT

    origin: Bytes32
    epoch: Position
    first: Position
    """Sequence number of the first entry; the others follow without gaps."""
    previous: Bytes32
    """Hash of the previous batch; zeros for the first batch of an epoch."""
    entries: Annotated[tuple[LogEntry, ...], Meta(min_length=1, max_length=2000)]


class SignedBatch(Message, frozen=True):
    """A log batch as sent and stored: the bytes of the body as the origin encoded them, and its signature."""

    MAX_BYTES = BATCH_LIMIT

    body: Annotated[bytes, Meta(max_length=BATCH_LIMIT)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


class ForkProof(Message, frozen=True):
    """Two different overlapping batches, both signed by their origin."""

    one: Signed
    other: Signed


class Delta(Message, frozen=True):
    """Batches of one origin in order, with its chain if the receiver may not have it."""

    origin: Bytes32
    chain: Annotated[bytes, Meta(max_length=CHAIN_LIMIT)] = b""
    batches: Annotated[tuple[Signed, ...], Meta(max_length=1000)] = ()
    proof: ForkProof | None = None


class DeltaPage(Message, frozen=True):
    """The body of a push, or the answer to a pull. `more`: the sender has more than fits in one message."""

    deltas: Annotated[tuple[Delta, ...], Meta(max_length=WANTS_A_PAGE)] = ()
    more: bool = False


class HeadAt(Message, frozen=True, array_like=True):
    """A head without its origin, which follows from its place in the roster that both sides share.

    A frozen origin has seq 0 and an empty head.
    """

    epoch: Number
    seq: Number
    head: Annotated[bytes, Meta(max_length=8)]
    """The first 8 bytes of the newest batch's hash."""


class HeadOf(Message, frozen=True, array_like=True):
    """A head with its origin."""

    origin: Bytes32
    epoch: Number
    seq: Number
    head: Annotated[bytes, Meta(max_length=8)]


class Digest(Message, frozen=True):
    """The hashes of a roster and of all heads. `after` limits the answer to origins above that key."""

    MAX_BYTES = 1024

    roster: Bytes32
    root: Bytes32
    after: Annotated[bytes, Meta(max_length=32)] = b""


class Heads(Message, frozen=True):
    """The answer to a digest: only the hashes if both are equal, otherwise also a page of heads.

    The heads are those of the origins above `after`, sorted by key: `indexed` if the rosters
    agree, `keyed` otherwise.
    """

    roster: Bytes32
    root: Bytes32
    indexed: Annotated[tuple[HeadAt, ...], Meta(max_length=HEADS_A_PAGE)] = ()
    keyed: Annotated[tuple[HeadOf, ...], Meta(max_length=HEADS_A_PAGE)] = ()
    more: bool = False


class PullRange(Message, frozen=True, array_like=True):
    """Requests the batches of one origin with entries above sequence number `after`."""

    origin: Bytes32
    epoch: Number
    after: Number


class Pull(Message, frozen=True):
    """Requests batches; the answer is a `DeltaPage`."""

    MAX_BYTES = 16 * 1024

    wants: Annotated[tuple[PullRange, ...], Meta(min_length=1, max_length=WANTS_A_PAGE)]
