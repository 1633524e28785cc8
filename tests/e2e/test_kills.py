"""Real daemons and a Livy that are killed with SIGKILL: nothing accepted is lost, run twice or left over."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.servers.kill_story import kill_story

pytestmark = pytest.mark.e2e


def test_jobs_survive_kills_of_home_executor_and_engine(tmp_path: Path) -> None:
    """`bench/bench_kills.py` does the same for 100 kills."""
    story = kill_story(tmp_path, 6, seed=1)
    assert set(story.kills) == {"home", "executor", "livy"}
    assert story.outcomes["statement available"] > 0
