"""An engine over a real Apache Livy 0.7.1, which runs batches."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from island.cli.demo.demo_island import free_ports
from island.jobs.engines.livy_engine import LivyEngine
from island.jobs.engines.port import EngineFull, EngineLost, EngineRefused, RemoteJob, RemoteRef
from island.livy.client import LivyClient
from island.livy.messages import BatchRequest
from tests.jobs.test_livy_engine import engine_at
from tests.servers.livy_server import LivyServer, livy_server

pytestmark = [pytest.mark.spark, pytest.mark.slow]

NAME = "isl-01a3185a-93cd-7518-aa83-05aa8c024f11-"


@pytest.fixture(scope="module")
def livy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LivyServer]:
    folder = tmp_path_factory.mktemp("livy")
    with livy_server(folder, free_ports(1)[0], "livy.server.session.max-creation = 2") as found:
        yield found


def ref(job: RemoteJob) -> RemoteRef:
    return RemoteRef("batch", job.id, job.name)


async def test_batches_at_a_real_livy(livy: LivyServer, tmp_path: Path) -> None:
    """One server for all checks: each of its batches starts a JVM."""
    async with engine_at(livy.url, livy.work / "jobs", kinds=()) as site, LivyClient(livy.url) as hers:
        while not site.version:
            await asyncio.sleep(0.1)
        assert site.version == "0.7.1-incubating"
        assert site.kinds() == ("batch",) and "REPL" in site.lacks["pyspark"]
        assert (await hers.sessions()).total == 0, "the probe has started nothing"
        with pytest.raises(EngineRefused, match="REPL"):
            await site.create("session", {"kind": "pyspark", "name": NAME + "s"})

        good = await site.place(NAME + "1", "good.py", b"print('GOOD', 6 * 7)")
        long = await site.place(NAME + "2", "long.py", b"import time; time.sleep(600)")
        first = await site.create("batch", {"file": good, "name": NAME + "1"})
        with pytest.raises(EngineRefused, match="Duplicate session name"):
            await site.create("batch", {"file": good, "name": NAME + "1"})
        with pytest.raises(EngineRefused, match="cannot be added"):
            await site.create("batch", {"file": str(tmp_path / "x.py"), "name": NAME + "x"})
        seen = first
        while seen.state not in ("success", "dead"):
            seen = await site.follow(ref(first), seen)
        assert seen.state == "success" and "GOOD 42" in await site.log(ref(first))
        await site.end(ref(first))
        assert await site.find("batch", NAME + "1") is None

        await _full_and_restarted(livy, site=site, hers=hers, file=long)


async def _full_and_restarted(livy: LivyServer, *, site: LivyEngine, hers: LivyClient, file: str) -> None:
    ours = await site.create("batch", {"file": file, "name": NAME + "2"})
    other = await site.create("batch", {"file": file, "name": NAME + "3"})
    with pytest.raises(EngineFull):
        await site.create("batch", {"file": file, "name": NAME + "4"})
    assert site.free() == 0
    await site.end(ref(other))
    # In a thread, so that the clients notice meanwhile that their connections were closed.
    await asyncio.to_thread(livy.kill)
    await asyncio.to_thread(livy.start)
    stranger = await hers.create_batch(BatchRequest(file=file, name="hers"))
    assert stranger.id <= ours.id, "ids begin at 0 again"
    while stranger.id < ours.id:
        await hers.delete_batch(stranger.id)
        stranger = await hers.create_batch(BatchRequest(file=file, name=f"hers-{stranger.id}"))
    assert stranger.id == ours.id
    for ask in (site.show(ref(ours)), site.log(ref(ours))):
        with pytest.raises(EngineLost):
            await ask
    await site.end(ref(ours))
    assert (await hers.batch(stranger.id)).state in ("starting", "running")
