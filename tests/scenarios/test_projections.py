"""A projection notifies the event loop only of committed changes."""

from __future__ import annotations

import asyncio

import pytest

from island.gossip import core
from island.kernel import codec
from island.kernel.ports import SeededRng
from island.membership.messages import SELF_KEY, SelfRecord
from tests.sim.archipelago import Archipelago, names, simulate

COUNT = 12


async def _renamed(world: Archipelago) -> None:
    """Change the names of all islands at nearly the same time, so every island writes and receives concurrently."""
    for name in names(COUNT):
        await world.add(name)
    await asyncio.sleep(core.KEY_INTERVAL + 1)  # a second change of a key is signed only after this interval
    rng = SeededRng(f"{world.seed}/renamed")
    for island in world.islands:
        await asyncio.sleep(0.02 * rng.random())
        await island.put(SELF_KEY, codec.encode(SelfRecord(name=f"{island.name}-again")))
    expected = {island.id: f"{island.name}-again" for island in world.islands}
    await world.until(lambda: _stored(world) == COUNT * COUNT, within=120)
    await asyncio.sleep(5)
    for island in world.islands:
        assert {view.island: view.name for view in island.m.views()} == expected, island.name


def _stored(world: Archipelago) -> int:
    """The total number of records with a new name at all islands."""
    return sum(b"-again" in (value or b"") for i in world.islands for _, _, value in i.records("island/"))


@pytest.mark.parametrize("seed", range(8))
def test_every_island_knows_every_name_once_it_has_every_log(seed: int) -> None:
    simulate(seed, _renamed)
