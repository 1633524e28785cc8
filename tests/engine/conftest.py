"""A running engine that the tests of this folder share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from island.livy.client import LivyClient
from island.livy.messages import SessionRequest
from tests.servers.engine import Opened, RunningEngine, need_spark


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    """An engine that allows files of its folder `work`."""
    need_spark()
    folder = tmp_path_factory.mktemp("engine")
    (folder / "work").mkdir()
    running = RunningEngine(folder / "home", "--allow-files", str(folder / "work"), "--max-output", "300000")
    yield running
    assert running.close() == 0, running.errors.read_text()


@pytest.fixture(scope="session")
def work(engine: RunningEngine) -> Path:
    """The folder that the shared engine allows."""
    return engine.directory.parent / "work"


@pytest.fixture
async def client(engine: RunningEngine) -> AsyncIterator[LivyClient]:
    """A client of the shared engine. Sessions that the test has opened and left are deleted after it."""
    async with LivyClient(engine.url, engine.token) as client:
        before = {view.id for view in (await client.sessions()).sessions}
        yield client
        left = {view.id for view in (await client.sessions()).sessions} - before
        await asyncio.gather(*(client.delete_session(number) for number in left))


@pytest.fixture(scope="session")
def shared_session(engine: RunningEngine) -> int:
    """A session that tests share. They must leave it usable."""

    async def open_one() -> int:
        async with LivyClient(engine.url, engine.token) as client:
            view = await client.create_session(SessionRequest(kind="pyspark"))
            return (await client.wait_session(view.id)).id

    return asyncio.run(open_one())


@pytest.fixture
async def session(client: LivyClient, shared_session: int) -> Opened:
    """The shared session."""
    return Opened(client, shared_session)
