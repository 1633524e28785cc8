"""Jobs without a free place wait in line at their home, and a home whose disk is full only waits."""

from __future__ import annotations

import asyncio
import re

import pytest

from island.errors import BadInput, IslandError
from island.jobs.home.store import JobRow, StatementRow
from island.jobs.messages import StatementReport
from island.kernel.ids import IslandId
from island.livy.messages import SessionRequest
from island.trust.users import Principal
from tests.sim.archipelago import Archipelago, simulate
from tests.sim.jobs import OPEN, USER, PlayedEngine, World


async def _now(world: World, jobs: list[JobRow]) -> list[JobRow]:
    """The current rows of jobs."""
    rows = await world.jobs["home"].newest(Principal("administrator", "administrator"), 1000)
    found = {row.id: row for row in rows}
    return [found[job.id] for job in jobs]


def test_more_live_jobs_than_all_islands_take_wait_at_home_in_order() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("home", engine=PlayedEngine(), max_sessions=4)
        users = [Principal("user", f"user{number}") for number in range(3)]
        jobs = [await world.open(home, who=users[number % 3]) for number in range(115)]
        await asyncio.sleep(30)
        rows = await _now(world, jobs)
        assert all(row.live for row in rows), [row.reason for row in rows if not row.live]
        waiting = [row for row in rows if row.phase == "routing"]
        assert waiting and "waits in line" in await world.log(home, waiting[-1])
        # One that waits in line can be ended at once, and the others keep their order.
        await world.jobs["home"].end(waiting[-1], deleted=False)
        assert (await world.ended(home, waiting[-1])).state == "killed"
        for job in jobs[:12]:
            await world.jobs["home"].end(job, deleted=True)
        await asyncio.sleep(60)
        still = {row.id for row in await _now(world, jobs) if row.phase == "routing"}
        order = [row.id in still for row in waiting[:-1]]
        assert order == sorted(order), "who came first is placed first"
        assert not all(order)

    simulate(41, scenario)


def test_a_session_that_follows_a_closed_one_at_capacity_gets_its_place() -> None:
    """What `%%configure -f` does: DELETE, and at once POST. The place is free when the engine has cleared it."""

    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("home", engine=PlayedEngine(), max_sessions=4)
        jobs = [await world.settled(home, await world.open(home)) for _ in range(4)]
        for _ in range(4):
            await world.jobs["home"].end(jobs.pop(0), deleted=True)
            jobs.append(await world.open(home))
        for job in jobs:
            assert (await world.settled(home, job, 120)).state == "idle"

    simulate(42, scenario)


def test_foreign_places_that_are_taken_are_waited_for() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("home")
        there = PlayedEngine()
        await world.island("there", engine=there, jobs={**OPEN, "max_foreign": 2})
        await world.linked()
        jobs = [await world.settled(home, await world.open(home)) for _ in range(2)]
        jobs += [await world.open(home) for _ in range(3)]
        await asyncio.sleep(30)
        rows = await _now(world, jobs)
        assert [row.state for row in rows].count("idle") == 2
        assert all(row.live for row in rows), [row.reason for row in rows if not row.live]
        for row in rows:
            if row.state == "idle":
                await world.jobs["home"].end(row, deleted=True)
        for job in jobs[2:]:
            found = await world.settled(home, job)
            assert found.state == "idle"
            await world.jobs["home"].end(found, deleted=True)
        assert len(there.created) == 5

    simulate(43, scenario)


@pytest.mark.parametrize("where", ["home", "there", "both", "one"])
@pytest.mark.parametrize("when", [0.0, 0.2, 0.35, 1.0])
def test_a_database_that_is_full_for_three_seconds_only_delays(where: str, when: float) -> None:
    async def scenario(a: Archipelago) -> None:
        world, engine = World(a), PlayedEngine()
        home = await world.island("home", engine=engine if where == "one" else None)
        there = await world.island("there", engine=None if where == "one" else engine, jobs=OPEN)
        await world.linked()
        job = await world.settled(home, await world.open(home))
        both = [home.disk, there.disk]
        disks = {"home": [home.disk], "there": [there.disk], "both": both, "one": [home.disk]}[where]
        jobs = world.jobs["home"]
        first = await jobs.post(job, "first", None)
        await asyncio.sleep(when)
        for disk in disks:
            disk.full = True
        await asyncio.sleep(1.0)
        if where != "there":
            with pytest.raises(IslandError) as refused:  # before it is accepted, never after
                await jobs.post(job, "never", None)
            assert refused.value.status in (503, 507)
        await asyncio.sleep(2.0)
        for disk in disks:
            disk.full = False
        assert (await jobs.finished_statement(job, first.number, 60))[0].state == "available"
        assert "did second" in (await world.run(home, job, "second", 60)).output
        long = await jobs.post(job, "sleep", None)
        await a.until(lambda: engine.ran[-1] == "sleep", within=30)
        await jobs.cancel_statement(job, long.number)
        assert (await jobs.finished_statement(job, long.number, 30))[0].state == "cancelled"
        await jobs.end(job, deleted=False)
        await world.ended(home, job)
        await a.until(lambda: not engine.alive(), within=60)
        assert engine.ran == ["first", "second", "sleep"]

    simulate(44, scenario)


