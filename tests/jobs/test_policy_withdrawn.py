"""Runs of other homes end when the administrator of their executor forbids them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from island.kernel.codec import encode
from island.membership.messages import SELF_KEY, SelfRecord
from tests.sim.archipelago import Archipelago, SimIsland, simulate
from tests.sim.jobs import OPEN, PlayedEngine, World

FORBIDDEN = [
    ({**OPEN, "accept_from": []}, "jobs.accept_from"),
    ({**OPEN, "foreign_code": "none"}, "jobs.foreign_code"),
    ({**OPEN, "same_user": False}, "jobs.same_user"),
]


async def _two(a: Archipelago) -> tuple[World, SimIsland, SimIsland, PlayedEngine]:
    world, engine = World(a), PlayedEngine()
    home = await world.island("home")
    there = await world.island("there", engine=engine, jobs=OPEN)
    await world.linked()
    return world, home, there, engine


async def _restart_with(world: World, island: SimIsland, jobs: dict[str, Any]) -> None:
    """Change the administrator's policy and start the island again."""
    await world.a.crash(island)
    world.configs[island.name]["jobs"] = jobs
    await world.a.restart(island)


def _phases(island: SimIsland) -> list[str]:
    return island.committed(island.state, lambda conn: [row["phase"] for row in conn.execute("SELECT phase FROM run")])


@pytest.mark.parametrize(("policy", "key"), FORBIDDEN, ids=[key for _, key in FORBIDDEN])
@pytest.mark.parametrize("step", ["waiting", "submitting", "running"])
def test_a_foreign_run_does_not_survive_a_start_that_forbids_it(step: str, policy: dict[str, Any], key: str) -> None:
    async def scenario(a: Archipelago) -> None:
        world, home, there, engine = await _two(a)

        async def lost_answer(what: str, when: str) -> None:
            if (what, when) == ("create", "after"):
                await asyncio.Event().wait()

        engine.up = step != "waiting"
        engine.fault = lost_answer if step == "submitting" else None
        job = await world.open(home)
        if step == "running":
            await world.settled(home, job)
            await world.jobs["home"].post(job, "sleep", None)
            await a.until(lambda: engine.ran == ["sleep"], within=10)
        await a.until(lambda: _phases(there) == [step], within=30)
        created = list(engine.created)
        engine.up, engine.fault = True, None
        await _restart_with(world, there, policy)
        await world.jobs["home"].post(job, "after", None)
        ended = await world.ended(home, job)
        assert ended.state == "killed"
        assert key in ended.reason
        await a.until(lambda: not engine.alive(), within=30)
        assert engine.created == created, "nothing was submitted again"
        assert "after" not in engine.ran

    simulate(1, scenario)


def test_a_run_of_this_home_survives() -> None:
    async def scenario(a: Archipelago) -> None:
        world, engine = World(a), PlayedEngine()
        home = await world.island("home", engine=engine, jobs=OPEN)
        job = await world.settled(home, await world.open(home))
        await _restart_with(world, home, {})
        assert "did it" in (await world.run(home, job, "it")).output

    simulate(2, scenario)


def test_a_statement_of_a_home_that_is_no_longer_accepted_ends_its_run() -> None:
    async def scenario(a: Archipelago) -> None:
        world, engine = World(a), PlayedEngine()
        home = await world.island("home")
        there = await world.island("there", engine=engine, jobs={**OPEN, "accept_from": ["home"]})
        await world.linked()
        job = await world.settled(home, await world.open(home))
        await home.put(SELF_KEY, encode(SelfRecord(name="other", addresses=("other:1",))))
        await a.until(lambda: there.m.display(home.id) == "other", within=30)
        await world.jobs["home"].post(job, "it", None)
        ended = await world.ended(home, job)
        assert ended.state == "killed"
        assert "does not accept jobs of other: in its island.toml, jobs.accept_from" in ended.reason
        assert engine.ran == []

    simulate(3, scenario)
