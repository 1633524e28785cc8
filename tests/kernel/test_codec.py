"""The bounded codec: what it accepts, and that it never lets hostile bytes through."""

from typing import Annotated, Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from island.kernel import codec
from island.kernel.codec import Malformed, Message


class Sample(Message, frozen=True, kw_only=True):
    name: str
    count: int = 0
    data: bytes = b""


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(plain)
def test_the_second_implementation_reads_what_is_encoded(value: Any) -> None:
    assert msgpack.unpackb(codec.encode(value), strict_map_key=False) == value


@given(st.text(), st.integers(-(2**63), 2**64 - 1), st.binary())
def test_what_the_second_implementation_encodes_is_decoded(name: str, count: int, data: bytes) -> None:
    packed = msgpack.packb({"name": name, "count": count, "data": data})
    assert codec.decode(packed, Sample) == Sample(name=name, count=count, data=data)


@given(plain)
def test_unknown_fields_are_skipped_whole(value: Any) -> None:
    data = b"\x82" + msgpack.packb("from_the_future") + codec.encode(value) + msgpack.packb("name") + msgpack.packb("a")
    assert codec.decode(data, Sample) == Sample(name="a")


def test_of_a_key_that_is_given_twice_each_value_is_checked_and_the_last_one_counts() -> None:
    twice = b"\x82" + b"".join(map(msgpack.packb, ("name", "first", "name", "second")))
    assert codec.decode(twice, Sample) == Sample(name="second")
    with pytest.raises(Malformed):
        codec.decode(b"\x82" + b"".join(map(msgpack.packb, ("name", 1, "name", "second"))), Sample)


def test_a_message_of_another_version_with_endless_unknown_values_is_refused() -> None:
    count = codec.MAX_FOREIGN_VALUES
    data = b"\x82\xa4name\xa1a\xa2zz\xdd" + count.to_bytes(4, "big") + bytes(count)
    with pytest.raises(Malformed, match="another version"):
        codec.decode(data, Sample, limit=len(data))


def test_values_out_of_their_range_are_refused_also_where_they_are_no_numbers() -> None:
    class Bounded(Message, frozen=True, kw_only=True):
        at: Annotated[float, Meta(ge=0, le=1)]

    for at in (-1.0, 2.0, float("inf")):
        with pytest.raises(Malformed):
            codec.decode(codec.encode({"at": at}), Bounded)


@given(st.binary(max_size=300))
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    try:
        codec.decode(data, Sample)
    except Malformed:
        return


def test_a_struct_survives_and_unknown_fields_are_ignored() -> None:
    value = Sample(name="ž", count=3, data=b"\0\xff")
    assert codec.decode(codec.encode(value), Sample) == value
    assert codec.decode(msgpack.packb({"name": "a", "from_the_future": [1]}), Sample) == Sample(name="a")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\xdf\xff\xff\xff\xff",  # a map that claims 4 billion entries
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        msgpack.packb({"name": 1}),
        msgpack.packb({"count": 1}),
        msgpack.packb({"name": "a"}) + b"\xc0",
        b"\x91" * 5000 + b"\xc0",
        b"\x91" * 20 + b"\xc0",
        msgpack.packb({"name": "a" * 100_000}),
        b"\xa2\xff\xfe",
        b"\xd4\x00\x00",
        msgpack.packb({"data": "dGV4dA=="}),
        msgpack.packb({"name": b"a"}),
        b"\x81\xa4name\xd4\x00\x00",
        b"\x81\xa4name\xa3\xed\xa0\x80",  # half a pair of surrogates
        b"\x81\x01\x02",
    ],
)
def test_hostile_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        codec.decode(data, Sample)


def test_map_keys_are_in_one_order() -> None:
    assert codec.encode({"b": 1, "a": 2}) == codec.encode({"a": 2, "b": 1})


def test_text_is_not_bytes() -> None:
    with pytest.raises(codec.Malformed):
        codec.decode(codec.encode("text"), bytes)
