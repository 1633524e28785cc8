"""How long an executor expects a run to wait for a place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from island.jobs.executor.expected_wait import expected_wait


@pytest.mark.parametrize(
    ("ages", "position", "seconds"),
    [
        ([], 0, 0.0),  # a place is free
        ([90.0, 10.0], 1, 10.0),  # the oldest run ends first
        ([90.0, 10.0], 2, 90.0),  # the run ahead takes that place, and the next one is free after 90 s
        ([90.0, 10.0], 3, 110.0),  # the run ahead has it for as long as usual
        ([250.0], 1, 250.0),  # it has already taken longer than usual: as long again
        ([], 2, 200.0),  # the engine itself is full
    ],
)
def test_a_wait_follows_from_the_ages_of_the_runs_and_the_position_in_line(
    ages: list[float], position: int, seconds: float
) -> None:
    assert expected_wait(ages, 100.0, position) == pytest.approx(seconds)


@given(st.lists(st.floats(0, 1e9), max_size=5), st.floats(1e-3, 1e9), st.integers(-5, 50))
def test_a_later_position_never_waits_less(ages: list[float], usual: float, position: int) -> None:
    assert 0.0 <= expected_wait(ages, usual, position) <= expected_wait(ages, usual, position + 1) <= 1e9
