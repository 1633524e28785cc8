"""Faults at the engines of an executor: full, slow, failing, restarted, with the sessions of other clients in it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from island.errors import EngineFailed
from island.jobs.engines.port import EngineFull, EngineRefused, RemoteJob, RemoteRef
from island.jobs.executor.machine import SEARCH_AGAIN_S
from island.jobs.home.store import JobRow
from island.livy.client import EngineUncertain
from island.livy.messages import SessionRequest
from tests.sim.archipelago import Archipelago, SimIsland, simulate
from tests.sim.jobs import OPEN, USER, PlayedEngine, PlayedSession, World


class StrictEngine(PlayedEngine):
    """A played engine with a limit of its own, which counts all sessions: also those of other clients."""

    def __init__(self, instance: str = "one", *, limit: int = 4) -> None:
        super().__init__(instance)
        self.limit = limit
        self.end_s = 0.0
        """Seconds that the end of a session takes. It counts until then."""
        self.refuses = ""
        self.overrun = 0
        """The number of sessions that were requested although the engine was full."""

    async def create(self, kind: str, body: Mapping[str, Any]) -> RemoteJob:
        if self.refuses:
            raise EngineRefused(self.refuses)
        if len(self.alive()) >= self.limit:
            self.overrun += 1
            raise EngineFull(f"too many {kind}s: the limit is {self.limit}")
        return await super().create(kind, body)

    async def end(self, ref: RemoteRef) -> None:
        await asyncio.sleep(self.end_s)
        await super().end(ref)

    def add_stranger(self) -> PlayedSession:
        """A session of another client."""
        number = self._next["session"]
        self._next["session"] += 1
        name = f"stranger-{number}"
        job = self.jobs["session", number] = PlayedSession(number, name, "session", {}, self._now())
        return job


def failing(engine: PlayedEngine, what: str, *, times: int | None = None) -> list[str]:
    """Let the engine give no answer to calls of one kind, `times` times or until `fault` is None. Returns the calls."""
    calls: list[str] = []

    async def fault(called: str, when: str) -> None:
        if (called, when) == (what, "before") and (times is None or len(calls) < times):
            calls.append(called)
            raise EngineFailed("connection reset by peer")

    engine.fault = fault
    return calls


async def _there(a: Archipelago, engine: PlayedEngine, **jobs: Any) -> tuple[World, SimIsland, SimIsland]:
    """A home without an engine, and another island with one."""
    world = World(a)
    home = await world.island("home")
    there = await world.island("there", engine=engine, jobs={**OPEN, **jobs})
    await world.linked()
    return world, home, there


async def _states(world: World, home: SimIsland, jobs: list[JobRow]) -> list[str]:
    """What Livy's clients see of the sessions."""
    found = [await world.jobs[home.name].settled(job, 0) for job in jobs]
    return [job.state for job in found]


@pytest.mark.parametrize("end_s", [0.0, 5.0], ids=["at once", "slowly"])
def test_the_end_of_one_session_starts_the_next_in_line_and_ends_no_other(end_s: float) -> None:
    async def scenario(a: Archipelago) -> None:
        world, engine = World(a), StrictEngine(limit=4)
        engine.end_s = end_s
        home = await world.island("home", engine=engine)
        alive = [await world.open(home) for _ in range(9)]
        while alive:
            await asyncio.sleep(20)
            states = await _states(world, home, alive)
            assert sorted(states) == ["idle"] * min(4, len(alive)) + ["starting"] * (len(alive) - 4)
            await world.jobs["home"].end(alive.pop(states.index("idle")), deleted=True)
        await a.until(lambda: not engine.alive(), within=60)
        assert (len(engine.created), engine.overrun) == (9, 0), "a place is free when the engine has ended the session"

    simulate(1, scenario)


def test_a_session_that_replaces_another_at_capacity_starts() -> None:
    """What `%%configure -f` does: DELETE, then POST at once."""

    async def scenario(a: Archipelago) -> None:
        world, engine = World(a), StrictEngine(limit=4)
        engine.end_s = 3.0
        home = await world.island("home", engine=engine)
        jobs = [await world.settled(home, await world.open(home)) for _ in range(4)]
        for job in jobs:
            await world.jobs["home"].end(job, deleted=True)
            fresh = await world.settled(home, await world.open(home))
            assert fresh.state == "idle"
            assert "did it" in (await world.run(home, fresh, "it")).output
        assert engine.overrun == 0

    simulate(2, scenario)


