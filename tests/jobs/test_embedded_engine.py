"""The embedded engine: how the daemon starts it."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from island.config import Config, IslandSection
from island.errors import EngineFailed
from island.jobs.engines.embedded_engine import EmbeddedEngine
from island.kernel.ports import SeededRng
from tests.islands.subscribing import until
from tests.servers.engine import need_spark

pytestmark = pytest.mark.spark


async def test_the_engine_imports_nothing_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_spark()
    work = tmp_path / "work"
    work.mkdir()
    for name in ("queue", "argparse", "island"):
        (work / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit(1)\n")
    monkeypatch.chdir(work)
    monkeypatch.setenv("PYTHONPATH", f"{os.pathsep}{os.environ.get('PYTHONPATH', '')}")  # an empty entry is this folder
    engine = EmbeddedEngine(tmp_path, Config(IslandSection(name="alpha")), SeededRng(1))
    run = asyncio.create_task(engine._run_once())
    try:
        await until(lambda: engine.running or run.done(), 60)
        assert engine.running and not (tmp_path / "ran").exists()
    finally:
        await engine.stop()
        run.cancel()
        await asyncio.wait([run])


@pytest.mark.slow
async def test_the_engine_is_restarted_although_its_port_was_taken(tmp_path: Path) -> None:
    need_spark()
    engine = EmbeddedEngine(tmp_path, Config(IslandSection(name="alpha")), SeededRng(1))
    run = asyncio.create_task(engine._run_once())
    try:
        await until(lambda: engine.running or run.done(), 60)
        assert engine._process is not None
        engine._process.kill()
        with pytest.raises(EngineFailed, match="exited with status -9"):
            await run
        with socket.create_server(("127.0.0.1", engine._port)) as other:
            port = other.getsockname()[1]
            with pytest.raises(EngineFailed, match=f"did not start: port {port} .* cannot be used") as caught:
                await engine._run_once()
            assert "Java" not in str(caught.value) and "cannot be used" in engine.problem
            run = asyncio.create_task(engine._run_once())
            await until(lambda: engine.running or run.done(), 60)
            assert engine.running and engine._port != port
    finally:
        await engine.stop()
        run.cancel()
        await asyncio.wait([run])
