"""Disk errors and bugs during a job: its drivers continue or end the job with a reason."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from island.errors import DiskFailed, IslandError, Unreachable
from island.jobs.executor import store as run_store
from island.jobs.home.store import JobRow
from island.kernel.db import Database
from island.trust import journal
from tests.sim.archipelago import Archipelago, SimIsland, simulate
from tests.sim.jobs import ADMINISTRATOR, OPEN, PlayedEngine, World
from tests.standins.faults import Fault, Gone


async def _open(a: Archipelago) -> tuple[World, SimIsland, SimIsland, PlayedEngine, JobRow]:
    """A home without an engine, whose session runs at another island."""
    world, engine = World(a), PlayedEngine()
    home = await world.island("home")
    there = await world.island("there", engine=engine, jobs=OPEN)
    await world.linked()
    job = await world.settled(home, await world.open(home))
    assert job.state == "idle"
    return world, home, there, engine, job


async def _out_of_order(*databases: Database, seconds: float) -> None:
    """Make all reads and writes fail for a while."""
    faults = [Fault(database, what=what, times=None) for database in databases for what in ("read", "write")]
    await asyncio.sleep(seconds)
    for fault in faults:
        fault.mend()
    assert any(fault.met for fault in faults)


@pytest.mark.parametrize("where", ["home", "there", "both"])
def test_a_session_continues_after_disk_errors(where: str) -> None:
    async def scenario(a: Archipelago) -> None:
        world, home, there, engine, job = await _open(a)
        broken = {"home": [home.state], "there": [there.state], "both": [home.state, there.state]}[where]
        await world.jobs["home"].post(job, "first", None)
        await _out_of_order(*broken, seconds=40)
        statement = await world.run(home, job, "second")
        assert statement.state == "available"
        assert "did second" in statement.output
        assert engine.ran == ["first", "second"]

    simulate(1, scenario)


@pytest.mark.parametrize("when", [0.0, 0.02, 0.3, 1.0])
def test_a_starting_session_continues_after_disk_errors(when: float) -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        engine = PlayedEngine()
        home = await world.island("home", engine=engine)
        job = await world.open(home)
        await asyncio.sleep(when)
        await _out_of_order(home.state, seconds=20)
        assert "did it" in (await world.run(home, job, "it")).output
        assert len(engine.created) == 1

    simulate(2, scenario)


def test_the_end_of_a_run_is_stored_after_long_disk_errors() -> None:
    async def scenario(a: Archipelago) -> None:
        world, home, there, engine, job = await _open(a)
        engine.start_anew("two")  # the session is lost, and its end must be stored
        fault = Fault(there.state, times=None)
        await asyncio.sleep(20)
        assert fault.met > 1
        fault.mend()
        ended = await world.ended(home, job)
        assert ended.state == "dead"
        assert "its variables and views are lost" in ended.reason
        assert world.jobs["there"].executor._driver.alive == []

    simulate(3, scenario)


def _bug_in_engine(world: World, engine: PlayedEngine) -> None:
    async def fault(what: str, when: str) -> None:
        if (what, when) == ("show", "before"):
            raise ValueError("odd")

    engine.fault = fault


def _bug_in_driver(world: World, engine: PlayedEngine) -> None:
    Fault(world.jobs["home"].driver, ValueError("odd"), what="_ask_report")


@pytest.mark.parametrize(("bug", "state"), [(_bug_in_engine, "dead"), (_bug_in_driver, "error")])
def test_a_bug_ends_the_job_with_a_reason(bug: Callable[[World, PlayedEngine], None], state: str) -> None:
    async def scenario(a: Archipelago) -> None:
        world, home, _there, engine, job = await _open(a)
        bug(world, engine)
        ended = await world.ended(home, job)
        assert ended.state == state
        assert "internal error in island" in ended.reason
        assert "ValueError: odd" in ended.reason
        with pytest.raises(IslandError):
            await world.jobs["home"].post(ended, "later", None)
        engine.fault = None
        await a.until(lambda: not engine.alive(), within=120)
        other = await world.settled(home, await world.open(home))
        assert "did it" in (await world.run(home, other, "it")).output

    simulate(4, scenario)


def test_a_statement_whose_cancel_could_not_be_stored_runs() -> None:
    async def scenario(a: Archipelago) -> None:
        world, home, _there, engine, job = await _open(a)
        jobs = world.jobs["home"]
        engine.took = 5.0
        await jobs.post(job, "first", None)
        await asyncio.sleep(1)
        waiting = await jobs.post(job, "second", None)
        fault = Fault(home.state)
        with pytest.raises(DiskFailed):
            await jobs.cancel_statement(job, waiting.number)
        assert fault.met == 1
        assert (await jobs.finished_statement(job, waiting.number, 60))[0].state == "available"
        assert engine.ran == ["first", "second"]

    simulate(5, scenario)


def test_a_statement_that_could_not_be_stored_is_sent_again() -> None:
    async def scenario(a: Archipelago) -> None:
        world, home, there, engine, job = await _open(a)
        fault = Fault(there.state)
        assert "did it" in (await world.run(home, job, "it")).output
        assert fault.met == 1
        assert engine.ran == ["it"]

    simulate(6, scenario)


def test_a_late_request_does_not_undo_the_end_of_a_run() -> None:
    async def scenario(a: Archipelago) -> None:
        world, home, there, engine, job = await _open(a)
        (alive,) = world.jobs["there"].executor._driver.alive
        engine.start_anew("two")
        await world.ended(home, job)
        await there.state.write(lambda conn: run_store.save(conn, alive))
        (stored,) = await world.jobs["there"].executor.newest(10)
        assert (stored.ended, stored.state) == (True, "dead")

    simulate(10, scenario)


def test_a_session_starts_if_its_client_disconnects_while_it_is_accepted() -> None:
    async def scenario(a: Archipelago) -> None:
        world, engine = World(a), PlayedEngine()
        home = await world.island("home", engine=engine)
        Gone(home.state)
        with pytest.raises(asyncio.CancelledError):
            await world.open(home)
        await a.until(lambda: len(engine.alive()) == 1, within=10)

    simulate(7, scenario)


def test_requests_of_a_disconnected_client_take_effect_at_once() -> None:
    async def scenario(a: Archipelago) -> None:
        world, home, _there, engine, job = await _open(a)
        jobs = world.jobs["home"]
        Gone(home.state)
        with pytest.raises(asyncio.CancelledError):
            await jobs.post(job, "sleep", None)
        await a.until(lambda: engine.ran == ["sleep"], within=5)
        Gone(home.state)
        with pytest.raises(asyncio.CancelledError):
            await jobs.cancel_statement(job, 0)
        assert (await jobs.finished_statement(job, 0, 5))[0].state == "cancelled"
        Gone(home.state)
        with pytest.raises(asyncio.CancelledError):
            await jobs.end(job, deleted=False)
        await a.until(lambda: not engine.alive(), within=10)

    simulate(8, scenario)


def test_a_commit_and_a_statement_are_accepted_if_home_disconnects() -> None:
    async def scenario(a: Archipelago) -> None:
        world, engine = World(a), PlayedEngine()
        home = await world.island("home")
        there = await world.island("there", engine=engine, jobs=OPEN)
        await world.linked()
        Gone(there.state)  # the first write there is that of the commit
        job = await world.open(home)
        await a.until(lambda: len(engine.created) == 1, within=10)  # home repeats its request only after 15 s
        await world.settled(home, job)
        (actor,) = world.jobs["there"].executor._driver.actors.values()
        Gone(actor, what="ask")
        assert (await world.run(home, job, "first")).state == "available"
        (run,) = world.jobs["there"].executor._driver.alive
        assert run.statement is not None
        assert (run.statement.number, run.next_remote) == (0, 1)
        assert (await world.run(home, job, "second")).state == "available"
        assert engine.ran == ["first", "second"]

    simulate(9, scenario)


async def _never(_what: str, _when: str) -> None:
    await asyncio.Event().wait()


def test_a_job_runs_elsewhere_if_the_engine_of_home_hangs() -> None:
    async def scenario(a: Archipelago) -> None:
        world, hung, engine = World(a), PlayedEngine(), PlayedEngine()
        home = await world.island("home", engine=hung)
        there = await world.island("there", engine=engine, jobs=OPEN)
        await world.linked()
        hung.fault = _never
        job = await world.settled(home, await world.open(home))
        assert (job.state, job.executor) == ("idle", there.id)
        assert "home: it did not answer within 1 s after the first offer" in await world.log(home, job)

    simulate(9, scenario)


def test_a_job_ends_with_the_reason_if_the_only_engine_hangs() -> None:
    async def scenario(a: Archipelago) -> None:
        world, hung = World(a), PlayedEngine()
        home = await world.island("home", engine=hung)
        hung.fault = _never
        job = await world.ended(home, await world.open(home))
        assert job.state == "error"
        assert "this island's engine or disk gave no answer within 10 s" in job.reason

    simulate(10, scenario)


def test_a_request_to_an_engine_that_hangs_here_ends() -> None:
    async def scenario(a: Archipelago) -> None:
        world, hung = World(a), PlayedEngine()
        home = await world.island("home", engine=hung)
        job = await world.settled(home, await world.open(home))
        hung.fault = _never
        with pytest.raises(Unreachable, match="this island's engine or disk gave no answer"):
            await world.jobs["home"].complete(job, "spar", "pyspark", 4)

    simulate(11, scenario)


def test_an_eviction_that_could_not_be_stored_has_no_effect() -> None:
    async def scenario(a: Archipelago) -> None:
        world, home, there, _engine, job = await _open(a)
        site = world.jobs["there"]
        run = await site.guest(ADMINISTRATOR, job.id)
        assert run is not None
        Fault(there.state)
        with pytest.raises(DiskFailed):
            await site.evict(ADMINISTRATOR, run)
        assert "did it" in (await world.run(home, job, "it")).output
        acts = await there.state.read(lambda conn: [entry.act for entry in journal.entries(conn)])
        assert "job.evict" not in acts
        await site.evict(ADMINISTRATOR, run)
        assert "ended by the administrator of there" in (await world.ended(home, job)).reason

    simulate(11, scenario)


def test_a_stop_that_could_not_be_stored_is_sent_again() -> None:
    async def scenario(a: Archipelago) -> None:
        world, home, there, _engine, job = await _open(a)
        fault = Fault(there.state)
        await world.jobs["home"].end(job, deleted=False)
        assert "ended by its owner" in (await world.ended(home, job)).reason
        assert fault.met == 1

    simulate(12, scenario)
