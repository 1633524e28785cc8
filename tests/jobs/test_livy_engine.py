"""An engine over a Livy server: names, pages, places, kinds, and what happens when Livy restarts or is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from island.errors import EngineFailed
from island.jobs.engines import kinds as kinds_of_livy
from island.jobs.engines import livy_engine, poller
from island.jobs.engines.files import OwnFiles
from island.jobs.engines.livy_engine import LivyEngine
from island.jobs.engines.port import EngineFull, EngineLost, EngineRefused, RemoteJob, RemoteRef
from island.kernel.loops import Tasks
from island.kernel.ports import SeededRng
from island.kernel.work import ThreadWorkers
from island.livy.client import EngineUncertain, LivyClient
from island.livy.messages import SessionRequest
from tests.islands.fixed_client import FixedClient
from tests.standins.livy import LivyJob, LivyStatement, PlayedLivy

NAME = "isl-01a3185a-93cd-7518-aa83-05aa8c024f11-1"
SESSION = {"kind": "pyspark", "name": NAME}


class _Over(Exception):
    """Ends the tasks of an engine."""


@asynccontextmanager
async def engine_at(
    url: str, jobs: Path, *, capacity: int = 4, kinds: tuple[str, ...] = ("pyspark",), watched: bool = True
) -> AsyncIterator[LivyEngine]:
    """An engine over the Livy at a URL, which is listed if `watched`. The files of batches are below `jobs`."""
    workers = ThreadWorkers()
    async with LivyClient(url, timeout_s=30) as client:
        found = LivyEngine(
            FixedClient(client),
            OwnFiles(jobs, workers),
            rng=SeededRng(1),
            name="site",
            url=url,
            capacity=capacity,
            kinds=kinds,
        )
        try:
            async with asyncio.timeout(300), asyncio.TaskGroup() as group:
                if watched:
                    await found.start(Tasks(group))
                yield found
                raise _Over
        except* _Over:
            pass
        finally:
            workers.close()


@asynccontextmanager
async def engine(
    livy: PlayedLivy, tmp_path: Path, *, capacity: int = 4, kinds: tuple[str, ...] = ("pyspark",), watched: bool = True
) -> AsyncIterator[LivyEngine]:
    """An engine over the Livy `livy`."""
    async with TestServer(livy.app()) as server:
        url = f"http://127.0.0.1:{server.port}"
        async with engine_at(url, tmp_path / "jobs", capacity=capacity, kinds=kinds, watched=watched) as found:
            yield found


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """List more often than in earnest."""
    monkeypatch.setattr(poller, "LATER_S", 0.05)
    monkeypatch.setattr(poller, "HEALTH_S", 0.05)


def ref(job: RemoteJob, kind: str = "session") -> RemoteRef:
    return RemoteRef(kind, job.id, job.name)


async def test_a_stranger_who_got_our_id_after_a_restart_is_never_touched(tmp_path: Path) -> None:
    livy = PlayedLivy()
    async with engine(livy, tmp_path, watched=False) as site:
        ours = await site.create("session", SESSION)
        assert await site.post(ref(ours), "1+1", "pyspark") == 0
        livy.restart()
        stranger = livy.stranger("hers")
        stranger.statements += [LivyStatement(number, "stay") for number in range(2)]
        assert stranger.id == ours.id
        for ask in (
            site.show(ref(ours)),
            site.follow(ref(ours), None),
            site.log(ref(ours)),
            site.post(ref(ours), "import os", "pyspark"),
            site.statement(ref(ours), 0),
            site.follow_statement(ref(ours), 0, None),
            site.cancel(ref(ours), 1),
            site.complete(ref(ours), "o", "pyspark", 1),
        ):
            with pytest.raises(EngineLost):
                await ask
        await site.end(ref(ours))
        assert livy.living() == [stranger] and livy.posted == ["1+1"]
        assert not any(statement.cancelled for statement in stranger.statements)


async def test_a_batch_is_known_by_its_name_as_well(tmp_path: Path) -> None:
    livy = PlayedLivy(files=tmp_path)
    livy.starting = True
    async with engine(livy, tmp_path, watched=False) as site:
        file = await site.place(NAME, "x.py", b"print(1)")
        ours = await site.create("batch", {"file": file, "name": NAME})
        livy.restart()
        stranger = livy.stranger("hers", "batch")
        assert stranger.id == ours.id
        with pytest.raises(EngineLost):
            await site.show(ref(ours, "batch"))
        await site.end(ref(ours, "batch"))
        assert livy.living() == [stranger]
        assert await site.find("batch", NAME) is None


async def test_a_name_that_came_back_with_another_id_is_lost(tmp_path: Path) -> None:
    livy = PlayedLivy()
    async with engine(livy, tmp_path, watched=False) as site:
        ours = await site.create("session", SESSION)
        livy.restart()
        livy.stranger("hers")
        again = livy.stranger(NAME)
        assert again.id != ours.id
        with pytest.raises(EngineLost, match="instead of"):
            await site.show(ref(ours))


@pytest.mark.parametrize("version", ["0.9.0", "0.7.1"])
async def test_a_full_engine_is_told_apart_from_one_that_refuses(tmp_path: Path, version: str) -> None:
    livy = PlayedLivy(version, places=1)
    async with engine(livy, tmp_path) as site:
        first = await site.create("session", SESSION)
        assert site.free() == 3
        with pytest.raises(EngineFull) as full:
            await site.create("session", {**SESSION, "name": NAME + "0"})
        assert full.value.code == "engine_full" and site.free() == 0
        await site.end(ref(first))
        assert site.free() == 4
        for body in ({"kind": "pyspark", "jars": ["/etc/passwd"]}, {"kind": "sparkr", "files": ["x"]}):
            with pytest.raises(EngineRefused) as refused:
                await site.create("session", body)
            assert refused.value.code == "engine_refused"


async def test_a_duplicate_name_is_refused_and_the_first_one_is_found(tmp_path: Path) -> None:
    async with engine(PlayedLivy(), tmp_path, watched=False) as site:
        first = await site.create("session", SESSION)
        with pytest.raises(EngineRefused, match="Duplicate session name"):
            await site.create("session", SESSION)
        found = await site.find("session", NAME)
        assert found is not None and found.id == first.id


async def test_a_lost_answer_is_uncertain_and_the_session_is_found(tmp_path: Path) -> None:
    livy = PlayedLivy()
    livy.lose = lambda request: request.method == "POST"
    async with engine(livy, tmp_path, watched=False) as site:
        with pytest.raises(EngineUncertain):
            await site.create("session", SESSION)
        assert (await site.find("session", NAME)) is not None


@pytest.mark.parametrize("status", [500, 503])
async def test_a_failing_delete_and_cancel_are_errors_and_not_ends(tmp_path: Path, status: int) -> None:
    livy = PlayedLivy()

    async def fail(request: web.Request) -> web.StreamResponse | None:
        broken = request.method == "DELETE" or request.path.endswith("/cancel")
        return web.Response(status=status) if broken else None

    async with engine(livy, tmp_path, watched=False) as site:
        ours = await site.create("session", SESSION)
        number = await site.post(ref(ours), "stay", "pyspark")
        livy.fault = fail
        for ask in (site.cancel(ref(ours), number), site.end(ref(ours))):
            with pytest.raises(EngineFailed) as failed:
                await ask
            assert not isinstance(failed.value, EngineLost)
        livy.fault = None
        await site.cancel(ref(ours), number)
        await site.end(ref(ours))
        assert livy.living() == []


# --- the poller ------------------------------------------------------------------------------------


async def test_one_listing_serves_all_followers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(livy_engine, "PAGE", 10)  # 35 sessions are four pages
    livy = PlayedLivy()
    async with engine(livy, tmp_path) as site:
        for _ in range(3):
            livy.stranger()
        opened = [await site.create("session", {**SESSION, "name": f"isl-{n}"}) for n in range(32)]
        known = [await site.show(ref(job)) for job in opened]
        livy.requests.clear()
        follows = [asyncio.ensure_future(site.follow(ref(job), job)) for job in known]
        await asyncio.sleep(0)
        livy.named("isl-31").state = "busy"
        changed = await follows[31]
        assert changed.state == "busy"
        assert [follow.done() for follow in follows[:31]] == [False] * 31
        assert not any("/sessions/isl-" in line for line in livy.requests), "no request for a single session"
        assert len([line for line in livy.requests if line.startswith("GET /sessions?")]) % 4 == 0
        del livy.jobs["session", livy.named("isl-7").id]
        with pytest.raises(EngineLost):
            await follows[7]
        for follow in follows:
            follow.cancel()


async def test_followers_are_told_when_livy_does_not_answer(tmp_path: Path) -> None:
    livy = PlayedLivy()

    async def down(_: web.Request) -> web.StreamResponse:
        return web.Response(status=503)

    async with engine(livy, tmp_path) as site:
        ours = await site.show(ref(await site.create("session", SESSION)))
        follow = asyncio.ensure_future(site.follow(ref(ours), ours))
        livy.fault = down
        with pytest.raises(EngineFailed):
            await follow
        assert site.problem and site.free() == 0
        livy.fault = None
        livy.named(NAME).state = "dead"
        while site.problem:
            await asyncio.sleep(0.05)  # its next attempt depends on its own backoff
        assert (await site.follow(ref(ours), ours)).state == "dead"
        assert site.free() == 4


async def test_only_own_sessions_take_places(tmp_path: Path) -> None:
    livy = PlayedLivy()
    for _ in range(6):
        livy.stranger()
    async with engine(livy, tmp_path) as site:
        assert site.free() == 4
        ours = await site.show(ref(await site.create("session", SESSION)))
        assert site.free() == 3
        livy.named(NAME).state = "dead"
        await site.follow(ref(ours), ours)
        assert site.free() == 4


async def test_a_statement_is_followed_to_its_end(tmp_path: Path) -> None:
    livy = PlayedLivy()
    async with engine(livy, tmp_path) as site:
        ours = ref(await site.create("session", SESSION))
        number = await site.post(ours, "stay", "pyspark")
        running = await site.follow_statement(ours, number, None)
        assert running is not None and running["state"] == "running"
        follow = asyncio.ensure_future(site.follow_statement(ours, number, running))
        await site.cancel(ours, number)
        ended = await follow
        assert ended is not None and ended["state"] == "cancelled"
        assert await site.follow_statement(ours, 7, None) is None


# --- kinds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("livy", "kinds"),
    [
        (PlayedLivy(), ("batch", "pyspark", "shared", "spark", "sparkr", "sql")),
        (PlayedLivy("0.7.1", kinds=()), ("batch",)),
        (PlayedLivy(kinds=()), ("batch",)),
        (PlayedLivy(kinds=("pyspark", "shared", "spark", "sql")), ("batch", "pyspark", "shared", "spark", "sql")),
        (PlayedLivy(kinds=("shared", "spark", "sql")), ("batch", "shared", "spark", "sql")),
    ],
    ids=["all", "0.7.1 without REPL", "without REPL", "without R", "without Python"],
)
async def test_kinds_are_probed_and_nothing_is_started(
    tmp_path: Path, livy: PlayedLivy, kinds: tuple[str, ...]
) -> None:
    async with engine(livy, tmp_path, kinds=()) as site:
        assert site.kinds() == ()
        while not site.version:
            await asyncio.sleep(0.01)  # it is asked in the background
        assert site.kinds() == kinds
        assert livy.jobs == {}


async def test_the_session_of_a_probe_is_deleted_where_livy_accepts_any_name(tmp_path: Path) -> None:
    livy = PlayedLivy("0.7.1", numbers_are_names=True)
    async with engine(livy, tmp_path, kinds=()) as site:
        while not site.version:
            await asyncio.sleep(0.01)
        assert site.kinds() == ("batch", "pyspark", "shared", "spark", "sparkr", "sql")
        assert livy.jobs == {}
        assert len([line for line in livy.requests if line.startswith("POST")]) == 1


async def test_the_session_of_another_client_that_got_the_id_of_a_probe_is_kept(tmp_path: Path) -> None:
    livy = PlayedLivy("0.7.1", numbers_are_names=True)

    async def restart(request: web.Request) -> None:
        """Livy is restarted after the probe has begun its session, and the first id is given to another client."""
        if any(job.what == "session" for job in livy.jobs.values()) and not strangers:
            livy.restart()
            strangers.append(livy.stranger("hers"))

    strangers: list[LivyJob] = []
    livy.fault = restart
    async with engine(livy, tmp_path, kinds=()) as site:
        while not site.version:
            await asyncio.sleep(0.01)
        assert livy.living() == strangers != []


async def test_two_probes_at_once_do_not_disturb_each_other() -> None:
    livy = PlayedLivy("0.7.1", numbers_are_names=True)
    async with TestServer(livy.app()) as server, LivyClient(str(server.make_url("/"))) as client:
        await client.create_session(SessionRequest(kind="spark", name="00000000"))
        found = await asyncio.gather(*(kinds_of_livy.probe(client, SeededRng(seed)) for seed in (1, 2)))
        assert found == [{}, {}]
        assert [job.name for job in livy.living()] == ["00000000"]


async def test_a_kind_that_is_refused_for_another_reason_is_not_lacking() -> None:
    livy = PlayedLivy()

    async def refuse(request: web.Request) -> web.Response | None:
        if request.method != "POST":
            return None
        return web.json_response({"msg": "Rejected, Reason: not before noon"}, status=400)

    livy.fault = refuse
    async with TestServer(livy.app()) as server, LivyClient(str(server.make_url("/"))) as client:
        assert await kinds_of_livy.probe(client, SeededRng(1)) == {}


async def test_configured_kinds_are_not_probed(tmp_path: Path) -> None:
    livy = PlayedLivy()
    async with engine(livy, tmp_path, kinds=("sql",)) as site:
        while not site.version:
            await asyncio.sleep(0.01)
        assert site.kinds() == ("batch", "sql")
        assert not any(line.startswith("POST") for line in livy.requests)
