"""How an island looks from a linked one: whether it can be dialled, and how the clocks differ."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from island.kernel.ports import SystemClock
from island.net.api import peer_checks
from island.net.peer_checks import KIND, PeerChecks
from tests.contracts import document
from tests.islands.sessions import Node, admit


class Slow(SystemClock):
    """A clock that is an hour late."""

    def wall(self) -> float:
        return super().wall() - 3600


def node(folder: Path, name: str, *, announce: list[str] | None = None, **more: Any) -> Node:
    made = Node(folder / name, name, **more)
    if announce is not None:
        made.peers._advertise = announce
    return made


async def test_an_island_that_others_can_dial(tmp_path: Path) -> None:
    one, two = node(tmp_path, "one"), node(tmp_path, "two")
    checks, _ = PeerChecks(one.peers, one.clock), PeerChecks(two.peers, Slow())
    async with one.running(), two.running():
        await admit(one, two)
        one.knows(two)  # `one` dials, so that nothing has shown yet whether it can be dialled
        await one.linked(two)
        assert [link.dialled for link in one.peers.links()] == [True]
        (found,) = await checks.run()
        assert (found.island, found.reached, found.reason) == (two.id, True, "")
        assert found.clock_ahead_s is not None and found.clock_error_s is not None
        assert abs(found.clock_ahead_s + 3600) <= found.clock_error_s + 1
        sessions = len(one.peers._all)
        assert (await checks.run())[0].reached and len(one.peers._all) == sessions  # the session of the first check


@pytest.mark.parametrize("announce", [["127.0.0.1:9"], ["127.0.0.1:9", "127.0.0.2:9"]])
async def test_an_island_that_announces_what_others_cannot_dial(tmp_path: Path, announce: list[str]) -> None:
    one, two = node(tmp_path, "one", announce=announce), node(tmp_path, "two")
    checks = PeerChecks(one.peers, one.clock)
    async with one.running(), two.running():
        await admit(one, two)
        one.knows(two)
        await one.linked(two)
        (found,) = await checks.run()
        assert found.reached is False
        assert all(f"{each} cannot be dialled: connection refused" in found.reason for each in announce)
        assert found.clock_ahead_s is None  # an island of a version without this request


async def test_an_island_without_a_peer_port_and_one_without_links(tmp_path: Path) -> None:
    one, two = node(tmp_path, "one", listen=""), node(tmp_path, "two")
    checks, others = PeerChecks(one.peers, one.clock), PeerChecks(two.peers, two.clock)
    async with one.running(), two.running():
        await admit(two, one)
        assert await checks.run() == []
        one.knows(two)
        await one.linked(two)
        (found,) = await checks.run()
        assert found.reached is None and found.clock_ahead_s is not None
        (back,) = await others.run()
        assert back.reached is True  # `one` has dialled it


async def test_a_malformed_reading_of_a_clock(tmp_path: Path) -> None:
    one, two = node(tmp_path, "one"), node(tmp_path, "two")

    async def nonsense(*_: object) -> bytes:
        return b"\xc1"

    two.peers.on_request(KIND, nonsense)
    checks = PeerChecks(one.peers, one.clock)
    async with one.running(), two.running():
        await admit(one, two)
        one.knows(two)
        await one.linked(two)
        (found,) = await checks.run()
        assert found.reached is True and found.clock_ahead_s is None
        assert two.id in one.peers._offenders._known
        row = peer_checks._row(dataclasses.replace(found, clock_ahead_s=1.23456), "two")
        assert row["clock_ahead_s"] == 1.235
        document.check({"$ref": "#/components/schemas/PeerCheck"}, row, "a row of the answer")
