"""Which instance ids show that two running programs use one key."""

from __future__ import annotations

import pytest

from island.kernel.ids import IslandId
from island.net.key_copies import FORGET_S, KeyCopies

ISLAND = IslandId("ab" * 32)


class _Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def boottime(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


@pytest.mark.parametrize("ids", ["a", "aaa", "abcdefgh", "aabbcc", "aba"])
def test_restarts_and_one_late_session_are_not_reported(ids: str) -> None:
    copies = KeyCopies(_Clock())
    for each in ids:
        copies.observe(ISLAND, each.encode())
    copies.observe(ISLAND, b"")
    assert copies.problems(str) == []


def test_instances_that_alternate_are_reported_until_they_have_stopped_for_a_while() -> None:
    clock = _Clock()
    copies = KeyCopies(clock)
    for each in b"a", b"b", b"a", b"b":
        copies.observe(ISLAND, each)
    (problem,) = copies.problems(lambda _: "gamma")
    assert "two running programs use the key of gamma (ababababab)" in problem
    copies.reported_by(ISLAND)
    assert len(copies.problems(str)) == 2
    clock.now = FORGET_S + 1
    assert copies.problems(str) == []


def test_memory_is_bounded() -> None:
    copies = KeyCopies(_Clock())
    for number in range(3000):
        island = IslandId(f"{number:064x}")
        copies.reported_by(island)
        for each in range(20):
            copies.observe(island, bytes([each]))
    assert len(copies._starts) == len(copies._reports) == 1000
    assert all(len(each.ids) <= 4 for each in copies._starts.values())