def test_a_job_waits_while_other_clients_have_all_sessions_of_the_engine() -> None:
    async def scenario(a: Archipelago) -> None:
        world, engine = World(a), StrictEngine("", limit=2)
        home = await world.island("home", engine=engine)
        strangers = [engine.add_stranger(), engine.add_stranger()]
        jobs = [await world.open(home) for _ in range(2)]
        await asyncio.sleep(120)
        assert await _states(world, home, jobs) == ["starting", "starting"]
        assert "has no place now (too many sessions: the limit is 2); waiting for one" in await world.log(home, jobs[0])
        for stranger in strangers:
            del engine.jobs["session", stranger.id]
        for job in jobs:
            assert (await world.settled(home, job)).state == "idle"

    simulate(3, scenario)


def test_a_job_that_one_engine_refuses_runs_at_the_next() -> None:
    async def scenario(a: Archipelago) -> None:
        world, broken, good = World(a), StrictEngine(""), StrictEngine("")
        broken.name, good.name, broken.refuses = "broken", "good", "Rejected, Reason: Cannot find Livy REPL jars."
        world.further_engines["home"] = [good]
        home = await world.island("home", engine=broken)
        jobs = [await world.settled(home, await world.open(home)) for _ in range(3)]
        assert [job.state for job in jobs] == ["idle"] * 3
        assert len(good.alive()) == 3

    simulate(4, scenario)


def test_engines_are_used_in_turn_until_all_are_full() -> None:
    async def scenario(a: Archipelago) -> None:
        world, first, second = World(a), StrictEngine(limit=2), StrictEngine(limit=2)
        first.name, second.name = "first", "second"
        world.further_engines["home"] = [second]
        home = await world.island("home", engine=first, max_sessions=2)
        jobs = [await world.settled(home, await world.open(home)) for _ in range(4)]
        jobs.append(await world.open(home))
        assert await _states(world, home, jobs) == ["idle"] * 4 + ["starting"]
        assert (len(first.alive()), len(second.alive())) == (2, 2)
        await a.crash(home)
        await a.restart(home)
        await asyncio.sleep(10)
        assert await _states(world, home, jobs) == ["idle"] * 4 + ["starting"], "a restart keeps the places"
        await world.jobs["home"].end(jobs[2], deleted=True)
        assert (await world.settled(home, jobs[4])).state == "idle"

    simulate(5, scenario)


def test_commits_at_the_same_time_do_not_pass_max_foreign() -> None:
    async def scenario(a: Archipelago) -> None:
        world, engine = World(a), StrictEngine(limit=12)
        home = await world.island("home")
        there = await world.island("there", engine=engine, jobs={**OPEN, "max_foreign": 2}, max_sessions=12)
        await world.linked()
        await asyncio.gather(*(world.open(home) for _ in range(12)))
        await asyncio.sleep(30)

        def alive(conn: Any) -> int:
            query = "SELECT count(*) FROM run WHERE phase NOT IN ('clearing', 'cleared')"
            return int(conn.execute(query).fetchone()[0])

        assert there.committed(there.state, alive) == 2
        assert len(engine.created) == 2

    simulate(6, scenario)


def test_a_failed_cancel_is_repeated_and_ends_nothing_else() -> None:
    async def scenario(a: Archipelago) -> None:
        engine = StrictEngine()
        world, home, _ = await _there(a, engine)
        jobs = world.jobs["home"]
        job = await world.settled(home, await world.open(home))
        long = await jobs.post(job, "sleep", None)
        await a.until(lambda: engine.ran == ["sleep"], within=10)
        calls = failing(engine, "cancel", times=3)
        await jobs.cancel_statement(job, long.number)
        assert (await jobs.finished_statement(job, long.number, 50))[0].state == "cancelled"
        assert len(calls) == 3
        assert "did it" in (await world.run(home, job, "it")).output

    simulate(7, scenario)


