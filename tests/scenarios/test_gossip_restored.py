"""An island that is restored from a backup does not sign before another island has shown its newer log."""

from __future__ import annotations

import asyncio

import pytest

from tests.sim.archipelago import Archipelago, SimIsland, simulate
from tests.sim.stranger import Stranger

OFFLINE = 45.0
"""Seconds without a session after the restore: longer than a linked island waits before it signs."""


async def _three(world: Archipelago) -> list[SimIsland]:
    islands = [await world.add(name) for name in ("founder", "member", "third")]
    await world.until(lambda: world.converged() and all(len(i.m.views()) == 3 for i in islands), within=60)
    return islands


def _alone(world: Archipelago, island: SimIsland) -> None:
    world.network.partition([[island.id], [other.id for other in world.islands if other is not island]])


@pytest.mark.parametrize("offline", [0.0, OFFLINE], ids=["linked", "offline"])
@pytest.mark.parametrize("lose_gossip", [False, True], ids=["kept", "lost"])
@pytest.mark.parametrize("which", [0, 1], ids=["founder", "member"])
def test_a_restored_island_keeps_its_log(which: int, lose_gossip: bool, offline: float) -> None:
    async def scenario(world: Archipelago) -> None:
        islands = await _three(world)
        victim = islands[which]
        backup = world.backup(victim)
        await victim.put("test/new", b"1")
        await world.until(lambda: all(len(i.records("test/")) == 1 for i in islands), within=30)
        head = islands[2].g.head(victim.id).seq
        await world.crash(victim)
        world.restore(victim, backup)
        if offline:
            _alone(world, victim)
        await world.restart(victim, lose_gossip=lose_gossip)
        await victim.put("test/after", b"2")
        await asyncio.sleep(offline)
        assert islands[2].g.head(victim.id).seq == head or not offline
        world.network.heal()
        await world.until(lambda: all(len(i.records("test/")) == 2 for i in islands), within=60)
        await world.until(world.converged, within=60)
        assert not any(i.g.head(victim.id).frozen for i in islands)
        assert victim.g.problems() == []

    simulate(21, scenario)


def test_waiting_island_applies_its_changes_and_reports_why_it_waits() -> None:
    async def scenario(world: Archipelago) -> None:
        islands = await _three(world)
        victim = islands[0]
        await world.crash(victim)
        _alone(world, victim)
        await world.restart(victim)
        head = victim.g.head(victim.id).seq
        added = await victim.m.add_server("administrator", "hdfs", "hdfs://nn:8020")
        await asyncio.sleep(OFFLINE)
        assert [server.id for server in await victim.m.servers()] == [added.id]
        assert victim.g.head(victim.id).seq == head
        (problem,) = victim.g.problems()
        assert "has not compared its log with another island" in problem
        world.network.heal()
        await world.until(lambda: victim.g.problems() == [], within=30)
        await asyncio.sleep(5)
        assert [server.id for server in await islands[1].m.servers()] == [added.id]

    simulate(22, scenario)


def test_island_does_not_sign_if_its_only_peer_does_not_answer() -> None:
    async def scenario(world: Archipelago) -> None:
        islands = await _three(world)
        victim = islands[1]
        silent = await Stranger.admitted(world)
        backup = world.backup(victim)
        await victim.put("test/new", b"1")
        await world.until(lambda: all(len(i.records("test/")) == 1 for i in islands), within=30)
        await world.crash(victim)
        world.restore(victim, backup)
        world.network.partition([[victim.id, silent.id], [islands[0].id, islands[2].id]])
        await world.restart(victim, lose_gossip=True)
        await world.until(lambda: silent.peers.link(victim.id) is not None, within=30)
        await asyncio.sleep(2 * OFFLINE)
        assert victim.g.head(victim.id).seq == islands[0].g.head(victim.id).seq - 1
        assert len(victim.g.problems()) == 1
        world.network.heal()
        await world.until(lambda: world.converged() and victim.g.problems() == [], within=60)
        assert not any(i.g.head(victim.id).frozen for i in islands)
        await silent.leave()

    simulate(24, scenario)


def test_founder_restored_to_before_its_first_admission_waits_for_a_session() -> None:
    async def scenario(world: Archipelago) -> None:
        founder = await world.add("founder")  # it has issued an invitation, but admitted nobody
        backup = world.backup(founder)
        member = await world.add("member")
        await founder.put("test/new", b"1")
        await world.until(lambda: len(member.records("test/")) == 1, within=60)
        await world.crash(founder)
        world.restore(founder, backup)
        _alone(world, founder)
        await world.restart(founder, lose_gossip=True)
        await founder.put("test/after", b"2")
        await asyncio.sleep(OFFLINE)
        assert founder.g.head(founder.id).seq == 0 and founder.g.problems() == []
        world.network.heal()
        await world.until(lambda: len(member.records("test/")) == 2 and world.converged(), within=60)
        assert not member.g.head(founder.id).frozen and founder.g.problems() == []

    simulate(25, scenario)


def test_an_island_that_signs_continues_to_sign_without_a_session() -> None:
    async def scenario(world: Archipelago) -> None:
        islands = await _three(world)
        founder = islands[0]
        await asyncio.sleep(10)
        _alone(world, founder)
        await asyncio.sleep(5)
        head = founder.g.head(founder.id).seq
        await founder.put("test/alone", b"1")
        await asyncio.sleep(OFFLINE)
        assert founder.g.head(founder.id).seq == head + 1
        assert founder.g.problems() == []

    simulate(23, scenario)
