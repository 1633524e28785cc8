"""One seed, one story: islands that crash at effects of their jobs, in bad weather, while clients use them.

Clients open sessions, post and cancel statements, close sessions and submit batches; they repeat what was not answered.
Meanwhile disks, engines and lines have faults, and islands crash before or after effects of the machines of jobs and
runs, or around their transactions. Then the faults end, and `CrashStory.check` demands that nothing was lost, run twice
or left over. The seed decides everything, so that a failure can be replayed: `crash_story(SEED)`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, TypeVar

from island.errors import IslandError
from island.jobs.executor.performer import RunPerformer
from island.jobs.home.driver import HomeDriver
from island.jobs.home.local_files import BatchFile
from island.jobs.home.store import JobRow, StatementRow
from island.kernel.loops import is_transient
from island.kernel.ports import SeededRng
from island.livy.messages import STATEMENT_ENDED, BatchRequest, SessionRequest
from tests.sim.archipelago import Archipelago, SimIsland, simulate
from tests.sim.jobs import OPEN, USER, World
from tests.sim.network import Weather
from tests.sim.stormy_engine import CHANGES, StormyEngine

T = TypeVar("T")

CRASH = 0.02
"""The probability of a crash before or after each effect and transaction."""

MAX_CRASHES = 6
STORM_S = 120.0
"""Seconds after which the last fault begins."""

HOURS = 2.5 * 3600.0
"""Seconds for which a home is away that is away for long."""


class CrashWorld(World):
    """A world whose story is told before and after every transaction of an island's state."""

    story: CrashStory

    async def _build(self, island: SimIsland) -> None:
        island.state.write = partial(self._write, island, island.state.write)  # type: ignore[method-assign]  # a tap
        await super()._build(island)

    async def _write(
        self, island: SimIsland, write: Callable[..., Awaitable[T]], function: Callable[[Any], T], **more: Any
    ) -> T:
        await self.story.point(island, "transaction", "before")
        crash = self.story.is_due(island)  # after the commit, and before anybody learns of it
        result = await write(function, **({} if crash else more))
        if crash:
            await self.story.crash_at(island, "transaction", "after")
        return result


@contextlib.contextmanager
def effects_told(stories: list[CrashStory]) -> Iterator[None]:
    """Tell the last story of the list before and after every effect of the machines."""
    originals = {owner: vars(owner)[name] for owner, name in ((HomeDriver, "_perform"), (RunPerformer, "perform"))}

    async def home(self: Any, job: Any, effect: Any) -> Any:
        return await _told(stories[-1], self, effect, lambda: originals[HomeDriver](self, job, effect))

    async def run(self: Any, effect: Any) -> Any:
        return await _told(stories[-1], self, effect, lambda: originals[RunPerformer](self, effect))

    HomeDriver._perform, RunPerformer.perform = home, run  # type: ignore[method-assign]  # taps
    try:
        yield
    finally:
        HomeDriver._perform = originals[HomeDriver]  # type: ignore[method-assign]
        RunPerformer.perform = originals[RunPerformer]  # type: ignore[method-assign]


async def _told(story: CrashStory, performer: Any, effect: Any, perform: Callable[[], Awaitable[Any]]) -> Any:
    island = next(each for each in story.islands if each.state is performer._state)
    await story.point(island, type(effect).__name__, "before")
    event = await perform()
    await story.point(island, type(effect).__name__, "after")
    return event


