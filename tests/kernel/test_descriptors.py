"""Open files: raised to the hard limit, and shared so that no port can take them all."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from island.kernel.descriptors import MOST, share


@given(st.integers(64, MOST))
def test_half_of_the_files_are_left_for_the_rest(limit: int) -> None:
    shares = share(limit)
    assert min(shares.user, shares.peer) >= 16
    assert shares.user + shares.peer <= limit // 2


@pytest.mark.parametrize(("soft", "hard", "expected"), [(100, 300, 300), (300, 300, 300), (128, 128, 128)])
def test_the_soft_limit_is_raised_to_the_hard_one(soft: int, hard: int, expected: int) -> None:
    code = (
        "import json, resource; from island.kernel import descriptors as d\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard})); d.raise_limit()\n"
        "print(json.dumps([*resource.getrlimit(resource.RLIMIT_NOFILE), d.limit()]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) == [expected, hard, expected]
