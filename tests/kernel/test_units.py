"""Sizes as people read them."""

import ast
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from island.kernel.units import format_bytes


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (12, "12 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (99 * 1024 + 1000, "100 KiB"),
        (2**20 - 1, "1.0 MiB"),
        (900_000_000, "858 MiB"),
        (5 * 2**30, "5.0 GiB"),
        (2**50, "1.0 PiB"),
        (2**61, "2048 PiB"),
        (-3 * 2**20, "-3.0 MiB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert format_bytes(count) == text


@given(st.integers(0, 2**59))
def test_a_size_is_right_to_a_twentieth(count: int) -> None:
    found = re.fullmatch(r"([0-9.]+) (B|KiB|MiB|GiB|TiB|PiB)", format_bytes(count))
    assert found is not None and len(found[1]) <= 4
    shown = ast.literal_eval(found[1]) * 1024 ** ("B", "KiB", "MiB", "GiB", "TiB", "PiB").index(found[2])
    assert abs(shown - count) <= count / 20
