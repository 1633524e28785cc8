"""A disk that is full or slow, fails or loses power: the island recovers and loses no accepted data."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from island.errors import DiskFailed, Full
from tests.sim.archipelago import Archipelago, SimIsland, names, simulate


class Writers:
    """Two islands that write records until they are stopped. `accepted` has the acknowledged records of one of them."""

    def __init__(self, world: Archipelago, victim: SimIsland, other: SimIsland) -> None:
        self.victim, self.other = victim, other
        self.accepted: set[str] = set()
        self.refused = 0
        self._stopped = False
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._put(victim, "a", self.accepted)), loop.create_task(self._put(other, "b"))]

    async def _put(self, island: SimIsland, prefix: str, accepted: set[str] | None = None) -> None:
        number = 0
        while not self._stopped:
            number += 1
            key = f"test/{prefix}{number}"
            try:
                await island.put(key, b"x")
            except (Full, DiskFailed):
                self.refused += 1
            else:
                if accepted is not None:
                    accepted.add(key)
            await asyncio.sleep(0.2)

    async def stop(self) -> None:
        self._stopped = True
        for task in self._tasks:
            await task


async def _three(world: Archipelago) -> SimIsland:
    for name in names(3):
        await world.add(name)
    await world.until(lambda: world.converged() and len(world.islands[0].g.origins()) == 3, within=60)
    return world.islands[1]


async def _recovered(world: Archipelago, victim: SimIsland, accepted: set[str]) -> None:
    """Check that all islands have the same records, that no accepted one is missing, and that the island works."""
    await victim.put("test/end", b"end")
    await world.until(
        lambda: (
            world.converged()
            and all(
                accepted | {"test/end"} <= {key for origin, key, _ in i.records("test/") if origin == victim.id}
                for i in world.islands
            )
        ),
        within=180,
    )
    assert not any(island.g.problems() for island in world.islands)
    records = [island.records() for island in world.islands]
    assert all(each == records[0] for each in records)
    assert {view.name for view in victim.m.views()} == set(names(3))


Trouble = Callable[[SimIsland], Any]


async def _full(island: SimIsland) -> None:
    island.disk.full = True
    await asyncio.sleep(20)
    island.disk.full = False


async def _slow(island: SimIsland) -> None:
    island.disk.slow = 2.0
    await asyncio.sleep(40)
    island.disk.slow = 0.0


async def _broken(island: SimIsland) -> None:
    """Make every transaction fail for a while, reading and writing."""
    island.disk.failures = 1_000_000
    await asyncio.sleep(20)
    island.disk.failures = 0


def _scenario(trouble: Trouble, *, refuses: bool) -> Callable[[Archipelago], Any]:
    async def scenario(world: Archipelago) -> None:
        victim = await _three(world)
        writers = Writers(world, victim, world.islands[0])
        await asyncio.sleep(2)
        await trouble(victim)
        await asyncio.sleep(2)
        await writers.stop()
        assert (writers.refused > 0) == refuses
        assert len(writers.accepted) > 10
        await _recovered(world, victim, writers.accepted)

    return scenario


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("trouble", "refuses"), [(_full, True), (_slow, False), (_broken, True)])
def test_an_island_recovers_from_disk_faults(trouble: Trouble, refuses: bool, seed: int) -> None:
    simulate(seed, _scenario(trouble, refuses=refuses))


def _error_once(after: int) -> Callable[[Archipelago], Any]:
    async def scenario(world: Archipelago) -> bool:
        victim = await _three(world)
        writers = Writers(world, victim, world.islands[0])
        victim.disk.skip, victim.disk.failures = after, 1
        await asyncio.sleep(8)
        await writers.stop()
        happened = victim.disk.failures == 0
        await _recovered(world, victim, writers.accepted)
        return happened

    return scenario


@pytest.mark.slow
def test_one_error_at_any_transaction_is_survived() -> None:
    happened = [simulate(1, _error_once(after)) for after in range(0, 150, 6)]
    assert all(happened)


@pytest.mark.parametrize("seed", range(6))
def test_power_cut_loses_only_unsynced_data_of_gossip_db(seed: int) -> None:
    async def scenario(world: Archipelago) -> None:
        victim = await _three(world)
        writers = Writers(world, victim, world.islands[0])
        await asyncio.sleep(3 + 0.1 * seed)
        before = victim.records("test/")
        await writers.stop()
        await world.cut_power(victim)
        after = victim.records("test/")
        assert len(after) < len(before)  # the power cut lost data
        await world.restart(victim)
        await _recovered(world, victim, writers.accepted)

    simulate(seed, scenario)
