"""How long a run will wait for a place. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Final

PLACE_S: Final = 60.0
"""Assumed seconds for which a run has a place, before any was measured."""

LONGEST_S: Final = 1e9
"""Longest expected wait in seconds: more fits into no offer."""


def expected_wait(ages: Sequence[float], usual: float, position: int) -> float:
    """Seconds until `position` more places are free; 0 if there is one now.

    `ages`: seconds for which the taken places have been taken. `usual`: seconds for which a run has its place. A run
    that has had its place for longer is expected to keep it for as long again.
    """
    if position <= 0:
        return 0.0
    if not ages:  # the engine has no place for a reason of its own
        return min(LONGEST_S, position * usual)
    left = [usual - age if age < usual else age for age in ages]
    heapq.heapify(left)
    for _ in range(position - 1):
        heapq.heapreplace(left, left[0] + usual)  # the run ahead takes this place
    return min(LONGEST_S, left[0])
