"""The bounded codec: encodes typed structs as MessagePack and decodes them within limits.

`msgspec` decodes straight into the expected type, so that no memory is allocated for input that
the type does not allow: the size of a message is checked first, then each length before its
elements are read. A struct is encoded as a map. Unknown fields are skipped without building
them, so that islands of different versions can talk to each other.
`protocols/decisions/0012-typed-decoding.md` has measurements.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar, Final, TypeVar

import msgspec

from island.errors import PeerMisbehaved

CONTROL_LIMIT = 64 * 1024
"""Maximum size of a control message between islands, in bytes."""

BULK_LIMIT = 256 * 1024
"""Maximum size of a blob, a manifest page or a block of rows, in bytes."""

MAX_DEPTH = 16
"""Maximum nesting of arrays and maps; empty ones do not count."""

MAX_FOREIGN_VALUES = 256 * 1024
"""Maximum number of values (fields, keys, elements) in a message that this version would encode differently."""

T = TypeVar("T")


class Malformed(PeerMisbehaved):
    """Bytes that are not a message of the expected type within its limits."""

    code, status = "malformed", 400


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base class of all messages that are sent to other islands or stored on disk.

    Each field of variable length has a `max_length`; `tests/kernel/test_message_limits.py`
    checks all subclasses.
    """

    MAX_BYTES: ClassVar[int] = CONTROL_LIMIT
    """Maximum encoded size in bytes. Subclasses set their own."""


def encode(value: Any) -> bytes:
    """Encode a struct or plain value canonically: fields in order of definition, map keys sorted."""
    return msgspec.msgpack.encode(value, order="deterministic")


def decode(data: bytes | bytearray | memoryview, kind: type[T], *, limit: int | None = None) -> T:
    """Decode MessagePack bytes into a value of type `kind`.

    `limit` is the maximum size in bytes, by default that of the type (`limit_of`). Raises
    `Malformed` for input that is too long or nested too deeply, has trailing bytes, or does not
    meet the types and constraints of `kind`. If a map contains a key twice, both values are
    validated and the last one is used.
    """
    limit = limit_of(kind) if limit is None else limit
    if len(data) > limit:
        raise Malformed(f"a message of {len(data)} bytes is over the limit of {limit} bytes")
    try:
        value: T = _decoder(kind).decode(data)  # type: ignore[arg-type]  # a type is hashable, whatever T is
    # UnicodeDecodeError is a ValueError.
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise Malformed(f"not a valid {getattr(kind, '__name__', kind)}: {str(error)[:200]}") from error
    # The types limit the depth of known fields. Unknown fields are skipped at any depth for which
    # the interpreter's stack has room. That depth differs between islands, but all islands must
    # agree on what is malformed. Encoding the value again is cheap, and if the bytes are equal the
    # message has no unknown fields.
    if _ENCODER.encode(value) != data:
        _check_depth(memoryview(data))
    return value


def limit_of(kind: Any) -> int:
    """The maximum encoded size of a type in bytes: `MAX_BYTES` of a `Message`, else `CONTROL_LIMIT`."""
    return int(getattr(kind, "MAX_BYTES", CONTROL_LIMIT))


_ENCODER: Final = msgspec.msgpack.Encoder()


@functools.cache
def _decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind)


# --- nesting depth of skipped fields ---------------------------------------------------------

_SIZES: Final = [
    *[1] * 0x80,  # positive integers
    *[1, *[0] * 0x0F] * 2,  # maps and arrays: empty, then those in _CONTAINERS
    *range(1, 0x21),  # text of up to 31 bytes
    *(1, 1, 1, 1),  # nil, (unused), false, true
    *(0, 0, 0, 0, 0, 0),  # binary and extensions with a length, in _LENGTHS
    *(5, 9),  # floats
    *(2, 3, 5, 9),  # unsigned integers
    *(2, 3, 5, 9),  # integers
    *(3, 4, 6, 10, 18),  # extensions of fixed length
    *(0, 0, 0),  # text with a length, in _LENGTHS
    *(0, 0, 0, 0),  # arrays and maps with a count, in _CONTAINERS
    *[1] * 0x20,  # negative integers
]
"""Encoded size of a value by its first byte; 0 if the first byte does not determine it."""

_LENGTHS: Final = {
    0xC4: (1, 0),
    0xC5: (2, 0),
    0xC6: (4, 0),  # binary
    0xC7: (1, 1),
    0xC8: (2, 1),
    0xC9: (4, 1),  # extensions, which also have a type byte
    0xD9: (1, 0),
    0xDA: (2, 0),
    0xDB: (4, 0),  # text
}
"""By the first byte of a value with a length: (size of the length, number of bytes between it and the content)."""

_CONTAINERS: Final = {
    **{0x80 + count: (0, 2 * count) for count in range(16)},
    **{0x90 + count: (0, count) for count in range(16)},
    0xDC: (2, 1),
    0xDD: (4, 1),
    0xDE: (2, 2),
    0xDF: (4, 2),
}
"""By the first byte of a container: (0, number of values) or (size of the count, values for each element)."""


def _check_depth(data: memoryview) -> None:
    """Raise `Malformed` for valid MessagePack nested deeper than MAX_DEPTH or with more than MAX_FOREIGN_VALUES."""
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
    raise Malformed(f"a message of another version has more than {MAX_FOREIGN_VALUES} values")
