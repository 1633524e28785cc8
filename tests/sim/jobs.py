"""An archipelago in virtual time whose islands run jobs: real services with a simulated engine.

The engine replaces Livy in tests that need faults between any two steps. Other tests run code
with real Spark.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from island.catalog.messages import DatasetRecord, DatasetView, ResolvedDataset
from island.catalog.ports import LocalInput, Progress
from island.config import parse
from island.errors import EngineFailed, NotFound, Unreachable
from island.jobs.core import EMBEDDED_LANGUAGES, STOCK_LANGUAGES
from island.jobs.dependencies import JobsDependencies
from island.jobs.engines.engines import Engines
from island.jobs.engines.port import EngineRefused, RemoteJob, RemoteRef, lost
from island.jobs.home.store import JobRow, StatementRow
from island.jobs.service import Jobs
from island.kernel.ids import DatasetName, IslandId
from island.kernel.loops import Tasks
from island.kernel.ports import SeededRng
from island.livy import requests
from island.livy.client import ANSWERED
from island.livy.messages import BatchRequest, SessionRequest
from island.livy.rest import LivyRefusal
from island.trust.users import Principal
from tests.sim.archipelago import Archipelago, SimIsland

T = TypeVar("T")

USER = Principal("user", "user")
ADMINISTRATOR = Principal("administrator", "administrator")

OPEN = {"accept_from": ["members"], "foreign_code": "any", "same_user": True}


@dataclass
class PlayedStatement:
    code: str
    language: str
    posted: float
    cancelled: float | None = None


@dataclass
class PlayedSession:
    id: int
    name: str
    kind: str
    body: dict[str, Any]
    created: float
    ended: float | None = None
    statements: list[PlayedStatement] = field(default_factory=list)


class PlayedEngine:
    """Livy's behaviour in virtual time: a session is idle after a second, a statement ends after `took` seconds.

    It is as strict as Livy: bodies are parsed, the file of a batch must be there, names are unique until their session
    or batch is deleted, a stock Livy takes no statement before the session is idle, and a restart begins its ids at 0.
    """

    def __init__(self, instance: str = "one") -> None:
        self.name, self.url, self.version = "engine", "", "0.9.0-incubating"
        self.now = instance
        """The instance id; "" for a stock Livy."""
        self.folder: Path | None = None
        """For the files of batches; set when the engine becomes that of an island."""
        self.capacity = 4
        self.up = True
        self.jobs: dict[tuple[str, int], PlayedSession] = {}
        self.ran: list[str] = []
        """The code of every statement that was started."""
        self.created: list[str] = []
        self.seen = instance
        self.took = 0.3
        self.outputs: dict[str, dict[str, Any]] = {}
        self.fault: Callable[[str, str], Awaitable[None]] | None = None
        """Called with the operation and "before" or "after", if set."""
        self._next = {"session": 0, "batch": 0}

    def start_anew(self, instance: str) -> None:
        """Replace the engine by a new instance without sessions and batches."""
        self.now, self.jobs = instance, {}
        if not instance:  # the embedded engine stores its next ids
            self._next = {"session": 0, "batch": 0}

    async def start(self, tasks: Tasks) -> None:
        """Do nothing: it tells what it shows without being asked."""

    async def stop(self) -> None:
        """Do nothing."""

    @property
    def problem(self) -> str:
        return "" if self.up else "connection refused"

    def kinds(self) -> tuple[str, ...]:
        return EMBEDDED_LANGUAGES if self.now else STOCK_LANGUAGES

    def free(self) -> int:
        return max(0, self.capacity - len(self.alive())) if self.up else 0

    def alive(self) -> list[PlayedSession]:
        return [job for job in self.jobs.values() if job.ended is None]

    async def _call(self, what: str, do: Callable[[], T]) -> T:
        if self.fault is not None:
            await self.fault(what, "before")
        await asyncio.sleep(0.005)
        if not self.up:
            raise EngineFailed("connection refused")
        try:
            result = do()
        finally:
            self.seen = self.now
        if self.fault is not None:
            await self.fault(what, "after")
        return result

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    def _job(self, ref: RemoteRef) -> PlayedSession:
        job = self.jobs.get((ref.kind, ref.id))
        if job is None or job.name != ref.name:
            raise lost(ref)
        return job

    def _state(self, job: PlayedSession) -> str:
        age = self._now() - job.created
        if job.kind == "batch":
            return "running" if age < 2 else "dead" if "bad" in str(job.body.get("args")) else "success"
        if job.ended is not None:
            return "dead"
        return "starting" if age < 1 else "idle"

    def _remote(self, job: PlayedSession) -> RemoteJob:
        return RemoteJob(job.id, self._state(job), job.name, log=["stdout: ", f"hello from {job.name}", "\nstderr: "])

    async def instance(self) -> str:
        return await self._call("instance", lambda: self.now)

    async def create(self, kind: str, body: Mapping[str, Any]) -> RemoteJob:
        def do() -> RemoteJob:
            self._check(kind, body)
            number = self._next[kind]
            self._next[kind] += 1
            job = self.jobs[kind, number] = PlayedSession(number, body["name"], kind, dict(body), self._now())
            self.created.append(job.name)
            return self._remote(job)

        return await self._call("create", do)

    def _check(self, kind: str, body: Mapping[str, Any]) -> None:
        """Refuse what Livy refuses. Raises `EngineRefused`."""
        raw = msgspec.json.encode(body)
        try:
            request = requests.session_request(raw) if kind == "session" else requests.batch_request(raw)
        except LivyRefusal as refusal:
            raise EngineRefused(refusal.message) from refusal
        if isinstance(request, BatchRequest) and not Path(request.file or "").is_file():
            raise EngineRefused(f"there is no file {request.file}")
        if not request.name or any((job.kind, job.name) == (kind, request.name) for job in self.jobs.values()):
            raise EngineRefused(f"Rejected, Reason: Duplicate session name: Some({request.name})")

    async def find(self, kind: str, name: str) -> RemoteJob | None:
        def do() -> RemoteJob | None:
            return next((self._remote(j) for j in self.jobs.values() if (j.kind, j.name) == (kind, name)), None)

        return await self._call("find", do)

    async def show(self, ref: RemoteRef) -> RemoteJob:
        return await self._call("show", lambda: self._remote(self._job(ref)))

    async def follow(self, ref: RemoteRef, known: RemoteJob | None) -> RemoteJob:
        while (found := await self.show(ref)) == known:
            await asyncio.sleep(0.5)
        return found

    async def log(self, ref: RemoteRef) -> list[str]:
        return await self._call("log", lambda: self._remote(self._job(ref)).log)

    async def post(self, ref: RemoteRef, code: str, language: str) -> int:
        def do() -> int:
            job = self._job(ref)
            if not self.now and self._state(job) != "idle":
                raise EngineFailed(f"Livy answered 500: Session is in state {self._state(job)}", code=ANSWERED)
            job.statements.append(PlayedStatement(code, language, self._now()))
            self.ran.append(code)
            return len(job.statements) - 1

        return await self._call("post", do)

    async def statement(self, ref: RemoteRef, number: int) -> dict[str, Any] | None:
        return await self._call("statement", lambda: self._statement(self._job(ref), number))

    def _statement(self, job: PlayedSession, number: int) -> dict[str, Any] | None:
        if number >= len(job.statements):
            return None
        played = job.statements[number]
        view = {"id": number, "code": played.code, "state": "running", "output": None, "progress": 0.5}
        if played.cancelled is not None:
            return {**view, "state": "cancelled", "progress": 1.0}
        if self._now() - played.posted < (60 if played.code.startswith("sleep") else self.took):
            return {**view, "started": 1}
        ok = {"status": "ok", "execution_count": number, "data": {"text/plain": f"did {played.code}"}}
        output = self.outputs.get(played.code, ok)
        return {**view, "state": "available", "output": output, "progress": 1.0, "started": 1, "completed": 2}

    async def follow_statement(
        self, ref: RemoteRef, number: int, known: Mapping[str, Any] | None
    ) -> dict[str, Any] | None:
        while True:
            found = await self.statement(ref, number)
            if found is None or known is None or found["state"] != known["state"]:
                return found
            await asyncio.sleep(0.1)

    async def cancel(self, ref: RemoteRef, number: int) -> None:
        def do() -> None:
            self._job(ref).statements[number].cancelled = self._now()

        await self._call("cancel", do)

    async def end(self, ref: RemoteRef) -> None:
        def do() -> None:
            job = self.jobs.get((ref.kind, ref.id))
            if job is not None and job.name == ref.name:
                job.ended = self._now()
                del self.jobs[ref.kind, ref.id]

        await self._call("end", do)

    async def complete(self, ref: RemoteRef, code: str, language: str, cursor: int) -> list[str]:
        return await self._call("complete", lambda: [code + "k"])

    async def place(self, name: str, file_name: str, data: bytes) -> str:
        assert self.folder is not None
        path = self.folder / name / file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return str(path)

    async def share(self, name: str, path: str) -> str:
        return path

    async def withdraw(self, name: str) -> None:
        assert self.folder is not None
        shutil.rmtree(self.folder / name, ignore_errors=True)


@dataclass
class Published:
    """One published dataset."""

    owner: IslandId
    owner_name: str
    name: str
    size: int
    holders: list[IslandId]


class World:
    """The islands of a test: the datasets that they share, and the jobs service, engine and config of each."""

    def __init__(self, archipelago: Archipelago) -> None:
        self.a = archipelago
        archipelago.services = self._build
        self.published: list[Published] = []
        self.engines: dict[str, PlayedEngine | None] = {}
        self.further_engines: dict[str, list[PlayedEngine]] = {}
        self.configs: dict[str, dict[str, Any]] = {}
        self.jobs: dict[str, Jobs] = {}
        self.materialised: list[tuple[str, str]] = []
        self.released: list[tuple[str, str]] = []
        self.broken: dict[str, str] = {}
        self.folder = archipelago._folder

    async def island(
        self, name: str, *, engine: PlayedEngine | None = None, jobs: dict[str, Any] | None = None, **livy: Any
    ) -> SimIsland:
        """Add an island, with an engine or without one."""
        self.engines[name], self.configs[name] = engine, {"jobs": jobs or {}, "livy": livy}
        return await self.a.add(name)

    async def _build(self, island: SimIsland) -> None:
        assert island.trust is not None and island.peers is not None
        config = parse({"island": {"name": island.name}, **self.configs[island.name]}, "test")
        first = self.engines[island.name]
        engines = [*([first] if first is not None else []), *self.further_engines.get(island.name, ())]
        for engine in engines:
            engine.folder, engine.capacity = self.folder / island.name / "jobs", config.livy.max_sessions
        rng = SeededRng(f"{self.a.seed}/jobs/{island.name}/{island.lives}")
        jobs = self.jobs[island.name] = Jobs(
            JobsDependencies(
                state=island.state,
                catalog=Datasets(self, island),
                inputs=Stored(self, island),
                membership=island.m,
                trust=island.trust,
                peers=island.peers,
                config=config,
                engines=Engines(engines),
                clock=self.a.clock(island),
                rng=rng,
                home=self.folder / island.name,
                workers=island.workers,
            )
        )
        await jobs.start(island.tasks)

    def publish(self, owner: SimIsland, name: str, size: int, *others: SimIsland) -> None:
        """Add a dataset of `owner`, with complete replicas at `others`."""
        self.published.append(Published(owner.id, owner.name, name, size, [owner.id, *(o.id for o in others)]))

    async def linked(self) -> None:
        """Wait until every island has a session with every other one and knows its name."""
        count = len(self.a.alive())
        await self.a.until(
            lambda: all(
                len(i.peers.up) == count - 1 and sum(bool(v.name) for v in i.m.views()) == count
                for i in self.a.alive()
                if i.peers is not None
            ),
            within=60,
        )

    # --- requests of a client -------------------------------------------------------------------

    async def open(self, home: SimIsland, *inputs: str, who: Principal = USER, **more: Any) -> JobRow:
        conf = {"spark.island.inputs": ",".join(inputs)} if inputs else {}
        request = SessionRequest(kind="pyspark", conf=conf, **more)
        return await self.jobs[home.name].open_session(who, request)

    async def settled(self, home: SimIsland, job: JobRow, within: float = 120) -> JobRow:
        return await self.jobs[home.name].settled(job, within)

    async def ended(self, home: SimIsland, job: JobRow) -> JobRow:
        """Wait until a job has ended."""
        for _ in range(2000):
            found = await self.jobs[home.name].named(ADMINISTRATOR, job.id)
            if not found.live:
                return found
            await asyncio.sleep(0.5)
        raise AssertionError(f"{job.id} does not end")

    async def run(self, home: SimIsland, job: JobRow, code: str, within: float = 120) -> StatementRow:
        jobs = self.jobs[home.name]
        statement = await jobs.post(job, code, None)
        return (await jobs.finished_statement(job, statement.number, within))[0]

    async def statements(self, home: SimIsland, job: JobRow) -> list[StatementRow]:
        """All statements of a session."""
        jobs = self.jobs[home.name]
        now = await jobs.named(ADMINISTRATOR, job.id)
        return [each async for part in jobs.statement_parts(now, range(now.statements)) for each, _ in part]

    async def log(self, home: SimIsland, job: JobRow) -> str:
        return "\n".join(await self.jobs[home.name].log(job))


class Datasets:
    """The catalog of one island. Every island has all datasets."""

    def __init__(self, world: World, island: SimIsland) -> None:
        self._world, self._island = world, island

    async def resolve(self, name: DatasetName | str) -> ResolvedDataset:
        wanted = DatasetName.parse(name) if isinstance(name, str) else name
        for each in self._world.published:
            if wanted.owner in (each.owner, each.owner_name) and wanted.name == each.name:
                return _resolved(each)
        near = ", ".join(f"{p.owner_name}/{p.name}" for p in self._world.published)
        raise NotFound(f"no dataset {wanted.owner}/{wanted.name} is known", hint=f"The nearest names: {near}")

    async def datasets(self) -> list[DatasetView]:
        return [_view(each) for each in self._world.published]

    def holders(self, owner: IslandId, name: str, snapshot: str) -> list[IslandId]:
        return next(p.holders for p in self._world.published if (p.owner, p.name) == (owner, name))


class Stored:
    """`Inputs` of one island."""

    def __init__(self, world: World, island: SimIsland) -> None:
        self._world, self._island = world, island

    async def missing(self, resolved: ResolvedDataset) -> int:
        holders = Datasets(self._world, self._island).holders(resolved.owner, resolved.name, resolved.snapshot)
        return 0 if self._island.id in holders else resolved.record.size

    async def materialise(self, resolved: ResolvedDataset, progress: Progress) -> LocalInput:
        if problem := self._world.broken.get(resolved.name):
            raise Unreachable(problem)
        missing = await self.missing(resolved)
        if missing:
            progress(missing // 2, missing, "fetching")
            await asyncio.sleep(2.5)
            progress(missing * 3 // 4, missing, "fetching")
            self._world.materialised.append((self._island.name, resolved.name))
            each = next(p for p in self._world.published if (p.owner, p.name) == (resolved.owner, resolved.name))
            each.holders.append(self._island.id)
        path = f"/data/{self._island.name}/{resolved.name}"
        return LocalInput("", resolved.owner, resolved.name, resolved.snapshot, path, resolved.record.size, missing)

    async def release(self, owner: IslandId, name: str, snapshot: str) -> None:
        assert snapshot == "ab" * 32
        self._world.released.append((self._island.name, name))


def _record(each: Published) -> DatasetRecord:
    return DatasetRecord(
        format="parquet",
        rows=1,
        size=each.size,
        files=2,
        snapshot="ab" * 32,
        created=0.0,
        updated=0.0,
        card="cd" * 32,
    )


def _resolved(each: Published) -> ResolvedDataset:
    return ResolvedDataset(each.owner, each.owner_name, each.name, "ab" * 32, _record(each))


def _view(each: Published) -> DatasetView:
    record = _record(each)
    return DatasetView(
        each.owner, each.owner_name, each.name, "", "parquet", 1, each.size, 2, record.snapshot, 0.0, 0.0, record
    )


def folder_of(world: World, island: SimIsland) -> Path:
    """The home folder of an island."""
    return world.folder / island.name
