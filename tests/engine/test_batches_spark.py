"""Batches of a real engine with a real Spark."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from island.errors import BadInput, NotFound
from island.livy.client import LivyClient
from island.livy.messages import BatchRequest, BatchView, SessionRequest
from tests.servers.engine import Opened, RunningEngine, alive

pytestmark = pytest.mark.spark


async def _finished(client: LivyClient, batch: BatchView) -> tuple[str, str]:
    """State and log of a batch once it has ended."""
    async with asyncio.timeout(300):
        while (view := await client.batch(batch.id)).state in ("starting", "running"):
            await asyncio.sleep(0.05)
    return view.state, "\n".join((await client.batch_log(batch.id, size=-1)).log)


async def test_a_batch_has_its_settings_arguments_and_inputs(client: LivyClient, session: Opened, work: Path) -> None:
    await session.text(f"spark.range(5).coalesce(1).write.parquet('{work}/batch_input')")
    (work / "helper.py").write_text("WORD = 'beside the script'\n")
    (work / "extra.py").write_text("WORD = 'from pyFiles'\n")
    script = work / "script.py"
    script.write_text(
        "import sys, helper, extra\n"
        "from pyspark.sql import SparkSession\n"
        "spark = SparkSession.builder.appName('mine').getOrCreate()\n"
        "def double(n):\n    return n * 2\n"
        "print('ARGS', sys.argv[1:], helper.WORD, extra.WORD, __name__)\n"
        "print('ROWS', spark.table('me__in').count(), spark.conf.get('spark.island.path.me__in'))\n"
        "print('WORK', spark.sparkContext.parallelize([1, 2]).map(double).collect())\n"
        "spark.stop()\n"
        "print('AGAIN', SparkSession.builder.getOrCreate().table('alias').count())\n"
    )
    path = f"{work}/batch_input"
    conf = {"spark.island.path.me__in": path, "spark.island.view.alias": "me__in"}
    batch = await client.create_batch(
        BatchRequest(
            file=str(script), args=["one", "2", "tři"], conf=conf, py_files=[str(work / "extra.py")], name="full"
        )
    )
    state, log = await _finished(client, batch)
    assert state == "success", log
    assert "ARGS ['one', '2', 'tři'] beside the script from pyFiles __main__" in log
    assert f"ROWS 5 {path}" in log
    assert "WORK [2, 4]" in log
    assert "AGAIN 5" in log
    assert (await client.batch("full")).id == batch.id
    assert not list(work.glob("**/metastore_db")) and not list(work.glob("**/spark-warehouse"))


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("import sys; print('going down'); sys.exit(3)", 3, "going down"),
        ("raise ValueError('boom')", 1, "ValueError: boom"),
        ("import os; os.kill(os.getpid(), 9)", 137, "killed by signal 9"),
        ("for i in", 1, "SyntaxError"),
    ],
)
async def test_a_failing_batch_is_dead(client: LivyClient, work: Path, text: str, code: int, words: str) -> None:
    (work / "bad.py").write_text(text)
    state, log = await _finished(client, await client.create_batch(BatchRequest(file=str(work / "bad.py"))))
    assert state == "dead"
    assert words in log
    assert f"code {code}" in log or code == 137


async def test_deleting_a_batch_ends_every_process_of_it(client: LivyClient, engine: RunningEngine, work: Path) -> None:
    (work / "slow.py").write_text(
        "import subprocess\nsubprocess.Popen(['sleep', '1000'])\nprint('up')\nwhile True: pass\n"
    )
    before = set(engine.below())
    batch = await client.create_batch(BatchRequest(file=str(work / "slow.py")))
    async with asyncio.timeout(120):
        while "up" not in (await client.batch(batch.id)).log:
            await asyncio.sleep(0.05)
    assert (await client.batch(batch.id)).state == "running"
    started = sorted(set(engine.below()) - before)
    assert len(started) >= 4  # supervisor, Python, Java, sleep
    await client.delete_batch(batch.id)
    assert alive(started) == []
    with pytest.raises(NotFound):
        await client.batch(batch.id)


async def test_files_elsewhere_are_refused(client: LivyClient, work: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.py").write_text("1")
    (work / "link.py").symlink_to(tmp_path / "secret.py")
    for file in ("/etc/passwd", str(tmp_path / "secret.py"), str(work / "link.py"), f"{work}/../home/engine.db"):
        with pytest.raises(BadInput, match="cannot be added to user sessions"):
            await client.create_batch(BatchRequest(file=file))
    with pytest.raises(BadInput, match="is not absolute"):
        await client.create_batch(BatchRequest(file="a.py"))
    with pytest.raises(BadInput, match="not a local path"):
        await client.create_batch(BatchRequest(file="hdfs:///a.py"))
    with pytest.raises(BadInput, match="Python files"):
        await client.create_batch(BatchRequest(file=str(work / "a.jar")))
    with pytest.raises(BadInput, match="cannot be added"):
        await client.create_session(SessionRequest(kind="pyspark", files=["/etc/passwd"]))
