"""Crashes between all steps of offer, commit, statement and result: nothing is lost, nothing runs twice.

A step is a write to a database or a call to an engine. For each step there is one run in which the
island crashes before it, and one in which it crashes after it. Then the island is started again
with the data that it had written.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import pytest

from island.errors import IslandError
from island.jobs.home.local_files import BatchFile
from island.jobs.home.store import JobRow, StatementRow
from island.livy.messages import BatchRequest, SessionRequest
from tests.sim.archipelago import Archipelago, SimIsland, simulate
from tests.sim.jobs import OPEN, USER, PlayedEngine, World

T = TypeVar("T")

CODES = ["first", "second"]


class Reaper:
    """Crashes one island before or after its n-th step, and counts the steps."""

    def __init__(self, world: World, victim: SimIsland, at: int, when: str) -> None:
        self.world, self.victim, self.at, self.when = world, victim, at, when
        self.steps = 0
        self.killed = asyncio.Event()
        self.active = True
        self._write = victim.state.write
        victim.state.write = self._watched_write  # type: ignore[method-assign]  # a tap between service and disk

    async def _watched_write(self, function: Callable[[Any], T], *, then: Callable[[T], object] | None = None) -> T:
        number = self._next()
        await self._perhaps(number, "before")
        dies = self.active and (number, "after") == (self.at, self.when)
        result = await self._write(function, then=None if dies else then)
        await self._perhaps(number, "after")
        return result

    async def engine_step(self, what: str, when: str) -> None:
        if what in ("show", "instance", "statement", "log", "find"):
            return  # read-only calls are not steps
        number = self._next() if when == "before" else self.steps
        await self._perhaps(number, when)

    def _next(self) -> int:
        self.steps += self.active
        return self.steps

    async def _perhaps(self, number: int, when: str) -> None:
        if self.active and number == self.at and when == self.when:
            self.active = False
            self.killed.set()
            await asyncio.Event().wait()  # the task stops here until the crash cancels it


async def client(world: World, home: SimIsland, call: Callable[[], Awaitable[T]]) -> T | None:
    """Send one request of a client. None if the island crashed before it answered."""
    answer: list[Any] = []
    task = home.tasks.loop("client", _caught(call, answer))
    await asyncio.wait([task])
    if task.cancelled() or not answer:
        return None
    if isinstance(answer[0], Exception):
        raise answer[0]
    found: T = answer[0]
    return found


async def _caught(call: Callable[[], Awaitable[Any]], answer: list[Any]) -> None:
    try:
        answer.append(await call())
    except IslandError as error:
        answer.append(error)


def story(
    victim_name: str, at: int, when: str, *, engine_dies: bool, remote: bool, batch: bool = False, stock: bool = False
) -> int:
    """Open a session, run two statements and close it, or submit a batch. Returns the number of steps."""

    async def scenario(a: Archipelago) -> int:
        world = World(a)
        engine = PlayedEngine("" if stock else "one")
        if remote:
            home = await world.island("home")
            executor = await world.island("exec", engine=engine, jobs=OPEN)
            await world.linked()
        else:
            home = executor = await world.island("home", engine=engine)
        victim = {"home": home, "exec": executor}[victim_name]
        reaper = Reaper(world, victim, at, when)
        if victim is executor:
            engine.fault = reaper.engine_step
        undertaker = asyncio.get_running_loop().create_task(bury(world, reaper, engine, engine_dies))
        try:
            lived = batch_life if batch else life
            await lived(world, home, engine, engine_dies=engine_dies and victim is executor)
        finally:
            undertaker.cancel()
            await asyncio.wait([undertaker])
            reaper.active = False
        await a.until(lambda: not engine.alive(), within=900)
        assert len(engine.ran) == len(set(engine.ran)), f"ran twice: {engine.ran}"
        return reaper.steps

    return simulate(at, scenario, record=False)


async def bury(world: World, reaper: Reaper, engine: PlayedEngine, engine_dies: bool) -> None:
    """Crash the island and start it again."""
    await reaper.killed.wait()
    await world.a.crash(reaper.victim)
    if engine_dies:
        engine.start_anew("two")
    await asyncio.sleep(1.0)
    await world.a.restart(reaper.victim)


async def up(world: World, home: SimIsland) -> None:
    """Repeat a request until the island answers."""
    while not home.up:
        await asyncio.sleep(0.1)


async def life(world: World, home: SimIsland, engine: PlayedEngine, *, engine_dies: bool) -> None:
    job: JobRow | None = None
    request = SessionRequest(kind="pyspark", name="mine")
    while job is None:  # the client repeats its request with the same key until it is answered
        await up(world, home)
        job = await client(world, home, lambda: world.jobs["home"].open_session(USER, request, key="once"))
    acknowledged: dict[int, str] = {}
    for code in CODES:
        await post(world, home, job, code, acknowledged)
    await settle(world, home, job, acknowledged)
    await check(world, home, job, acknowledged, engine, engine_dies)
    while True:
        await up(world, home)
        if await client(world, home, lambda: finish(world, home, job)):
            break
    await asyncio.sleep(30)
    await up(world, home)
    ended = await world.ended(home, job)
    assert ended.state == "dead"
    await check(world, home, job, acknowledged, engine, engine_dies)
    assert [row["job"] for row in await world.jobs["home"].listing(USER, 10)] == [job.id], "one request made one job"


async def batch_life(world: World, home: SimIsland, engine: PlayedEngine, *, engine_dies: bool) -> None:
    """Submit a batch once and wait for its end."""
    job: JobRow | None = None
    file = BatchFile("x.py", b"print('x')" * 10_000)
    while job is None:
        await up(world, home)
        job = await client(
            world, home, lambda: world.jobs["home"].submit_batch(USER, BatchRequest(file="x.py"), file=file, key="once")
        )
    ended: JobRow | None = None
    for _ in range(4000):
        await up(world, home)
        found = await client(world, home, lambda: world.jobs["home"].named(USER, job.id))
        if found is not None and not found.live:
            ended = found
            break
        await asyncio.sleep(0.25)
    assert ended is not None, await world.log(home, job)
    assert len(engine.created) <= 1, f"ran twice: {engine.created}"
    if ended.state == "success":
        assert len(engine.created) == 1
    elif not engine.now:
        assert "it is unknown whether the batch ran" in ended.reason  # a stock Livy forgets names
    else:
        assert engine_dies and ended.state == "dead" and ended.reason, ended


async def post(world: World, home: SimIsland, job: JobRow, code: str, acknowledged: dict[int, str]) -> None:
    """Post a statement once. Without an answer, check whether it was accepted before posting it again."""

    async def post_once() -> StatementRow:
        return await world.jobs["home"].post(job, code, None)

    while code not in acknowledged.values():
        await up(world, home)
        try:
            known = await client(world, home, lambda: world.statements(home, job))
            if known is None:
                continue
            arrived = [s for s in known if s.code == code]
            statement = arrived[0] if arrived else await client(world, home, post_once)
        except IslandError:
            return  # the session ended with its engine, and its reason says so
        if statement is not None:
            acknowledged[statement.number] = code


async def settle(world: World, home: SimIsland, job: JobRow, acknowledged: dict[int, str]) -> None:
    for number in acknowledged:
        for _ in range(4000):
            await up(world, home)
            answer = await client(world, home, partial(world.jobs["home"].statement, job, number))
            if answer is not None and answer[0].ended:
                break
            await asyncio.sleep(0.25)
        else:
            raise AssertionError(f"statement {number} never ends: {await world.log(home, job)}")


async def check(
    world: World, home: SimIsland, job: JobRow, acknowledged: dict[int, str], engine: PlayedEngine, engine_dies: bool
) -> None:
    """Every acknowledged statement has its result, or an error that it was lost with its engine."""
    for number, code in acknowledged.items():
        found, _ = await world.jobs["home"].statement(job, number)
        assert found.code == code and found.ended
        output = json.loads(found.output) if found.output else {}
        if found.state == "available" and output["status"] == "ok":
            assert output["data"]["text/plain"] == f"did {code}"
            assert engine.ran.count(code) == 1
        else:
            assert engine_dies, (found, await world.log(home, job))
            assert output["ename"] in ("SessionLost", "NeverRun")
            if output["ename"] == "NeverRun":
                assert code not in engine.ran
    if not engine_dies:
        assert engine.ran == CODES


async def finish(world: World, home: SimIsland, job: JobRow) -> bool:
    await world.jobs["home"].end(job, deleted=False)
    return True


# Which island crashes, whether its engine crashes too, whether the job is at another island, whether Livy is stock.
CASES = [
    ("home", False, False, False),
    ("home", True, False, False),
    ("home", False, True, False),
    ("exec", False, True, False),
    ("exec", True, True, False),
    ("exec", False, True, True),
]


@pytest.mark.slow
@pytest.mark.parametrize("batch", [False, True], ids=["session", "batch"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("victim", "engine_dies", "remote", "stock"), CASES)
def test_crash_at_every_step(victim: str, engine_dies: bool, remote: bool, stock: bool, when: str, batch: bool) -> None:
    def at_step(at: int) -> int:
        return story(victim, at, when, engine_dies=engine_dies, remote=remote, batch=batch, stock=stock)

    steps = at_step(0)  # without a crash: count the steps
    assert steps > 5
    for at in range(1, steps + 1):
        at_step(at)
