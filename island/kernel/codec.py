"""The bounded codec: msgpack bytes to typed structs, with limits before memory is allocated.

This is the one user of `msgpack`. Decoding has three steps: the size of the whole, then
msgpack with limits derived from that size, then a typed conversion by `msgspec`. A struct
travels as a map; unknown fields are ignored, so that versions can live together.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgpack
import msgspec

from island.errors import PeerMisbehaved

CONTROL_LIMIT = 64 * 1024
"""The largest control message between islands, in bytes."""

BULK_LIMIT = 256 * 1024
"""The largest blob, page or row block in one piece, in bytes."""

MAX_DEPTH = 16
"""The deepest nesting of arrays and maps that is accepted."""

T = TypeVar("T")


class Malformed(PeerMisbehaved):
    """Bytes that are not a message of the expected type within its limits."""

    code, status = "malformed", 400


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of everything that crosses the wire or reaches the disk."""


def encode(value: Any) -> bytes:
    """The canonical bytes of a struct or plain value: fields in order of definition, map keys sorted."""
    return msgspec.msgpack.encode(value, order="deterministic")


def decode(data: bytes | bytearray | memoryview, kind: type[T], *, limit: int = CONTROL_LIMIT) -> T:
    """A value of type `kind` from msgpack bytes of at most `limit` bytes.

    Raises `Malformed` for anything else: too long, too deep, trailing bytes, wrong types,
    values outside the constraints of the type. No allocation exceeds a small multiple of
    the size of `data`.
    """
    plain = decode_plain(data, limit=limit)
    try:
        # Without `builtin_types` text would pass for bytes, as base64.
        return msgspec.convert(plain, kind, strict=True, builtin_types=(bytes,))
    except (msgspec.ValidationError, RecursionError, OverflowError) as error:
        raise Malformed(f"not a valid {getattr(kind, '__name__', kind)}: {str(error)[:200]}") from error


def decode_plain(data: bytes | bytearray | memoryview, *, limit: int = CONTROL_LIMIT) -> Any:
    """Msgpack bytes as plain Python values, under the same limits as `decode`."""
    size = len(data)
    if size > limit:
        raise Malformed(f"a message of {size} bytes is over the limit of {limit}")
    try:
        plain = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=False,
            max_str_len=size,
            max_bin_len=size,
            max_array_len=size,
            max_map_len=size,
            max_ext_len=0,
        )
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise Malformed(f"not msgpack: {type(error).__name__}: {str(error)[:200]}") from error
    _check_depth(plain)
    return plain


def _check_depth(plain: Any) -> None:
    level: list[Any] = [plain]
    for _ in range(MAX_DEPTH + 1):
        level = [
            child
            for value in level
            if isinstance(value, (list, dict))
            for child in (value if isinstance(value, list) else [*value.keys(), *value.values()])
        ]
        if not level:
            return
    raise Malformed(f"a message is nested deeper than {MAX_DEPTH} levels")
