"""A subscriber whose disk is full, slow, fails once or loses power: every row arrives once all the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from island.gossip.core import KEY_INTERVAL
from tests.islands.subscribing import rows_of
from tests.sim.archipelago import Archipelago, SimIsland, simulate
from tests.streams.test_streams_scenario import ADMIN, USER, Scene, put, two

FILES, ROWS = 12, 40

Trouble = Callable[[Archipelago, Scene, SimIsland], Awaitable[None]]


async def _full(_world: Archipelago, _scene: Scene, island: SimIsland) -> None:
    island.disk.full = True
    await asyncio.sleep(10)
    island.disk.full = False


async def _slow(_world: Archipelago, _scene: Scene, island: SimIsland) -> None:
    island.disk.slow = 1.0
    await asyncio.sleep(20)
    island.disk.slow = 0.0


async def _power(world: Archipelago, scene: Scene, island: SimIsland) -> None:
    await world.cut_power(island)
    island.disk.lose_unsynced(scene.home(island.name))
    await world.restart(island)


def _errors(after: int) -> Trouble:
    async def trouble(_world: Archipelago, _scene: Scene, island: SimIsland) -> None:
        island.disk.skip, island.disk.failures = after, 1
        await asyncio.sleep(10)
        assert island.disk.failures == 0

    return trouble


@pytest.mark.slow
@pytest.mark.parametrize(
    "trouble",
    [_full, _slow, _power, *(_errors(after) for after in range(0, 60, 7))],
    ids=["full", "slow", "power", *(f"error-{after}" for after in range(0, 60, 7))],
)
def test_every_row_arrives_once(tmp_path: Path, trouble: Trouble) -> None:
    async def scenario(world: Archipelago) -> None:
        scene = await two(world, tmp_path)
        beta = world.islands[1]
        await scene.streams["alpha"].add_source(ADMIN, scene.drop("alpha"), "alerts")
        put(scene.drop("alpha"), "first", 0, ROWS)

        async def known() -> bool:
            return any(view.files for view in await scene.streams["beta"].sources())

        await scene.until(known)
        await scene.streams["beta"].subscribe(USER, "alpha/alerts", start="beginning", into="mine")
        feeding = asyncio.get_running_loop().create_task(_feed(scene.drop("alpha")))
        await asyncio.sleep(2)
        await trouble(world, scene, beta)
        await feeding

        async def complete() -> bool:
            return (await scene.channel("beta")).rows == FILES * ROWS

        await scene.until(complete, 300)
        await asyncio.sleep(KEY_INTERVAL + 5)  # the others hear of the newest snapshot that much later
        written = rows_of(sorted(scene.drop("alpha").glob("*.parquet")))
        assert rows_of(sorted((scene.home("beta") / "streams" / "mine").glob("*.parquet"))) == written
        views = [view for view in await scene.catalogs["alpha"].datasets() if view.name == "mine"]
        assert [view.rows for view in views] == [FILES * ROWS]

    simulate(1, scenario)


async def _feed(folder: Path) -> None:
    for number in range(1, FILES):
        put(folder, f"f{number:03d}", number * ROWS, ROWS)
        await asyncio.sleep(1)