def test_a_session_that_cannot_be_removed_keeps_its_place_and_is_a_problem_of_the_island() -> None:
    async def scenario(a: Archipelago) -> None:
        world, engine = World(a), StrictEngine(limit=1)
        home = await world.island("home", engine=engine, max_sessions=1)
        first = await world.settled(home, await world.open(home))
        failing(engine, "end")
        await world.jobs["home"].end(first, deleted=True)
        assert (await world.ended(home, first)).state == "dead"
        second = await world.open(home)
        await asyncio.sleep(3600)
        for _ in range(2):
            assert (await world.jobs["home"].settled(second, 0)).state == "starting"
            [problem] = world.jobs["home"].problems()
            assert "has ended but cannot be removed from the engine" in problem and "connection reset" in problem
            await a.crash(home)
            await a.restart(home)
            await asyncio.sleep(60)
        engine.fault = None
        assert (await world.settled(home, second, 700)).state == "idle"
        assert len(engine.alive()) == 1 and world.jobs["home"].problems() == []

    simulate(8, scenario)


def test_the_lease_expires_while_a_statement_runs() -> None:
    async def scenario(a: Archipelago) -> None:
        engine = StrictEngine()
        world, home, _ = await _there(a, engine)
        engine.took = 1e6
        job = await world.settled(home, await world.open(home))
        await world.jobs["home"].post(job, "endless", None)
        await a.until(lambda: engine.ran == ["endless"], within=10)
        await a.crash(home)
        await a.until(lambda: not engine.alive(), within=700)
        await a.restart(home)
        assert "lease expired" in (await world.ended(home, job)).reason

    simulate(9, scenario)


def test_the_lease_expires_while_a_job_waits_for_a_place() -> None:
    async def scenario(a: Archipelago) -> None:
        engine = StrictEngine(limit=1)
        world = World(a)
        home = await world.island("home")
        there = await world.island("there", engine=engine, jobs=OPEN, max_sessions=1)
        await world.linked()
        await world.settled(there, await world.open(there))
        job = await world.open(home)
        await world.settled(home, job, 20)
        await a.crash(home)
        await a.until(lambda: len(world.jobs["there"].executor._driver.alive) == 1, within=700)
        await a.restart(home)
        assert "lease expired" in (await world.ended(home, job)).reason
        assert len(engine.created) == 1

    simulate(10, scenario)


def test_a_restarted_livy_that_gives_ids_again_keeps_the_sessions_of_others() -> None:
    async def scenario(a: Archipelago) -> None:
        world, engine = World(a), StrictEngine("")
        home = await world.island("home", engine=engine)
        jobs = [await world.settled(home, await world.open(home)) for _ in range(2)]
        statement = await world.jobs["home"].post(jobs[0], "sleep", None)
        await a.until(lambda: engine.ran == ["sleep"], within=10)
        engine.start_anew("")
        engine._next["session"] = 0
        strangers = [engine.add_stranger(), engine.add_stranger()]
        assert [stranger.id for stranger in strangers] == [0, 1]
        late = await world.jobs["home"].post(jobs[1], "secret", None)
        for job in jobs:
            assert (await world.ended(home, job)).state == "dead"
        for job, number in ((jobs[0], statement.number), (jobs[1], late.number)):
            assert (await world.jobs["home"].statement(job, number))[0].ended
        await asyncio.sleep(60)
        assert engine.alive() == strangers
        assert all(not stranger.statements for stranger in strangers)

    simulate(11, scenario)


@pytest.mark.parametrize(
    ("field", "value", "key"),
    [
        ("driver_memory", "a lot", "driverMemory"),
        ("executor_memory", "999999999t", "executorMemory"),
        ("driver_cores", -1, "driverCores"),
        ("num_executors", 10**6, "numExecutors"),
        ("ttl", "soon", "ttl"),
    ],
)
def test_a_client_learns_at_once_which_value_is_wrong(field: str, value: Any, key: str) -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        await world.island("home", engine=StrictEngine())
        jobs = world.jobs["home"]
        with pytest.raises(Exception, match=f"{key} = "):
            await jobs.open_session(USER, SessionRequest(kind="sql", **{field: value}))

    simulate(12, scenario)


