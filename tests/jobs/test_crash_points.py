"""Crashes at effects of the machines of jobs and runs, with faults of disks, engines and lines: see `crash_story`.

A story that fails shows its seed. `bench/bench_crashes.py` tells thousands of stories.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.sim.crash_story import crash_story

STORIES = 8
"""Stories of each test."""


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 6 * STORIES, STORIES))
def test_nothing_is_lost_run_twice_or_left_over_after_crashes_and_faults(first: int) -> None:
    points, outcomes = Counter[str](), Counter[str]()
    for seed in range(first, first + STORIES):
        story = crash_story(seed)
        points += story.points
        outcomes += story.outcomes
    assert points.total() >= 2 * STORIES, "the islands have crashed"
    assert outcomes["statement available"] >= STORIES / 2, "jobs have run"


def test_a_seed_tells_the_same_story_again() -> None:
    first, second = crash_story(2), crash_story(2)
    assert (first.points, first.faults, first.outcomes) == (second.points, second.faults, second.outcomes)
    assert [engine.ran for engine in first.engines] == [engine.ran for engine in second.engines]
