"""What gossip sends and stores: `protocols/gossip-v1.md`.

A struct travels as a map of its fields; `LogEntry` and the heads, of which there are many,
travel as arrays in the order of their fields.
"""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta

from island.kernel.codec import Message

KEY_LIMIT = 200
"""The longest key of a record, in bytes."""

VALUE_LIMIT = 4096
"""The largest value of a record, in bytes; anything bigger is a blob."""

BATCH_LIMIT = 24 * 1024
"""The largest signed batch, in bytes: two of them, a proof, fit in one control message with a chain."""

PAGE_LIMIT = 60_000
"""Bytes of batches, chains and proofs in one message. One delta always fits."""

CHAIN_LIMIT = 4096
"""The largest admission chain, in bytes (as in trust)."""

HEADS_A_PAGE = 800
"""Heads in one answer, about 55 KiB when by key."""

WANTS_A_PAGE = 200
"""Origins asked for in one request."""

KEY = re.compile(r"[a-z][a-z0-9-]{0,31}/[\x21-\x7e]+\Z")
"""`kind/rest`, printable ASCII without spaces."""

Bytes32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
Number = Annotated[int, Meta(ge=0, le=2**53)]
Position = Annotated[int, Meta(ge=1, le=2**53)]
Signed = Annotated[bytes, Meta(min_length=1, max_length=BATCH_LIMIT)]


class LogEntry(Message, frozen=True, array_like=True):
    """One change of one key; no value is a tombstone."""

    key: Annotated[str, Meta(min_length=3, max_length=KEY_LIMIT)]
    value: Annotated[bytes, Meta(max_length=VALUE_LIMIT)] | None
    seq: Position


class BatchBody(Message, frozen=True):
    """Consecutive entries of one origin: what is signed, and hashed to the head."""

    MAX_BYTES = BATCH_LIMIT

    origin: Bytes32
    epoch: Position
    first: Position
    """Seq of the first entry; the others follow without a gap."""
    previous: Bytes32
    """Hash of the batch before, zeros for the first one of an epoch."""
    entries: Annotated[tuple[LogEntry, ...], Meta(min_length=1, max_length=2000)]


class SignedBatch(Message, frozen=True):
    """A batch as it travels and is stored: the body's bytes as the origin encoded them."""

    MAX_BYTES = BATCH_LIMIT

    body: Annotated[bytes, Meta(max_length=BATCH_LIMIT)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


class ForkProof(Message, frozen=True):
    """Two different batches that overlap: their origin signed both."""

    one: Signed
    other: Signed


class Delta(Message, frozen=True):
    """Batches of one origin in order; its chain where the receiver may not have it."""

    origin: Bytes32
    chain: Annotated[bytes, Meta(max_length=CHAIN_LIMIT)] = b""
    batches: Annotated[tuple[Signed, ...], Meta(max_length=1000)] = ()
    proof: ForkProof | None = None


class DeltaPage(Message, frozen=True):
    """A push, or the answer to a pull. `more`: the sender had more than fits."""

    deltas: Annotated[tuple[Delta, ...], Meta(max_length=WANTS_A_PAGE)] = ()
    more: bool = False


class HeadAt(Message, frozen=True, array_like=True):
    """The head of the origin at one place of a roster that both sides share.

    Frozen: seq 0 and no head.
    """

    epoch: Number
    seq: Number
    head: Annotated[bytes, Meta(max_length=8)]
    """The first 8 bytes of the newest batch's hash."""


class HeadOf(Message, frozen=True, array_like=True):
    """The head of one origin by its key."""

    origin: Bytes32
    epoch: Number
    seq: Number
    head: Annotated[bytes, Meta(max_length=8)]


class Digest(Message, frozen=True):
    """What a side has, in two hashes. `after` asks for the heads of origins above that key only."""

    MAX_BYTES = 1024

    roster: Bytes32
    root: Bytes32
    after: Annotated[bytes, Meta(max_length=32)] = b""


class Heads(Message, frozen=True):
    """The answer to a digest: nothing but the hashes where both are equal, else a page of heads.

    The heads are those of the origins above `after` in the order of keys: `indexed` if the
    rosters agree, `keyed` if not.
    """

    roster: Bytes32
    root: Bytes32
    indexed: Annotated[tuple[HeadAt, ...], Meta(max_length=HEADS_A_PAGE)] = ()
    keyed: Annotated[tuple[HeadOf, ...], Meta(max_length=HEADS_A_PAGE)] = ()
    more: bool = False


class PullRange(Message, frozen=True, array_like=True):
    """Ask for the batches of one origin that hold entries above `after`."""

    origin: Bytes32
    epoch: Number
    after: Number


class Pull(Message, frozen=True):
    """Ask for batches; the answer is a `DeltaPage`."""

    MAX_BYTES = 16 * 1024

    wants: Annotated[tuple[PullRange, ...], Meta(min_length=1, max_length=WANTS_A_PAGE)]
