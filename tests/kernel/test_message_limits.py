"""Every type of message is bounded: in its fields, in its depth, and in what its worst bytes cost to decode."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta, inspect

from island.kernel import codec
from island.kernel.codec import Malformed, Message
from island.net.frames import Hello
from island.trust.messages import CHAIN_LIMIT
from tests.standins.hostile_messages import VALUES, attacks, densest, message_types, peak

TYPES = message_types()
SIZE = 16 * 1024


def unbounded(kind: Any) -> list[str]:
    """The parts of a type that may be as long, or as deep, as the message is."""
    return [path for path, part in _parts(inspect.type_info(kind), "$", ()) if not _bounded(part)]


def _bounded(part: inspect.Type) -> bool:
    match part:
        case (
            inspect.StrType()
            | inspect.BytesType()
            | inspect.VarTupleType()
            | inspect.ListType()
            | inspect.SetType()
            | inspect.FrozenSetType()
            | inspect.DictType()
        ):
            return part.max_length is not None
        case inspect.IntType() | inspect.FloatType() | inspect.BoolType() | inspect.NoneType() | inspect.LiteralType():
            return True
        case inspect.StructType() | inspect.TupleType() | inspect.UnionType():
            return True  # as far as their parts are, which are looked at too
    return False  # Any, Raw, extensions, and whatever else nobody has thought about


def _parts(info: inspect.Type, path: str, above: tuple[Any, ...]) -> Iterator[tuple[str, inspect.Type]]:
    if isinstance(info, inspect.Metadata):
        info = info.type
    if isinstance(info, inspect.StructType):
        if info.cls in above:
            yield f"{path} (a {info.cls.__name__} in itself)", inspect.AnyType()
            return
        below = [(f"{path}.{field.name}", field.type) for field in info.fields]
        above = (*above, info.cls)
    elif isinstance(info, inspect.UnionType):
        below = [(path, each) for each in info.types]
    elif isinstance(info, inspect.TupleType):
        below = [(f"{path}[{number}]", each) for number, each in enumerate(info.item_types)]
    elif isinstance(info, inspect.DictType):
        below = [(f"{path}(key)", info.key_type), (f"{path}(value)", info.value_type)]
    else:
        item = getattr(info, "item_type", None)
        below = [(f"{path}[]", item)] if item is not None else []
    yield path, info
    for name, part in below:
        yield from _parts(part, name, above)


def depth(info: inspect.Type) -> int:
    """Arrays and maps around the innermost value of a type."""
    if isinstance(info, inspect.Metadata):
        info = info.type
    if isinstance(info, inspect.UnionType):
        return max(map(depth, info.types))
    if isinstance(info, inspect.StructType):
        return 1 + max((depth(field.type) for field in info.fields), default=0)
    if isinstance(info, inspect.TupleType):
        return 1 + max(map(depth, info.item_types))
    if isinstance(info, inspect.DictType):
        return 1 + max(depth(info.key_type), depth(info.value_type))
    item = getattr(info, "item_type", None)
    return 0 if item is None else 1 + depth(item)


def test_the_types_are_found() -> None:
    assert len(TYPES) > 70 and Hello in TYPES


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__qualname__)
def test_every_field_of_every_message_has_a_limit(kind: type[Message]) -> None:
    assert unbounded(kind) == []
    assert depth(inspect.type_info(kind)) <= codec.MAX_DEPTH


class Recursive(Message, frozen=True, kw_only=True):
    more: Recursive | None = None


@pytest.mark.parametrize(
    "part",
    [
        str,
        bytes,
        tuple[int, ...],
        list[int],
        dict[str, int],
        Annotated[dict[str, int], Meta(max_length=3)],
        Annotated[tuple[bytes, ...], Meta(max_length=3)],
        Annotated[str, Meta(pattern="^a*$")],
        str | None,
        tuple[int, str],
        Any,
        msgspec.Raw,
        Recursive,
    ],
    ids=str,
)
def test_a_field_without_a_limit_is_noticed(part: Any) -> None:
    assert unbounded(msgspec.defstruct("Loose", [("part", part)]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__qualname__)
def test_hostile_bytes_cost_little_memory(kind: type[Message]) -> None:
    size = max(256, min(SIZE, codec.limit_of(kind)))
    for name, data in attacks(kind, size):
        bound = 16 * len(data) + 4096
        cost = peak(partial(codec.decode, data, kind, limit=size), bound=bound)
        assert cost <= bound, f"{name}: {cost} bytes for {len(data)}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__qualname__)
def test_the_densest_valid_messages_cost_no_more_than_their_types_allow(kind: type[Message]) -> None:
    for field, data in densest(kind):
        codec.decode(data, kind, limit=len(data))
        bound = 24 * len(data) + 256 * 1024
        cost = peak(partial(codec.decode, data, kind, limit=len(data)), bound=bound)
        assert cost <= bound, f"{field}: {cost} bytes for {len(data)}"


def test_a_message_over_the_limit_of_its_type_is_refused_unread() -> None:
    data = bytes(codec.limit_of(Hello) + 1)
    with pytest.raises(Malformed, match="over the limit"):
        codec.decode(data, Hello)
    assert peak(partial(codec.decode, data, Hello), bound=4096) < 4096


def test_a_hello_of_a_stranger_has_a_few_kilobytes() -> None:
    assert codec.limit_of(Hello) <= 8 * 1024
    for field, data in densest(Hello):
        assert len(data) <= codec.limit_of(Hello), field


def test_the_largest_hello_fits_with_room_for_fields_of_later_versions() -> None:
    hello = Hello(
        version=1000,
        session="control",
        network=bytes(32),
        key=bytes(32),
        name="n" * 64,
        nonce=bytes(32),
        program="p" * 40,
        chain=bytes(CHAIN_LIMIT),
        addresses=("a" * 260,) * 8,
        ticket=bytes(32),
        instance=bytes(16),
    )
    assert codec.decode(codec.encode(hello), Hello) == hello
    assert len(codec.encode(hello)) + 1024 <= codec.limit_of(Hello)


class Sample(Message, frozen=True, kw_only=True):
    name: Annotated[str, Meta(max_length=8)] = ""


def test_unknown_fields_are_refused_at_one_depth_wherever_the_decoder_is_called() -> None:
    def called(frames: int, data: bytes) -> Sample:
        return called(frames - 1, data) if frames else codec.decode(data, Sample)

    for levels in range(2, 1200):
        data = b"\x81\xa2zz" + b"\x91" * (levels - 1) + b"\xc0"
        for frames in (0, 300):
            if levels <= codec.MAX_DEPTH:
                assert called(frames, data) == Sample()
            else:
                with pytest.raises(Malformed):
                    called(frames, data)


@pytest.mark.parametrize("name", sorted(VALUES))
def test_an_unknown_field_is_skipped_whole_or_refused(name: str) -> None:
    data = b"\x82\xa2zz" + VALUES[name](512) + b"\xa4name\xa1x"
    try:
        assert codec.decode(data, Sample) == Sample(name="x")
    except Malformed:
        assert "nested" in name or "too much" in name