@pytest.mark.parametrize("phase", [0.0, 0.02, 0.1, 1.0])
def test_a_job_that_is_being_placed_survives_a_full_database(phase: float) -> None:
    async def scenario(a: Archipelago) -> None:
        world, engine = World(a), PlayedEngine()
        home = await world.island("home", engine=engine)
        job = await world.open(home)
        await asyncio.sleep(phase)
        home.disk.full = True
        await asyncio.sleep(3.0)
        home.disk.full = False
        assert "did it" in (await world.run(home, job, "it", 60)).output
        assert len(engine.created) == 1

    simulate(45, scenario)


def test_a_session_whose_clients_are_silent_ends() -> None:
    async def scenario(a: Archipelago) -> None:
        world, engine = World(a), PlayedEngine()
        home = await world.island("home", engine=engine)
        jobs = world.jobs["home"]
        watched = await world.settled(home, await world.open(home, heartbeat_timeout_in_second=60))
        other = await world.settled(home, await world.open(home))
        for _ in range(5):  # every request about the session counts
            await asyncio.sleep(40)
            await jobs.find_summary(USER, "session", watched.local)
        assert len(engine.alive()) == 2
        await a.crash(home)  # the time begins anew with a restart of home
        await a.restart(home)
        jobs = world.jobs["home"]
        await asyncio.sleep(50)
        assert len(engine.alive()) == 2
        await asyncio.sleep(15)
        ended = await world.ended(home, watched)
        assert ended.state == "dead"
        log = await world.log(home, ended)
        assert re.search(r"no client has asked about this session for 6[0-9] s \(heartbeatTimeoutInSecond\)", log)
        assert "did it" in (await world.run(home, other, "it")).output

    simulate(46, scenario)


def test_a_change_wakes_only_those_who_wait_for_this_job() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("home", engine=PlayedEngine(), max_sessions=20)
        jobs = world.jobs["home"]
        quiet = [await world.settled(home, await world.open(home)) for _ in range(10)]
        busy = await world.settled(home, await world.open(home))
        waiting = []
        for job in quiet:
            statement = await jobs.post(job, "sleep", None)
            waiting.append(asyncio.ensure_future(jobs.finished_statement(job, statement.number, 50)))
        await asyncio.sleep(10)
        looks, look = 0, jobs.statement

        async def counted(job: JobRow, number: int) -> tuple[StatementRow, StatementReport]:
            nonlocal looks
            looks += job.id != busy.id
            return await look(job, number)

        jobs.statement = counted  # type: ignore[method-assign]  # counts how often the waiting requests look
        for code in "abcde":
            assert f"did {code}" in (await world.run(home, busy, code)).output
        assert looks == 0
        assert all(found[0].state == "waiting" for found in await asyncio.gather(*waiting))

    simulate(50, scenario)


@pytest.mark.parametrize("pinned", [False, True])
def test_a_job_that_the_engine_of_home_refuses_runs_elsewhere(pinned: bool) -> None:
    async def scenario(a: Archipelago) -> None:
        world, broken, engine = World(a), PlayedEngine(), PlayedEngine()
        home = await world.island("home", engine=broken)
        there = await world.island("there", engine=engine, jobs=OPEN)
        await world.linked()

        async def refuse(what: str, when: str) -> None:
            if (what, when) == ("create", "before"):
                raise BadInput("the REPL is not installed")

        broken.fault = refuse
        job = await world.open(home, queue="island:home" if pinned else None)
        early = await world.jobs["home"].post(job, "early", None)
        job = await world.settled(home, job)
        if pinned:
            assert (job.state, job.live) == ("dead", False) and "the REPL is not installed" in job.reason
            return
        assert (job.state, job.executor) == ("idle", there.id), job.reason
        assert (await world.jobs["home"].finished_statement(job, early.number, 60))[0].state == "available"
        assert "the REPL is not installed" in await world.log(home, job)
        assert not broken.created and len(engine.created) == 1

    simulate(51, scenario)


@pytest.mark.parametrize("where", ["home", "there"])
def test_a_job_survives_a_request_for_an_offer_that_is_not_answered(where: str) -> None:
    async def scenario(a: Archipelago) -> None:
        world, engine = World(a), PlayedEngine()
        home = await world.island("home", engine=engine if where == "home" else None)
        await world.island("there", engine=engine if where == "there" else None, jobs=OPEN)
        await world.linked()
        asked = asyncio.Event()

        async def hang_once(what: str, when: str) -> None:
            if (what, when) == ("instance", "before") and not asked.is_set():
                asked.set()
                await asyncio.Event().wait()

        engine.fault = hang_once
        job = await world.settled(home, await world.open(home))
        assert asked.is_set()
        assert job.state == "idle", job.reason
        assert f"waiting up to 30 s for {where} to answer" in await world.log(home, job)

    simulate(52, scenario)


