"""The embedded engine: how the daemon starts it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from island.config import Config, IslandSection
from island.jobs.embedded_engine import EmbeddedEngine
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
