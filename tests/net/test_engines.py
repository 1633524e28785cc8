"""Two Livy servers beside one island: what the status, the readiness, the metrics and the list of servers tell."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from island.daemon import Daemon
from island.jobs.engines import livy_engine, poller
from island.jobs.home.local_files import BatchFile
from island.livy.messages import BatchRequest, SessionRequest
from island.trust.users import Principal
from tests.standins.livy import PlayedLivy
from tests.standins.member import victim


async def _get(daemon: Daemon, path: str) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {daemon.home.token.read_text().strip()}"}
    async with (
        aiohttp.ClientSession(headers=headers) as client,
        client.get(daemon.server.url + path, headers=headers) as answer,
    ):
        return answer.status, await (answer.text() if path == "/metrics" else answer.json())


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.02)  # the engines are asked in the background


async def test_two_livys_beside_one_island(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller, "HEALTH_S", 0.1)
    monkeypatch.setattr(livy_engine, "RETRY_S", 0.2)
    one, two = PlayedLivy(), PlayedLivy("0.7.1", kinds=())
    two.stranger("hers")
    async with TestServer(one.app()) as first, TestServer(two.app()) as second, asyncio.timeout(60):
        urls = [f"http://127.0.0.1:{server.port}" for server in (first, second)]
        sections: dict[str, Any] = {
            "engine": [
                {"name": "near", "url": urls[0], "max_sessions": 2},
                {"name": "far", "url": urls[1], "user": "isl", "password_file": "pw"},
            ]
        }
        async with victim(tmp_path, sections) as daemon:
            near, far = daemon.engines.all()
            await _until(lambda: bool(near.version))
            assert "far" in " ".join(daemon.engines.problems()), "its password file is missing"
            assert (await _get(daemon, "/readyz"))[1]["status"] == "degraded"
            password = daemon.home.path / "pw"
            password.touch(0o600)
            password.write_text("secret\n")
            await _until(lambda: bool(far.version) and not far.problem)
            assert (await _get(daemon, "/readyz"))[1]["status"] == "ready"
            status = (await _get(daemon, "/api/v1/island"))[1]
            assert [(row["name"], row["url"], row["kinds"], row["free"]) for row in status["engines"]] == [
                ("near", urls[0], ["batch", "pyspark", "shared", "spark", "sparkr", "sql"], 2),
                ("far", urls[1], ["batch"], 4),
            ]
            servers = (await _get(daemon, "/api/v1/servers"))[1]
            assert {row["id"]: row["url"] for row in servers} == {
                "livy": daemon.server.url,
                "livy-near": urls[0],
                "livy-far": urls[1],
            }
            await _down_and_up(daemon, two)
    assert [job.name for job in two.living()] == ["hers"], "what belongs to another client is not touched"


async def _down_and_up(daemon: Daemon, livy: PlayedLivy) -> None:
    far = daemon.engines.get("far")
    assert far is not None

    async def down(_: web.Request) -> web.StreamResponse:
        return web.Response(status=503)

    livy.fault = down
    await _until(lambda: bool(far.problem))
    status, ready = await _get(daemon, "/readyz")
    assert (status, ready["status"]) == (200, "degraded"), "the island serves, with the other engine"
    problems = (await _get(daemon, "/api/v1/island"))[1]["problems"]
    assert any("engine 'far'" in each and "503" in each for each in problems)
    metrics = (await _get(daemon, "/metrics"))[1]
    assert 'island_engine_running{engine="far"} 0.0' in metrics
    assert 'island_engine_running{engine="near"} 1.0' in metrics
    assert 'island_engine_free_places{engine="far"} 0.0' in metrics
    livy.fault = None
    await _until(lambda: not far.problem)
    assert (await _get(daemon, "/readyz"))[1]["status"] == "ready"


async def test_jobs_at_two_livys_with_other_clients_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session runs where its kind is, and a restarted Livy that gives its id to a stranger ends nothing of hers."""
    monkeypatch.setattr(poller, "HEALTH_S", 0.1)
    monkeypatch.setattr(poller, "LATER_S", 0.1)
    batches = tmp_path / "victim" / "jobs"
    one, two = PlayedLivy("0.7.1", kinds=(), files=batches), PlayedLivy(kinds=("spark", "shared", "sql"))
    hers = two.stranger("hers")
    async with TestServer(one.app()) as first, TestServer(two.app()) as second, asyncio.timeout(120):
        urls = [f"http://127.0.0.1:{server.port}" for server in (first, second)]
        sections = {"engine": [{"name": "batches", "url": urls[0]}, {"name": "scala", "url": urls[1]}]}
        async with victim(tmp_path, sections) as daemon:
            await _until(lambda: all(engine.version for engine in daemon.engines.all()))
            jobs, user = daemon.jobs, Principal("user", "user")
            batch = await jobs.submit_batch(user, BatchRequest(file="x.py"), file=BatchFile("x.py", b"print(1)"))
            job = await jobs.open_session(user, SessionRequest(kind="sql"))
            job = await jobs.settled(job, 60)
            assert job.state == "idle", job.reason
            assert (await jobs.settled(batch, 60)).state == "success"
            statement = await jobs.post(job, "1+1", None)
            assert '"2"' in (await jobs.finished_statement(job, statement.number, 30))[0].output
            assert two.posted == ["1+1"] and one.posted == []
            ours = next(each for each in two.living() if each is not hers)
            two.restart()
            strangers = [two.stranger(), two.stranger()]
            assert ours.id in {stranger.id for stranger in strangers}
            late = await jobs.post(job, "secret", None)
            while (job := await jobs.named(user, job.id)).live:
                await asyncio.sleep(0.05)
            assert job.state == "dead"
            assert (await jobs.statement(job, late.number))[0].ended
            assert two.posted == ["1+1"], "no code of the user runs in the session of a stranger"
            assert two.living() == strangers
