"""Frames of peer sessions: `length u32 | type u8 | id u32 | payload`, and the structs in payloads.

`length` counts the bytes that follow it. Structs are encoded with `kernel.codec`. Bodies and
blocks are appended as raw bytes, so that large data are not copied into a struct.
Specification: `protocols/peer-session-v1.md`.
"""

from __future__ import annotations

import asyncio
import struct
from enum import IntEnum
from typing import Annotated, Literal, NamedTuple

from msgspec import Meta

from island.errors import IslandError
from island.kernel import codec
from island.kernel.codec import BULK_LIMIT, CONTROL_LIMIT, Malformed, Message
from island.trust.messages import CHAIN_LIMIT, Address, Key, Name, Signature

VERSION = 1

HEAD = struct.Struct(">IBI")
"""Header of a frame: length (of type, id and payload), type, id."""

HANDSHAKE_LIMIT, HEAD_LIMIT = 8 * 1024, 1024
"""Maximum payload during the handshake, and maximum request head, in bytes."""

CONTROL_FRAME = CONTROL_LIMIT + HEAD_LIMIT + 2
BULK_FRAME = max(BULK_LIMIT, CONTROL_FRAME)
"""Maximum payloads of the two session classes, in bytes."""

TEXT_LIMIT = 1000
"""Maximum number of characters of an error's message, and of its hint."""

MAX_HOPS = 2
"""Maximum of `RequestHead.hops`: a request passes through at most one relay."""

SessionClass = Literal["control", "bulk", "join"]
Kind = Annotated[str, Meta(max_length=40, pattern=r"^[a-z][a-z0-9_.-]{0,39}\Z")]


class FrameType(IntEnum):
    """Type of a frame."""

    HELLO = 1
    PROOF = 2
    READY = 3
    GOODBYE = 4
    REDEEM = 5
    ADMITTED = 6
    PING = 16
    PONG = 17
    REQUEST = 18
    ANSWER = 19
    ERROR = 20
    PUSH = 21
    OPEN = 32
    DATA = 33
    CREDIT = 34
    END = 35
    CLOSE = 36


class Frame(NamedTuple):
    """A received frame."""

    type: FrameType
    id: int
    payload: bytes


class Hello(Message, frozen=True, kw_only=True):
    """First frame of each side. `network` is the network id as bytes; `chain` is empty in a session of class `join`."""

    MAX_BYTES = HANDSHAKE_LIMIT

    version: Annotated[int, Meta(ge=1, le=1000)]
    session: SessionClass
    network: Key
    key: Key
    name: Name
    nonce: Key
    program: Annotated[str, Meta(max_length=40, pattern=r"^[ -~]{0,40}\Z")] = ""
    """Version of the program, for display."""
    chain: Annotated[bytes, Meta(max_length=CHAIN_LIMIT)] = b""
    addresses: Annotated[tuple[Address, ...], Meta(max_length=8)] = ()
    """Addresses at which the sender can be dialled; empty if it has no peer port."""
    ticket: Annotated[bytes, Meta(max_length=32)] = b""
    """Ticket of the `DialBack` request because of which this bulk session was dialled; empty if there was none."""
    instance: Annotated[bytes, Meta(max_length=16)] = b""
    """Random id of this run of the program; distinguishes a restart from a second session."""


class KeyProof(Message, frozen=True, kw_only=True):
    """The signature (kind `session`) over `handshake.transcript`."""

    MAX_BYTES = 512

    signature: Signature


class Redeem(Message, frozen=True, kw_only=True):
    """The secret of an invitation; sent only after the inviter has proved its key."""

    MAX_BYTES = 512

    secret: Annotated[bytes, Meta(min_length=16, max_length=32)]


class Admitted(Message, frozen=True, kw_only=True):
    """The newcomer's chain."""

    MAX_BYTES = HANDSHAKE_LIMIT

    chain: Annotated[bytes, Meta(max_length=CHAIN_LIMIT)]


