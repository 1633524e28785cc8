"""The bounded codec: msgpack bytes to typed structs, and back.

`msgspec` decodes straight into the expected type, so that nothing is allocated for what the
type does not allow: the size of a message is checked first, then each length before its
elements are read. A struct travels as a map; unknown fields are skipped, not built, so that
versions can live together. `protocols/decisions/0012-typed-decoding.md` has the figures.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar, Final, TypeVar

import msgspec

from island.errors import PeerMisbehaved

CONTROL_LIMIT = 64 * 1024
"""The largest control message between islands, in bytes."""

BULK_LIMIT = 256 * 1024
"""The largest blob, page or row block in one piece, in bytes."""

MAX_DEPTH = 16
"""The deepest nesting of arrays and maps that is accepted; empty ones do not count."""

MAX_FOREIGN_VALUES = 256 * 1024
"""Values (fields, keys, elements) in a message that this version would have encoded differently."""

T = TypeVar("T")


class Malformed(PeerMisbehaved):
    """Bytes that are not a message of the expected type within its limits."""

    code, status = "malformed", 400


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of everything that crosses the wire or reaches the disk.

    Each field of variable length has a `max_length`; `tests/kernel/test_message_limits.py`
    checks all subclasses.
    """

    MAX_BYTES: ClassVar[int] = CONTROL_LIMIT
    """The largest encoded message of this type. Subclasses set their own."""


def encode(value: Any) -> bytes:
    """The canonical bytes of a struct or plain value: fields in order of definition, map keys sorted."""
    return msgspec.msgpack.encode(value, order="deterministic")


def decode(data: bytes | bytearray | memoryview, kind: type[T], *, limit: int | None = None) -> T:
    """A value of type `kind` from msgpack bytes.

    `limit` is the largest accepted size in bytes, by default that of the type (`limit_of`).
    Raises `Malformed` for anything else than a value of this type: too long, too deep,
    trailing bytes, wrong types, values outside the constraints of the type. Where a map has
    a key twice, each value is checked and the last one counts.
    """
    limit = limit_of(kind) if limit is None else limit
    if len(data) > limit:
        raise Malformed(f"a message of {len(data)} bytes is over the limit of {limit}")
    try:
        value: T = _decoder(kind).decode(data)  # type: ignore[arg-type]  # a type is hashable, whatever T is
    # UnicodeDecodeError is a ValueError.
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise Malformed(f"not a valid {getattr(kind, '__name__', kind)}: {str(error)[:200]}") from error
    # The depth of known fields is that of their types. Unknown ones are skipped at any depth that
    # the interpreter's stack happens to have room for, which differs between islands, and
    # islands must agree on what is malformed. Encoding again costs little, and equal bytes
    # have no unknown fields.
    if _ENCODER.encode(value) != data:
        _check_depth(memoryview(data))
    return value


def limit_of(kind: Any) -> int:
    """The largest encoded size of a type in bytes: `MAX_BYTES` of a message, else CONTROL_LIMIT."""
    return int(getattr(kind, "MAX_BYTES", CONTROL_LIMIT))


_ENCODER: Final = msgspec.msgpack.Encoder()


@functools.cache
def _decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind)


# --- the depth of what the decoder skipped ---------------------------------------------------

_SIZES: Final = [
    *[1] * 0x80,  # positive integers
    *[1, *[0] * 0x0F] * 2,  # maps and arrays: empty ones, and others, below
    *range(1, 0x21),  # text of up to 31 bytes
    *(1, 1, 1, 1),  # nil, (unused), false, true
    *(0, 0, 0, 0, 0, 0),  # binary and extensions with their lengths, below
    *(5, 9),  # floats
    *(2, 3, 5, 9),  # unsigned integers
    *(2, 3, 5, 9),  # integers
    *(3, 4, 6, 10, 18),  # extensions of fixed length
    *(0, 0, 0),  # text with its length, below
    *(0, 0, 0, 0),  # arrays and maps with their lengths, below
    *[1] * 0x20,  # negative integers
]
"""Bytes of a whole value by its first byte; 0 where that byte does not say it."""

_LENGTHS: Final = {
    0xC4: (1, 0),
    0xC5: (2, 0),
    0xC6: (4, 0),  # binary
    0xC7: (1, 1),
    0xC8: (2, 1),
    0xC9: (4, 1),  # extensions, which have a type besides
    0xD9: (1, 0),
    0xDA: (2, 0),
    0xDB: (4, 0),  # text
}
"""First byte of a value with a length: (bytes of the length, bytes between it and the content)."""

_CONTAINERS: Final = {
    **{0x80 + count: (0, 2 * count) for count in range(16)},
    **{0x90 + count: (0, count) for count in range(16)},
    0xDC: (2, 1),
    0xDD: (4, 1),
    0xDE: (2, 2),
    0xDF: (4, 2),
}
"""First byte of a container: (0, values) or (bytes of the count, values for each)."""


def _check_depth(data: memoryview) -> None:
    """Raise `Malformed` for valid msgpack that is nested deeper than MAX_DEPTH, or has too many values."""
    at, left = 0, 1
    outer: list[int] = []
    for _ in range(MAX_FOREIGN_VALUES):
        while not left:
            if not outer:
                return
            left = outer.pop()
        left -= 1
        first = data[at]
        if size := _SIZES[first]:
            at += size
        elif first in _LENGTHS:
            width, more = _LENGTHS[first]
            at += 1 + width + more + int.from_bytes(data[at + 1 : at + 1 + width], "big")
        else:
            width, values = _CONTAINERS[first]
            count = values * int.from_bytes(data[at + 1 : at + 1 + width], "big") if width else values
            at += 1 + width
            if count:
                outer.append(left)
                left = count
                if len(outer) > MAX_DEPTH:
                    raise Malformed(f"a message is nested deeper than {MAX_DEPTH} levels")
    raise Malformed(f"a message of another version has over {MAX_FOREIGN_VALUES} values")