def test_more_jobs_than_may_reserve_a_place_at_the_same_time_wait_in_line() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("home", engine=PlayedEngine(), jobs={"max_live_per_user": 1000}, max_sessions=300)
        jobs = await asyncio.gather(*(world.open(home) for _ in range(300)))
        home.disk.slow = 1.0
        await asyncio.sleep(60)
        rows = await _now(world, list(jobs))
        assert all(row.live for row in rows), [row.reason for row in rows if not row.live]

    simulate(53, scenario)


def test_an_island_that_dies_at_a_commit_does_not_block_the_line() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("home")
        islands = [await world.island(name, engine=PlayedEngine(), jobs={**OPEN, "max_foreign": 1}) for name in "ab"]
        await world.linked()
        first = [await world.settled(home, await world.open(home)) for _ in islands]
        waiting = [await world.open(home) for _ in range(2)]
        await asyncio.sleep(10)
        assert all([("waits in line" in await world.log(home, job)) for job in waiting])
        asked = asyncio.Event()

        async def hang(_sender: IslandId, _body: bytes) -> bytes:
            asked.set()
            await asyncio.Event().wait()
            raise AssertionError

        dying = next(island for island in islands if island.id == first[0].executor)
        assert dying.peers is not None
        dying.peers._requests["job.commit"] = hang
        await world.jobs["home"].end(first[0], deleted=True)
        await asyncio.wait_for(asked.wait(), 60)
        await a.crash(dying)
        await world.jobs["home"].end(first[1], deleted=True)
        second = await world.settled(home, max(waiting, key=lambda job: job.id))
        assert (second.state, second.executor) == ("idle", first[1].executor)

    simulate(54, scenario)


def test_jobs_with_other_names_of_their_application_wait_in_the_same_line() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("home")
        await world.island("there", engine=PlayedEngine(), jobs={**OPEN, "max_foreign": 1})
        await world.linked()
        jobs, placed = world.jobs["home"], await world.settled(home, await world.open(home))
        waiting = []
        for number in range(6):
            request = SessionRequest(kind="pyspark", conf={"spark.app.name": f"app {number}"})
            waiting.append(await jobs.open_session(USER, request))
            await asyncio.sleep(1)  # ids tell the order of acceptance by the millisecond
        while waiting:
            await jobs.end(placed, deleted=True)
            placed = await world.settled(home, waiting.pop(0))
            assert placed.state == "idle"
            assert {row.phase for row in await _now(world, waiting)} <= {"routing"}

    simulate(55, scenario)


def test_a_job_that_only_home_may_run_does_not_keep_others_from_another_island() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("home", engine=PlayedEngine(), jobs={"max_live_per_user": 200}, max_sessions=1)
        there = await world.island("there", engine=PlayedEngine(), jobs=OPEN)
        await world.linked()
        for _ in range(101):
            await world.open(home, queue="island:home")
        await asyncio.sleep(10)
        request = SessionRequest(kind="pyspark", conf={"spark.sql.optimizer.maxIterations": "50"})
        stays = await world.jobs["home"].open_session(USER, request)
        await asyncio.sleep(10)
        assert "waits in line" in await world.log(home, stays)
        goes = await world.settled(home, await world.open(home))
        assert (goes.state, goes.executor) == ("idle", there.id)
        assert [row.phase for row in await _now(world, [stays])] == ["routing"]

    simulate(56, scenario)


def test_a_heartbeat_timeout_below_zero_means_none_as_in_livy() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("home", engine=PlayedEngine())
        job = await world.settled(home, await world.open(home, heartbeat_timeout_in_second=-5))
        assert job.state == "idle", job.reason
        assert "did it" in (await world.run(home, job, "it")).output

    simulate(57, scenario)


def test_an_island_that_does_not_answer_hardly_delays_the_placement_of_jobs_elsewhere() -> None:
    async def scenario(a: Archipelago) -> None:
        world, frozen = World(a), PlayedEngine()
        home = await world.island("home", engine=PlayedEngine(), max_sessions=40)
        await world.island("there", engine=frozen, jobs=OPEN)
        await world.linked()
        asked = 0

        async def hang(what: str, when: str) -> None:
            nonlocal asked
            if (what, when) == ("instance", "before"):
                asked += 1
                await asyncio.Event().wait()

        frozen.fault = hang
        begun = a.loop.time()
        jobs = [await world.open(home) for _ in range(40)]
        rows = [await world.settled(home, job) for job in jobs]
        assert {(row.state, row.executor) for row in rows} == {("idle", home.id)}
        assert a.loop.time() - begun < 5, "in virtual time"
        assert 1 <= asked <= 16, "the later jobs do not ask it"
        assert "did not answer" in await world.log(home, rows[0])
        assert "it was not asked, because it did not answer" in await world.log(home, rows[-1])

    simulate(58, scenario)