class RequestHead(Message, frozen=True, kw_only=True):
    """Head of a request, push or stream; its body follows as raw bytes.

    `to` is empty unless the receiver is asked to relay the request; then `hops` is 1 in the request
    of the origin and 2 in that of the relay. `origin` is the island that made the request, as
    claimed by the sender of this frame.
    """

    MAX_BYTES = HEAD_LIMIT

    kind: Kind
    to: Annotated[bytes, Meta(max_length=32)] = b""
    origin: Annotated[bytes, Meta(max_length=32)] = b""
    hops: Annotated[int, Meta(ge=0, le=MAX_HOPS)] = 0


class Refusal(Message, frozen=True, kw_only=True):
    """An error that is sent to the other side."""

    MAX_BYTES = HANDSHAKE_LIMIT

    code: Annotated[str, Meta(max_length=64, pattern=r"^[A-Za-z0-9_.-]{1,64}\Z")]
    message: Annotated[str, Meta(max_length=TEXT_LIMIT)]
    hint: Annotated[str, Meta(max_length=TEXT_LIMIT)] = ""


class Ping(Message, frozen=True, kw_only=True):
    """A keepalive; `rtt_us` is the round-trip time in microseconds that the sender has measured, 0 if unknown."""

    MAX_BYTES = 64

    nonce: Annotated[int, Meta(ge=0, le=2**62)]
    rtt_us: Annotated[int, Meta(ge=0, le=2**32)] = 0


class DialBack(Message, frozen=True, kw_only=True):
    """A request to dial a bulk session to the sender; `ticket` is repeated in the `Hello` of that session."""

    MAX_BYTES = 256

    ticket: Annotated[bytes, Meta(min_length=16, max_length=32)]


def refusal(error: IslandError) -> Refusal:
    """Convert an error to a `Refusal`; message and hint are truncated to `TEXT_LIMIT` characters."""
    return Refusal(code=error.code[:64], message=error.message[:TEXT_LIMIT], hint=error.hint[:TEXT_LIMIT])


def pack_frame(kind: FrameType, frame_id: int, *parts: bytes) -> list[bytes]:
    """Return the parts of one frame for `writelines`."""
    return [HEAD.pack(5 + sum(map(len, parts)), kind, frame_id), *parts]


def pack_headed(kind: FrameType, frame_id: int, head: RequestHead, body: bytes) -> list[bytes]:
    """Return the parts of a frame with the payload `length u16 | head | body`."""
    encoded = codec.encode(head)
    return pack_frame(kind, frame_id, len(encoded).to_bytes(2, "big"), encoded, body)


def split_headed(payload: bytes) -> tuple[RequestHead, bytes]:
    """Split the payload of `pack_headed` into head and body; raises `Malformed`."""
    size = int.from_bytes(payload[:2], "big")
    if len(payload) < 2 + size or size > HEAD_LIMIT:
        raise Malformed("a request whose head is truncated or too large")
    body = payload[2 + size :]
    if len(body) > CONTROL_LIMIT:
        raise Malformed(f"a request of {len(body)} bytes is over the limit of {CONTROL_LIMIT}")
    return codec.decode(payload[2 : 2 + size], RequestHead), body


async def read_frame(reader: asyncio.StreamReader, limit: int) -> Frame:
    """Read the next frame, whose payload may have at most `limit` bytes.

    Raises `Malformed` for a larger frame, before memory is allocated for it, and for an unknown
    type. Raises `IncompleteReadError` or `OSError` when the connection ends.
    """
    length, number, frame_id = HEAD.unpack(await reader.readexactly(HEAD.size))
    if not 5 <= length <= limit + 5:
        raise Malformed(f"a frame of {length} bytes is over the limit of {limit + 5}")
    try:
        kind = FrameType(number)
    except ValueError as error:
        raise Malformed(f"a frame of unknown type {number}") from error
    return Frame(kind, frame_id, await reader.readexactly(length - 5) if length > 5 else b"")
