"""What earlier jobs cost changes what is expected of the next one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from island.jobs.cost_model import COMPUTE_S, OUTPUT_BYTES, START_S, CostModel, JobObservation, size_class

HERE, THERE = "a" * 64, "b" * 64
GB = 1_000_000_000


def seen(island: str = HERE, size: int = GB, **parts: float) -> JobObservation:
    return JobObservation(island, "pyspark", size, **parts)  # type: ignore[arg-type]  # the parts are all numbers


def test_without_experience_the_assumed_values_are_expected() -> None:
    model = CostModel()
    assert model.start(HERE, "pyspark").value == pytest.approx(START_S)
    assert model.compute(HERE, "sql", GB).value == pytest.approx(COMPUTE_S)
    assert model.output("sql", GB).value == pytest.approx(OUTPUT_BYTES)
    assert model.start(HERE, "pyspark").observed == 0


def test_an_island_that_was_slow_is_expected_to_be_slow_again() -> None:
    model = CostModel([seen(HERE, compute_s=100.0)] * 10 + [seen(THERE, compute_s=2.0)] * 10)
    assert 60 < model.compute(HERE, "pyspark", GB).value < 110
    assert model.compute(THERE, "pyspark", GB).value < 5
    assert model.compute(HERE, "pyspark", GB).observed == 10


def test_an_unknown_island_is_expected_to_be_like_the_others() -> None:
    model = CostModel([seen(THERE, compute_s=100.0)] * 10)
    assert model.compute(HERE, "pyspark", GB).value > 50
    assert model.compute(HERE, "pyspark", GB).observed == 0


def test_inputs_of_another_size_and_other_languages_are_other_experience() -> None:
    model = CostModel([seen(compute_s=100.0)] * 10)
    assert model.compute(HERE, "pyspark", 1000).value == pytest.approx(COMPUTE_S)
    assert model.compute(HERE, "sql", GB).value == pytest.approx(COMPUTE_S)


def test_one_odd_observation_does_not_decide_and_old_ones_are_forgotten() -> None:
    usual = [seen(start_s=2.0)] * 20
    assert CostModel([*usual, seen(start_s=600.0)]).start(HERE, "pyspark").value < 5
    changed = CostModel([*usual, *[seen(start_s=60.0)] * 20])
    assert changed.start(HERE, "pyspark").value > 40


def test_sizes_of_about_the_same_order_share_a_class() -> None:
    assert size_class(0) == size_class(900_000) == "0"
    assert size_class(GB) == size_class(200_000_000)
    assert size_class(GB) != size_class(2 * GB)


values = st.floats(allow_nan=True, allow_infinity=True) | st.none()


@given(st.lists(st.tuples(values, values, st.integers(0, 2**53)), max_size=30))
def test_expectations_are_positive_and_finite_whatever_was_reported(parts: list[tuple[float, float, int]]) -> None:
    model = CostModel(seen(size=size, start_s=start, compute_s=compute) for start, compute, size in parts)
    for _, _, size in parts:
        for found in (model.start(HERE, "pyspark"), model.compute(HERE, "pyspark", size)):
            assert 0 < found.value < float("inf")
