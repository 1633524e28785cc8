"""The bounded codec: what it accepts, and that it never lets hostile bytes through."""

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
def test_what_is_encoded_is_decoded(value: Any) -> None:
    assert codec.decode_plain(codec.encode(value)) == value


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
