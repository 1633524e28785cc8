"""Two running islands with one key, as after the cloning of a machine: one of them stops signing, and says why."""

from __future__ import annotations

import asyncio

from tests.sim.archipelago import Archipelago, SimIsland, simulate


async def _three(world: Archipelago) -> list[SimIsland]:
    islands = [await world.add(name) for name in ("founder", "member", "third")]
    await world.until(lambda: world.converged() and all(len(i.m.views()) == 3 for i in islands), within=60)
    await asyncio.sleep(10)
    return islands


def test_an_island_stops_signing_when_its_copy_signs() -> None:
    async def scenario(world: Archipelago) -> None:
        founder, original, third = await _three(world)
        clone = await world.clone(original)
        assert original.peers is not None
        await clone.put("test/clone", b"1")
        await world.until(lambda: len(third.records("test/")) == 1, within=60)

        world.network.take_over(original.peers)
        await world.until(lambda: original.g.problems() != [], within=60)
        (problem,) = original.g.problems()
        assert "another program signed" in problem and "Does another machine use a copy of this key?" in problem
        head = founder.g.head(original.id)
        await original.put("test/original", b"2")
        await asyncio.sleep(30)
        assert founder.g.head(original.id) == head and not head.frozen

    simulate(31, scenario)


def test_two_islands_with_one_key_do_not_undo_the_changes_of_each_other_for_ever() -> None:
    async def scenario(world: Archipelago) -> None:
        founder, original, _ = await _three(world)
        clone = await world.clone(original)
        heads = []
        for turn in range(12):
            chosen = (clone, original)[turn % 2]
            assert chosen.peers is not None
            world.network.take_over(chosen.peers)
            await asyncio.sleep(10)
            await chosen.put(f"test/{chosen.name}", str(turn).encode())
            await asyncio.sleep(10)
            heads.append(founder.g.head(original.id).seq)
        assert [each.name for each in (original, clone) if not each.g.problems()] == [clone.name]
        # Only the clone adds to the log, in its five later turns.
        assert heads[-1] - heads[1] == 5

    simulate(32, scenario)


def test_a_part_of_the_log_that_one_peer_shows_late_is_restored() -> None:
    async def scenario(world: Archipelago) -> None:
        founder, victim, third = await _three(world)
        backup = world.backup(victim)
        world.network.partition([[founder.id], [victim.id, third.id]])
        await asyncio.sleep(20)
        await victim.put("test/new", b"1")
        await world.until(lambda: len(third.records("test/")) == 1, within=60)
        await world.crash(victim)
        world.restore(victim, backup)
        world.network.partition([[founder.id, victim.id], [third.id]])
        world.lose(victim, "gossip")
        await world.start(victim, announce=False)
        await asyncio.sleep(60)
        assert victim.g.problems() == [] and victim.records("test/") == []

        world.network.heal()
        await world.until(lambda: len(victim.records("test/")) == 1, within=60)
        await victim.put("test/after", b"2")
        await world.until(lambda: len(founder.records("test/")) == 2 and world.converged(), within=60)
        assert victim.g.problems() == [] and not founder.g.head(victim.id).frozen

    simulate(33, scenario)
