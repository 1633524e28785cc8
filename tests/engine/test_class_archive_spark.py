"""Real sessions with a class-data archive, and with one that is damaged."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from island.engine.class_archive import ClassArchive, archive_folder
from island.engine.jvm import find_java
from island.engine.spark import spark_home
from island.livy.client import LivyClient
from island.livy.messages import SessionRequest
from tests.missing import missing
from tests.servers.engine import Opened, RunningEngine, need_spark

pytestmark = pytest.mark.spark


@pytest.mark.parametrize("damaged", [False, True], ids=["whole", "damaged"])
async def test_a_session_starts_with_the_archive_and_with_a_damaged_one(tmp_path: Path, damaged: bool) -> None:
    need_spark()
    made = ClassArchive(archive_folder(os.environ, tmp_path), find_java(os.environ), Path(spark_home()))
    path = made.find()
    if path is None:
        missing("there is no class-data archive: run `island engine --prepare`")
    used = tmp_path / "archives"
    used.mkdir()
    shutil.copy(path, used)
    if damaged:
        # As after a fault of the disk: the size is right.
        with (used / path.name).open("r+b") as file:
            file.write(bytes(4096))
    engine = RunningEngine(tmp_path / "home", f"--class-archives={used}")
    try:
        async with LivyClient(engine.url, engine.token) as client:
            view = await client.create_session(SessionRequest(kind="pyspark"))
            session = Opened(client, (await client.wait_session(view.id)).id)
            assert await session.text("spark.range(7).count()") == "7"
            assert any(str(used) in Path(f"/proc/{pid}/maps").read_text() for pid in engine.below()) is not damaged
            assert "cds" not in "\n".join((await client.session_log(view.id)).log)
    finally:
        engine.close()
