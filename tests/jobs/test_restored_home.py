"""Islands that were restored from a backup: a session never returns the result of another statement."""

from __future__ import annotations

from dataclasses import replace

import pytest

from island.errors import EngineFailed, PeerRefused
from island.jobs.home.store import JobRow
from island.jobs.messages import DIVERGED, EmptyAnswer, RunStatementRequest
from island.kernel.ids import IslandId
from tests.sim.archipelago import Archipelago, SimIsland, simulate
from tests.sim.jobs import OPEN, PlayedEngine, World


async def _session(a: Archipelago) -> tuple[World, SimIsland, PlayedEngine, JobRow]:
    """A home, and its session at another island, in which one statement was run."""
    world, engine = World(a), PlayedEngine()
    home = await world.island("home")
    await world.island("there", engine=engine, jobs=OPEN)
    await world.linked()
    job = await world.settled(home, await world.open(home))
    assert "did before" in (await world.run(home, job, "before")).output
    return world, home, engine, job


@pytest.mark.parametrize("later", [1, 2, 3])
def test_a_restored_home_gets_no_result_of_a_forgotten_statement(later: int) -> None:
    async def scenario(a: Archipelago) -> None:
        world, home, engine, job = await _session(a)
        backup = a.backup(home)
        for number in range(later):
            await world.run(home, job, f"forgotten {number}")
        await a.crash(home)
        a.restore(home, backup)
        await a.restart(home)
        statement = await world.jobs["home"].post(job, "wanted", None)
        found, _ = await world.jobs["home"].finished_statement(job, statement.number, 60)
        assert "forgotten" not in found.output
        assert "was never run" in found.output
        ended = await world.ended(home, job)
        assert ended.state == "dead"
        assert "restored from a backup" in ended.reason
        await a.until(lambda: not engine.alive(), within=30)

    simulate(1, scenario)


def test_a_home_continues_if_it_was_restored_to_its_last_state() -> None:
    async def scenario(a: Archipelago) -> None:
        world, home, engine, job = await _session(a)
        await world.jobs["home"].post(job, "sleep", None)
        await a.until(lambda: engine.ran == ["before", "sleep"], within=30)
        backup = a.backup(home)
        await a.crash(home)
        a.restore(home, backup)
        await a.restart(home)
        found, _ = await world.jobs["home"].finished_statement(job, 1, 120)
        assert "did sleep" in found.output
        assert "did after" in (await world.run(home, job, "after")).output

    simulate(2, scenario)


def test_an_executor_refuses_another_statement_with_a_known_number() -> None:
    async def scenario(a: Archipelago) -> None:
        world, home, engine, job = await _session(a)
        exchange = world.jobs["home"].driver._exchange

        async def send(number: int, code: str) -> None:
            request = RunStatementRequest(job=job.id, epoch=1, number=number, code=code)
            await exchange.ask(IslandId(world.a.islands[1].id), "statement", request, EmptyAnswer)

        await send(0, "before")
        with pytest.raises(PeerRefused, match="another statement 0") as caught:
            await send(0, "other")
        assert caught.value.code == DIVERGED
        assert "did it" in (await world.run(home, job, "it")).output
        with pytest.raises(PeerRefused, match="another statement 0"):
            await send(0, "other")
        assert engine.ran == ["before", "it"]

    simulate(3, scenario)


def test_a_home_that_is_refused_as_diverged_ends_the_session() -> None:
    async def scenario(a: Archipelago) -> None:
        world, home, engine, job = await _session(a)
        (actor,) = world.jobs["there"].executor._driver.actors.values()
        assert actor.state.statement is not None
        later = replace(actor.state.statement, number=5)  # as after statements of a home that was restored since
        actor.state = replace(actor.state, statement=later)
        await world.jobs["home"].post(job, "wanted", None)
        ended = await world.ended(home, job)
        assert "restored from a backup" in ended.reason
        assert engine.ran == ["before"]

    simulate(4, scenario)


def test_a_restored_executor_takes_no_result_of_a_forgotten_statement() -> None:
    async def scenario(a: Archipelago) -> None:
        world, engine = World(a), PlayedEngine("")  # a Livy that outlives the island
        home = await world.island("home", engine=engine)
        job = await world.settled(home, await world.open(home))
        backup = a.backup(home)
        await world.run(home, job, "forgotten")
        await a.crash(home)
        a.restore(home, backup)
        await a.restart(home)

        async def lost_answer(what: str, when: str) -> None:
            if (what, when) == ("post", "before"):
                engine.fault = None
                raise EngineFailed("connection reset")

        engine.fault = lost_answer
        await world.jobs["home"].post(job, "wanted", None)
        ended = await world.ended(home, job)
        assert "restored from a backup" in ended.reason
        found, _ = await world.jobs["home"].statement(job, 0)
        assert "forgotten" not in found.output

    simulate(5, scenario)
