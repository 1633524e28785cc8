"""All message types that `island` defines, and the bytes that are most expensive to decode as one of them."""

from __future__ import annotations

import importlib
import pkgutil
import re
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import msgspec

import island
from island.kernel.codec import Malformed, Message

UNKNOWN = b"\xa2zz"
"""An encoded key that no message type has."""


def message_types() -> list[type[Message]]:
    """Every subclass of `Message` in any module of `island`, by name."""
    for module in pkgutil.walk_packages(island.__path__, "island."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

    def below(kind: type[Message]) -> Iterator[type[Message]]:
        for subclass in kind.__subclasses__():
            yield subclass
            yield from below(subclass)

    found = {kind for kind in below(Message) if kind.__module__.startswith("island.")}
    return sorted(found, key=lambda kind: (kind.__module__, kind.__name__))


# --- values that are expensive to decode -----------------------------------------------------


def _many(item: bytes, size: int) -> bytes:
    count = (size - 5) // len(item)
    return b"\xdd" + count.to_bytes(4, "big") + item * count


def _pairs(pair: bytes, size: int) -> bytes:
    count = (size - 5) // len(pair)
    return b"\xdf" + count.to_bytes(4, "big") + pair * count


def _nested(head: bytes, size: int) -> bytes:
    return head * (size // len(head))


def _claim(size: int) -> bytes:
    return min(size, 0xFFFF).to_bytes(2, "big")


VALUES: dict[str, Callable[[int], bytes]] = {
    "nested arrays that each claim all": lambda size: _nested(b"\xdc" + _claim(size), size),
    "nested maps that each claim all": lambda size: _nested(b"\xde" + _claim(size) + b"\xa1a", size),
    "nested maps as keys": lambda size: _nested(b"\xde" + _claim(size), size),
    "arrays nested as deep as they go": lambda size: _nested(b"\x91", size - 1) + b"\xc0",
    "maps nested as deep as they go": lambda size: _nested(b"\x81\xa1a", size - 3) + b"\xc0",
    "an array that claims too much": lambda size: b"\xdd\xff\xff\xff\xff" + bytes(size - 5),
    "a map that claims too much": lambda size: b"\xdf\xff\xff\xff\xff" + bytes(size - 5),
    "text that claims too much": lambda size: b"\xdb\xff\xff\xff\xff" + bytes(size - 5),
    "binary that claims too much": lambda size: b"\xc6\xff\xff\xff\xff" + bytes(size - 5),
    "empty arrays": lambda size: _many(b"\x90", size),
    "empty maps": lambda size: _many(b"\x80", size),
    "arrays of one": lambda size: _many(b"\x91\x00", size),
    "small integers": lambda size: _many(b"\x01", size),
    "integers": lambda size: _many(b"\xcd\x7f\xff", size),
    "floats": lambda size: _many(b"\xca\x3f\x80\x00\x00", size),
    "short texts": lambda size: _many(b"\xa2ab", size),
    "times": lambda size: _many(b"\xd6\xff\x00\x00\x00\x01", size),
    "extensions": lambda size: _many(b"\xd4\x05\x00", size),
    "pairs": lambda size: b"\xdf" + ((size - 5) // 6).to_bytes(4, "big")
    + b"".join(b"\xa4%04x\x00" % (n & 0xFFFF) for n in range((size - 5) // 6)),
    "one key many times": lambda size: _pairs(b"\xa1a\x00", size),
    "one long text": lambda size: b"\xdb" + (size - 5).to_bytes(4, "big") + b"a" * (size - 9) + "\U0001f52d".encode(),
    "text that is not UTF-8": lambda size: b"\xdb" + (size - 5).to_bytes(4, "big") + b"\xff" * (size - 5),
    "one long binary": lambda size: b"\xc6" + (size - 5).to_bytes(4, "big") + bytes(size - 5),
}  # fmt: skip
"""By name: functions that return a valid or invalid msgpack value of at most `size` bytes."""


def attacks(kind: type[Message], size: int) -> Iterator[tuple[str, bytes]]:
    """What an attacker could send where a `kind` is expected, as (description, bytes)."""
    for name, value in VALUES.items():
        yield f"{name}, instead of the message", value(size)
        if kind.__struct_config__.array_like:
            yield f"{name}, as the first field", b"\xdc\x00\x10" + value(size - 16)
            continue
        yield f"{name}, as an unknown field", b"\x81" + UNKNOWN + value(size - 16)
        valid = msgpack.packb({**_smallest_message(kind), "zz": None})[:-1]
        yield f"{name}, beside a valid message", valid + value(max(16, size - len(valid)))
        for field in kind.__struct_encode_fields__:
            yield f"{name}, as {field}", b"\x81" + msgpack.packb(field) + value(size - 64)


# --- valid messages of the smallest parts -----------------------------------------------------


def densest(kind: type[Message]) -> Iterator[tuple[str, bytes]]:
    """Valid messages with the maximum number of small values in one field, for each field."""
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    for crowded in info.fields:
        fields = {
            field.encode_name: _crowded(field.type) if field is crowded else smallest(field.type)
            for field in info.fields
            if field.required or field is crowded or info.array_like
        }
        if info.tag_field is not None:
            fields[info.tag_field] = info.tag
        yield crowded.name, msgpack.packb(list(fields.values()) if info.array_like else fields)


def _smallest_message(kind: type[Message]) -> dict[str, Any]:
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    tag = {} if info.tag_field is None else {info.tag_field: info.tag}
    return tag | {field.encode_name: smallest(field.type) for field in info.fields if field.required}


SAMPLES = ("", "a", "a/b", "a:1", "0" * 16, "0" * 40, "0" * 64, "session", "show")


def smallest(info: msgspec.inspect.Type) -> Any:
    """A short value of this type."""
    match info:
        case msgspec.inspect.StructType():
            fields = {field.encode_name: smallest(field.type) for field in info.fields if field.required}
            return list(fields.values()) if info.array_like else fields
        case msgspec.inspect.StrType():
            fits = (s for s in SAMPLES if len(s) >= (info.min_length or 0) and re.search(info.pattern or "", s))
            return next(fits)
        case msgspec.inspect.BytesType():
            return bytes(info.min_length or 0)
        case msgspec.inspect.IntType() | msgspec.inspect.FloatType():
            return max(0, info.ge or 0)
        case msgspec.inspect.BoolType():
            return False
        case msgspec.inspect.LiteralType():
            return info.values[0]
        case msgspec.inspect.VarTupleType():
            return [smallest(info.item_type)] * (info.min_length or 0)
        case msgspec.inspect.TupleType():
            return [smallest(each) for each in info.item_types]
        case msgspec.inspect.DictType():
            return {}
        case msgspec.inspect.UnionType():
            return smallest(info.types[0])
    raise AssertionError(f"no smallest value is known of {info}")


def _crowded(info: msgspec.inspect.Type) -> Any:
    match info:
        case msgspec.inspect.VarTupleType():
            return [smallest(info.item_type)] * _count(info.max_length)
        case msgspec.inspect.DictType(key_type=msgspec.inspect.StrType() as key):
            width = len(smallest(key))
            return {f"{n:0{width}x}": smallest(info.value_type) for n in range(_count(info.max_length))}
        case msgspec.inspect.UnionType():
            return _crowded(info.types[0])
    return smallest(info)


def _count(most: int | None) -> int:
    """The maximum number of elements, limited to 20,000 to keep the tests fast."""
    return min(most or 20_000, 20_000)


# --- memory for decoding ----------------------------------------------------------------------


def peak(decode: Callable[[], Any], *, bound: int | None = None) -> int:
    """Peak number of bytes that `decode` allocates. It may raise `Malformed`.

    Other threads of the process allocate memory too. A result above `bound` is therefore measured up to
    twice again, and the minimum is returned.
    """
    highest = _peak(decode)
    for _ in range(2):
        if bound is None or highest <= bound:
            break
        highest = min(highest, _peak(decode))
    return highest


def _peak(decode: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        decode()
    except Malformed:
        pass
    finally:
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return highest
