"""A crash before or after any write to either database: nothing is lost, nothing is signed twice, no fork."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

from island.kernel.db import Database
from tests.sim.archipelago import Archipelago, SimIsland, names, simulate


class Crashed(Exception):
    """Raised when the process crashes at a write."""


def crash_at(database: Database, step: int, after: bool) -> Callable[[], bool]:
    """Crash the island at its `step`-th write from now, before or after the commit.

    Returns a function that removes the fault, and returns whether the crash has happened.
    """
    original = database.write
    done = 0

    async def write(function: Callable[[sqlite3.Connection], Any], **options: Any) -> Any:
        nonlocal done
        done += 1
        mine = done
        if mine == step and not after:
            raise Crashed
        result = await original(function, **options)
        if mine == step:
            raise Crashed
        return result

    database.write = write  # type: ignore[method-assign]  # the crash is the point

    def happened() -> bool:
        database.write = original  # type: ignore[method-assign]  # as it was
        return done >= step

    return happened


async def _work(world: Archipelago, victim: SimIsland) -> int:
    """Make changes at the victim and another island until the victim crashes. Returns the number of its commits."""
    committed = 0
    for number in range(8):
        try:
            await victim.put(f"test/{number}", b"%d" % number)
        except Crashed:
            return committed + int(await _stored(victim, f"test/{number}"))
        committed += 1
        await world.islands[0].put(f"other/{number}", b"x")
        await asyncio.sleep(0.3)
        if victim.tasks.failure is not None:
            break
    return committed


async def _stored(victim: SimIsland, key: str) -> bool:
    return key in await victim.state.read(lambda conn: victim.g.own(conn, "test/"))


def _scenario(which: str, step: int, after: bool) -> Callable[[Archipelago], Any]:
    async def scenario(world: Archipelago) -> bool:
        for name in names(3):
            await world.add(name)
        await world.until(lambda: world.converged() and len(world.islands[0].g.origins()) == 3, within=60)
        victim = world.islands[1]
        database = victim.state if which == "state" else victim.gossip_db
        happened = crash_at(database, step, after)
        committed = await _work(world, victim)
        was = happened()
        await world.crash(victim)
        if victim.tasks.failure is not None:
            assert isinstance(victim.tasks.failure, Crashed)
            victim.tasks.failure = None
        await asyncio.sleep(1)
        await world.restart(victim)
        await victim.put("test/end", b"end")
        await world.until(
            lambda: world.converged() and all(len(i.records("test/")) == committed + 1 for i in world.islands),
            within=60,
        )
        assert all(not island.g.problems() for island in world.islands)
        assert all(not island.g.head(victim.id).frozen for island in world.islands)
        return was

    return scenario


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("which", ["state", "gossip"])
def test_crash_at_every_write(which: str, after: bool) -> None:
    crashes = sum(simulate(1, _scenario(which, step, after)) for step in range(1, 19))
    assert crashes > 10