class CrashStory:
    """The islands, engines, clients and faults of one seed, and what became of them."""

    def __init__(self, a: Archipelago) -> None:
        self.a = a
        self.rng = SeededRng(f"story/{a.seed}")
        self.world = CrashWorld(a)
        self.world.story = self
        self.islands: list[SimIsland] = []
        self.engines: list[StormyEngine] = []
        self.points: Counter[str] = Counter()
        """The crashes, by island, effect and moment."""
        self.faults: Counter[str] = Counter()
        self.jobs: dict[str, JobRow] = {}
        self.accepted: dict[str, dict[int, str]] = {}
        """The statements of each session that were accepted: number and code."""
        self.outcomes: Counter[str] = Counter()
        self._calm = True
        self._crashes = 0
        self._dying: set[str] = set()
        self._group = asyncio.TaskGroup()
        self._later_tasks: list[asyncio.Task[None]] = []

    # --- crashes ------------------------------------------------------------------------------------

    def is_due(self, island: SimIsland) -> bool:
        """Whether the island crashes at this point."""
        if self._calm or not island.up or island.name in self._dying or self._crashes >= MAX_CRASHES:
            return False
        return self.rng.random() < CRASH

    async def point(self, island: SimIsland, what: str, when: str) -> None:
        """A point at which the island may crash. What has reached it then goes no further."""
        if self.is_due(island):
            await self.crash_at(island, what, when)

    async def crash_at(self, island: SimIsland, what: str, when: str) -> None:
        self._crashes += 1
        self._dying.add(island.name)
        self.points[f"{island.name} {when} {what}"] += 1
        self._later(self._bury(island))
        await asyncio.Event().wait()  # until the crash cancels the task

    async def _bury(self, island: SimIsland) -> None:
        await self.a.crash(island)
        for engine in self.engines:
            # Often the whole machine has crashed, with its engine.
            if engine.name.startswith(f"{island.name}-") and self.rng.random() < 0.3:
                self._restart(engine)
        away = HOURS if island.name == "home" and self.rng.random() < 0.03 else 1.0 + 40 * self.rng.random() ** 3
        await asyncio.sleep(away)
        self._mend(island)  # a daemon that cannot start is started again by its service manager
        await self.a.restart(island)
        self._dying.discard(island.name)

    def _later(self, work: Any) -> None:
        self._later_tasks.append(self._group.create_task(work))

    # --- faults -------------------------------------------------------------------------------------

    async def storm(self) -> None:
        """Begin some faults, one after the other, each of which ends after a while."""
        for _ in range(int(2 + 7 * self.rng.random())):
            await asyncio.sleep(STORM_S / 8 * self.rng.random())
            fault = self.rng.choice([self._disk, self._disk, self._engine, self._engine, self._network])
            self._later(fault(2 + 30 * self.rng.random() ** 2))

    async def _disk(self, seconds: float) -> None:
        island = self.rng.choice(self.islands)
        if not island.up:
            return
        what = self.rng.choice(["full", "busy", "unsynced", "slow", "failures"])
        self.faults[f"disk {what}"] += 1
        disk = island.disk
        if what == "failures":
            disk.failures, disk.skip = int(1 + 4 * self.rng.random()), int(10 * self.rng.random())
            return
        setattr(disk, what, 0.5 if what == "slow" else True)
        await asyncio.sleep(seconds)
        setattr(disk, what, 0.0 if what == "slow" else False)

    async def _engine(self, seconds: float) -> None:
        engine = self.rng.choice(self.engines)
        what = self.rng.choice(["slow", "failing", "losing", "full", "down", "restart"])
        self.faults[f"engine {what}"] += 1
        if what == "restart":
            self._restart(engine)
            return
        engine.slow = 4.0 if what == "slow" else 0.0
        engine.failing = frozenset({self.rng.choice(sorted(CHANGES))}) if what == "failing" else frozenset()
        engine.losing = 0.5 if what == "losing" else 0.0
        engine.full, engine.up = what == "full", what != "down"
        await asyncio.sleep(seconds)
        engine.mend()

    def _restart(self, engine: StormyEngine) -> None:
        engine.restart(f"{engine.now}+" if engine.now else "")

    async def _network(self, seconds: float) -> None:
        network = self.a.network
        if self.rng.random() < 0.4:
            self.faults["partition"] += 1
            network.partition([[island.id] for island in self.islands])
            await asyncio.sleep(seconds)
            network.heal()
            return
        self.faults["loss, copies and delays"] += 1
        network.weather = Weather(loss=0.2, duplicate=0.3, delay=(0.005, 3.0))
        await asyncio.sleep(seconds)
        network.weather = Weather()

    async def calm(self) -> None:
        """End all faults, and bring all islands back."""
        self._calm = True
        while under_way := [task for task in self._later_tasks if not task.done()]:
            await asyncio.wait(under_way)
        self.a.network.weather = Weather()
        for island in self.islands:
            self._mend(island)
        for engine in self.engines:
            engine.mend()

    @staticmethod
    def _mend(island: SimIsland) -> None:
        disk = island.disk
        disk.full = disk.busy = disk.unsynced = False
        disk.slow, disk.failures, disk.skip = 0.0, 0, 0

    # --- clients ------------------------------------------------------------------------------------

    async def answered(self, call: Callable[[], Awaitable[T]]) -> T | None:
        """Send a request to home, and return its answer. None if it gave none, or only told of its disk."""
        home = self.islands[0]
        while not home.up:
            await asyncio.sleep(0.5)
        found: list[T | IslandError] = []

        async def ask() -> None:
            try:
                found.append(await call())
            except IslandError as error:
                found.append(error)

        await asyncio.wait([home.tasks.loop("client", ask())])
        if found and isinstance(found[0], IslandError) and not is_transient(found[0]):
            raise found[0]
        if not found or isinstance(found[0], IslandError):
            await asyncio.sleep(0.5)
            return None
        return found[0]

    async def insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a request, which may be repeated, until home answers."""
        while True:
            if (answer := await self.answered(call)) is not None:
                return answer

    async def session_life(self, name: str) -> None:
        """Open a session, post statements, cancel some, wait for them, and close it."""
        await asyncio.sleep(20 * self.rng.random())
        request = SessionRequest(kind="pyspark", name=name, queue=self._pin())
        job = await self.insist(lambda: self.world.jobs["home"].open_session(USER, request, key=name))
        self.jobs[job.id], self.accepted[job.id] = job, {}
        codes = [f"{name}-{number}" for number in range(int(4 * self.rng.random()))]
        if self.rng.random() < 0.2:
            codes.append(f"sleep-{name}")
        for code in codes:
            await asyncio.sleep(10 * self.rng.random() ** 2)
            if not await self._post(job, code):
                break
        for number, code in list(self.accepted[job.id].items()):
            if code.startswith("sleep") or self.rng.random() < 0.1:
                await self.insist(partial(self._cancelled, job, number))
        if self.rng.random() < 0.8:
            await self.statements_ended(job)
        await self.insist(partial(self._close, job))

    async def _post(self, job: JobRow, code: str) -> bool:
        """Post a statement once. Returns whether it was accepted; not if the session has ended."""
        while True:
            known = await self.insist(lambda: self.world.statements(self.islands[0], job))
            if arrived := [each for each in known if each.code == code]:
                self.accepted[job.id][arrived[0].number] = code
                return True
            try:
                statement = await self.answered(lambda: self.world.jobs["home"].post(job, code, None))
            except IslandError:
                return False
            if statement is not None:
                self.accepted[job.id][statement.number] = code
                return True

    async def _statement(self, job: JobRow, number: int) -> str:
        return (await self.world.jobs["home"].statement(job, number))[0].state

    async def _cancelled(self, job: JobRow, number: int) -> bool:
        await self.world.jobs["home"].cancel_statement(job, number)
        return True

    async def _close(self, job: JobRow) -> bool:
        await self.world.jobs["home"].end(job, deleted=False)
        return True

    async def batch_life(self, name: str) -> None:
        """Submit a batch, and perhaps end it."""
        await asyncio.sleep(20 * self.rng.random())
        request, file = BatchRequest(file="x.py", queue=self._pin()), BatchFile("x.py", name.encode())
        job = await self.insist(lambda: self.world.jobs["home"].submit_batch(USER, request, file=file, key=name))
        self.jobs[job.id] = job
        if self.rng.random() < 0.2:
            await asyncio.sleep(5 * self.rng.random())
            await self.insist(partial(self._close, job))

    def _pin(self) -> str | None:
        return self.rng.choice([None, None, *(f"island:{each.name}" for each in self.islands[1:])])

    async def statements_ended(self, job: JobRow) -> None:
        """Wait until every accepted statement of a session has ended."""
        for number in self.accepted[job.id]:
            for _ in range(8000):
                if await self.insist(partial(self._statement, job, number)) in STATEMENT_ENDED:
                    break
                await asyncio.sleep(2.0)
            else:
                raise AssertionError(f"statement {number} of {job.id} never ends: {await self._log(job)}")

    async def _log(self, job: JobRow) -> str:
        return await self.world.log(self.islands[0], job)

    # --- what must be true --------------------------------------------------------------------------

    async def watch_drivers(self) -> None:
        """Fail if a job or run that is not finished has no actor, at two looks in a row."""
        missing: set[tuple[str, int, str]] = set()
        while True:
            await asyncio.sleep(5.0)
            now = {found for island in self.a.alive() for found in self._without_actor(island)}
            assert not (twice := missing & now), f"without an actor: {twice}"
            missing = now

    def _without_actor(self, island: SimIsland) -> list[tuple[str, int, str]]:
        def look(conn: Any) -> tuple[list[Any], list[Any]]:
            jobs = conn.execute("SELECT id FROM job WHERE phase != 'ended' OR released = 0").fetchall()
            return jobs, conn.execute("SELECT job, epoch FROM run WHERE phase != 'cleared'").fetchall()

        if not island.up or island.name in self._dying:
            return []
        jobs, runs = island.committed(island.state, look)
        services = self.world.jobs[island.name]
        lost = [row["id"] for row in jobs if row["id"] not in services.driver._actors]
        lost += [f"{row['job']} {row['epoch']}" for row in runs if tuple(row) not in services.executor._driver.actors]
        return [(island.name, island.lives, each) for each in lost]

    async def check(self) -> None:
        """Check the whole story after its end."""
        for job in self.jobs.values():
            ended = await self.world.ended(self.islands[0], job)
            assert ended.reason or ended.state == "success", f"{ended.id} is {ended.state} without a reason"
            assert "internal error" not in ended.reason, ended.reason
            self.outcomes[f"{ended.kind} {ended.state}"] += 1
            for statement in await self.world.statements(self.islands[0], job) if job.kind == "session" else ():
                self._check_statement(statement, ended)
        assert len(self.jobs) == len(await self.world.jobs["home"].listing(USER, 1000)), "one request, one job"
        self._check_once()
        await self.a.until(self._is_clean, within=1500, step=5.0)
        for engine in self.engines:
            engine.check_strangers()

    def _check_statement(self, statement: StatementRow, job: JobRow) -> None:
        assert statement.state in STATEMENT_ENDED, f"{statement} of {job.id} has no end"
        assert self.accepted[job.id].get(statement.number, statement.code) == statement.code
        output = json.loads(statement.output) if statement.output else {}
        outcome = output.get("ename") or statement.state
        self.outcomes[f"statement {outcome}"] += 1
        ran = sum(engine.ran.count(statement.code) for engine in self.engines)
        if output.get("status") == "ok":
            assert output["data"]["text/plain"] == f"did {statement.code}" and ran == 1
        elif outcome == "NeverRun":
            assert ran == 0, f"{statement.code} has run: {statement}"
        else:
            assert outcome in ("SessionLost", "cancelled"), statement

    def _check_once(self) -> None:
        ran = Counter(code for engine in self.engines for code in engine.ran)
        assert not (twice := [code for code, count in ran.items() if count > 1]), f"ran twice: {twice}"
        batches = Counter(name.rpartition("-")[0] for engine in self.engines for name in engine.batches)
        assert not (twice := [name for name, count in batches.items() if count > 1]), f"batch ran twice: {twice}"

    def _is_clean(self) -> bool:
        """Whether no job, run or place is open, and the engines have nothing of ours."""
        for island in self.islands:
            jobs = self.world.jobs[island.name]
            places = jobs.executor._driver.places
            if jobs.driver._actors or jobs.executor._driver.actors or places._taken or places._line:
                return False
        return not any(engine.left_over() for engine in self.engines)

    # --- the story ----------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Build the islands and their engines."""
        count = int(1 + 3 * self.rng.random())
        for number in range(count):
            name = "home" if number == 0 else f"exec{number}"
            engines = [] if number == 0 and count > 1 and self.rng.random() < 0.5 else self._engines_for(name)
            self.engines += engines
            self.world.further_engines[name] = list(engines[1:])
            self.islands.append(
                await self.world.island(name, engine=engines[0] if engines else None, jobs=OPEN, max_sessions=2)
            )
        await self.world.linked()

    def _engines_for(self, name: str) -> list[StormyEngine]:
        engines = []
        for number in range(1 + int(1.4 * self.rng.random())):
            instance = "" if number or self.rng.random() < 0.5 else "one"
            engine = StormyEngine(f"{name}-{number}", instance, SeededRng(f"{self.a.seed}/{name}/{number}"), limit=2)
            for _ in range(int(3 * self.rng.random())):
                engine.add_stranger()
            engines.append(engine)
        return engines

    async def run(self) -> None:
        """Tell the whole story."""
        await self.begin()
        clients = [self.session_life(f"s{n}") for n in range(1 + int(3 * self.rng.random()))]
        clients += [self.batch_life(f"b{n}") for n in range(int(3 * self.rng.random()))]
        async with self._group as group:
            self._calm = False
            watch = group.create_task(self.watch_drivers())
            lives = [group.create_task(client) for client in clients]
            await self.storm()
            await asyncio.sleep(STORM_S)
            await self.calm()
            await asyncio.wait(lives)
            await self.check()
            watch.cancel()


def crash_story(seed: int) -> CrashStory:
    """Run the story of a seed, and return it with what happened."""
    stories: list[CrashStory] = []

    async def scenario(a: Archipelago) -> CrashStory:
        stories.append(CrashStory(a))
        await stories[-1].run()
        return stories[-1]

    with effects_told(stories):
        return simulate(seed, scenario, record=False)