class LateEngine(PlayedEngine):
    """An engine that carries out a request to run code `late_s` after it came, also if its client has gone by then."""

    late_s = 0.0
    loses_answers = False
    instance_s = 0.0
    """Seconds that the answer with the instance id takes."""

    async def instance(self) -> str:
        await asyncio.sleep(self.instance_s)
        return await super().instance()

    async def post(self, ref: RemoteRef, code: str, language: str) -> int:
        async def carried_out() -> int:
            await asyncio.sleep(self.late_s)
            return await PlayedEngine.post(self, ref, code, language)

        request = asyncio.get_running_loop().create_task(carried_out())
        if self.loses_answers:
            await asyncio.sleep(0.01)
            raise EngineUncertain("connection reset by a proxy")
        return await asyncio.shield(request)


@pytest.mark.parametrize(
    ("instance", "late_s"), [("one", 1.5), ("", 1.5), ("", 12.0)], ids=["embedded", "stock", "stock, very late"]
)
def test_a_statement_whose_answer_is_lost_runs_once_at_most(instance: str, late_s: float) -> None:
    async def scenario(a: Archipelago) -> None:
        world, engine = World(a), LateEngine(instance)
        home = await world.island("home", engine=engine)
        job = await world.settled(home, await world.open(home))
        engine.late_s, engine.loses_answers = late_s, True
        done = await world.run(home, job, "INSERT")
        await asyncio.sleep(20)
        assert engine.ran == ["INSERT"]
        assert ("it is unknown whether it ran" in done.output) == (late_s > SEARCH_AGAIN_S)
        engine.late_s, engine.loses_answers = 0.0, False
        assert "did SELECT" in (await world.run(home, job, "SELECT")).output

    simulate(1, scenario)


@pytest.mark.parametrize("instance", ["one", ""], ids=["embedded", "stock"])
def test_a_statement_that_waits_while_the_island_is_restarted_runs_once(instance: str) -> None:
    async def scenario(a: Archipelago) -> None:
        world, engine = World(a), LateEngine(instance)
        home = await world.island("home", engine=engine)
        job = await world.settled(home, await world.open(home))
        engine.late_s, engine.instance_s = 0.3, 0.2
        statement = await world.jobs["home"].post(job, "INSERT", None)
        await a.crash(home)
        assert not engine.ran
        await a.restart(home)
        done, _ = await world.jobs["home"].finished_statement(job, statement.number, 60)
        await asyncio.sleep(20)
        assert ("did INSERT" in done.output, engine.ran) == (True, ["INSERT"])

    simulate(1, scenario)


def test_a_statement_that_is_shown_as_cancelled_does_not_run_later() -> None:
    async def scenario(a: Archipelago) -> None:
        engine = PlayedEngine()
        world, home, there = await _there(a, engine)
        job = await world.settled(home, await world.open(home))
        there.disk.full = True
        statement = await world.jobs["home"].post(job, "DELETE", None)
        await asyncio.sleep(15)
        await world.jobs["home"].cancel_statement(job, statement.number)
        await asyncio.sleep(40)
        there.disk.full = False
        await asyncio.sleep(60)
        shown, _ = await world.jobs["home"].statement(job, statement.number)
        assert shown.ended and (shown.state == "cancelled" or "did DELETE" in shown.output)
        assert not engine.ran or engine.jobs["session", 0].statements[0].cancelled is not None

    simulate(1, scenario)


def test_a_full_disk_of_the_executor_is_no_silence_of_the_home() -> None:
    async def scenario(a: Archipelago) -> None:
        engine = PlayedEngine()
        world, home, there = await _there(a, engine)
        job = await world.settled(home, await world.open(home))
        await world.run(home, job, "first")
        engine.took = 115.0
        await world.jobs["home"].post(job, "second", None)
        await asyncio.sleep(5)
        there.disk.full = True
        await asyncio.sleep(900)
        there.disk.full = False
        await asyncio.sleep(120)
        job = await world.jobs["home"].named(USER, job.id)
        assert (job.live, job.state) == (True, "idle"), job.reason
        assert [each.state for each in await world.statements(home, job)] == ["available", "available"]

    simulate(1, scenario)
