"""Jobs on real Spark: an unmodified Livy client, islands over TLS, the preamble for a stock Livy, and lost engines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from island.jobs.engines.livy_engine import LivyEngine
from island.jobs.engines.port import RemoteJob
from island.jobs.home.local_files import BatchFile
from island.jobs.home.store import JobRow, StatementRow
from island.livy.client import LivyClient
from island.livy.messages import BatchRequest, SessionRequest
from island.trust.users import Principal
from tests.islands.user_port import Site, site
from tests.servers.engine import RunningEngine, need_spark

pytestmark = pytest.mark.spark

USER = Principal("user", "user")
OPEN = {"accept_from": ["members"], "foreign_code": "any", "same_user": True}


@asynccontextmanager
async def engine_for(home: Path) -> AsyncIterator[RunningEngine]:
    """A real engine that may read the files of batches in this home folder."""
    need_spark()
    home.mkdir(parents=True, exist_ok=True)
    running = await asyncio.to_thread(
        RunningEngine, home.parent / f"{home.name}-engine", "--allow-files", str(home / "jobs")
    )
    try:
        yield running
    finally:
        await asyncio.to_thread(running.close)


def write_galaxies(folder: Path) -> Path:
    folder.mkdir(parents=True)
    table = pa.table({"name": ["M87", "M31", "M33"], "velocity": [1284, -300, -179]})
    pq.write_table(table, folder / "galaxies.parquet")
    return folder / "galaxies.parquet"


async def run(place: Site, job: JobRow, code: str, kind: str | None = None) -> dict[str, Any]:
    posted = await place.jobs.post(job, code, kind)
    statement: StatementRow = (await place.jobs.finished_statement(job, posted.number, 180))[0]
    found: dict[str, Any] = json.loads(statement.output)
    return found


async def linked(*sites: Site) -> None:
    """Wait until every island has a session with the others and knows their names and datasets."""
    async with asyncio.timeout(120):
        while not all(len(s.peers.links()) == len(sites) - 1 for s in sites) or not all(
            view.name for s in sites for view in s.membership.views()
        ):
            await asyncio.sleep(0.05)


async def knows(place: Site, dataset: str) -> None:
    async with asyncio.timeout(120):
        while dataset not in [view.dataset for view in await place.catalog.datasets()]:
            await asyncio.sleep(0.05)


async def opened(place: Site, request: SessionRequest) -> JobRow:
    job = await place.jobs.settled(await place.jobs.open_session(USER, request), 180)
    assert job.state == "idle", await place.jobs.log(job)
    return job


async def test_a_laptop_runs_code_where_the_data_are(tmp_path: Path) -> None:
    """An unmodified client at the laptop, which has no engine; the data and Spark are at the other island."""
    from livy import LivySession, SessionKind

    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(engine_for(tmp_path / "big"))
        big = await stack.enter_async_context(
            site(tmp_path / "big", "big", LivyClient(engine.url, engine.token), {"jobs": OPEN})
        )
        laptop = await stack.enter_async_context(site(tmp_path / "laptop", "laptop"))
        await laptop.peers.join(await big.trust.invite(big.peers.local_addresses()))
        await big.catalog.publish("administrator", write_galaxies(tmp_path / "data"), "galaxies")
        await linked(big, laptop)
        await knows(laptop, "big/galaxies")

        def client() -> tuple[str, Any]:
            conf = {"spark.island.inputs": "big/galaxies"}
            with LivySession.create(laptop.url(), kind=SessionKind.PYSPARK, spark_conf=conf, echo=False) as session:
                session.wait()
                code = (
                    "print(*[spark.conf.get('spark.island.path.' + v) for v in ('galaxies', 'big__galaxies')], sep='|')"
                )
                path = session.run(code).text
                session.run("df = spark.table('galaxies').where('velocity < 0')")
                return str(path), session.download("df")

        path, rows = await asyncio.to_thread(client)
        assert len(set(path.strip().split("|"))) == 1 and sorted(rows["name"]) == ["M31", "M33"]
        row = (await laptop.jobs.listing(USER, 5))[0]
        assert (row["island"], row["inputs"], row["bytes_moved"]) == ("big", ["big/galaxies"], 0)

        code = b"import sys\nfrom pyspark.sql import SparkSession\nprint('ARGS', sys.argv[1:])\n"
        batch = await laptop.jobs.submit_batch(
            USER, BatchRequest(file="b.py", args=["a b"]), file=BatchFile("b.py", code), key="once"
        )
        batch = await laptop.jobs.settled(batch, 120)
        assert batch.state == "success" and "ARGS ['a b']" in await laptop.jobs.log(batch)


async def test_an_unmodified_client_downloads_large_results_whole(tmp_path: Path) -> None:
    """`download_sql` of 1,000 rows of 2.5 kB and of 7 kB, and 2,500 printed lines of 1 kB, over one hop."""
    from livy import LivySession, SessionKind
    from livy.models import StatementKind

    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(engine_for(tmp_path / "big"))
        big = await stack.enter_async_context(
            site(tmp_path / "big", "big", LivyClient(engine.url, engine.token), {"jobs": OPEN})
        )
        laptop = await stack.enter_async_context(site(tmp_path / "laptop", "laptop"))
        await laptop.peers.join(await big.trust.invite(big.peers.local_addresses()))
        await linked(big, laptop)

        def client() -> tuple[Any, Any, str]:
            with LivySession.create(laptop.url(), kind=SessionKind.SQL, echo=False) as session:
                session.wait()
                rows = session.download_sql("select id, repeat('x', 2500) as text from range(1000)")
                wide = session.download_sql("select id, repeat('y', 7000) as text from range(1000)")
                # What sparkmagic sends for a table of 2,500 rows, its default.
                lines = "import json\nfor n in range(2500): print(json.dumps({'n': n, 'text': 'z' * 1000}))"
                posted = session.client.create_statement(session.session_id, lines, StatementKind.PYSPARK)
                done = posted
                while done.output is None:
                    done = session.client.get_statement(session.session_id, posted.statement_id)
                return rows, wide, str(done.output.text)

        rows, wide, printed = await asyncio.to_thread(client)
        assert sorted(rows["id"]) == list(range(1000)) and set(map(len, rows["text"])) == {2500}
        assert sorted(wide["id"]) == list(range(1000)) and set(map(len, wide["text"])) == {7000}
        assert [json.loads(line)["n"] for line in printed.splitlines()] == list(range(2500))


async def test_missing_inputs_are_fetched_before_the_session_is_idle(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(engine_for(tmp_path / "home"))
        home = await stack.enter_async_context(site(tmp_path / "home", "home", LivyClient(engine.url, engine.token)))
        data = await stack.enter_async_context(site(tmp_path / "data", "data"))
        await home.peers.join(await data.trust.invite(data.peers.local_addresses()))
        await data.catalog.publish("administrator", write_galaxies(tmp_path / "files"), "galaxies")
        await data.catalog.publish("administrator", write_galaxies(tmp_path / "more"), "others")
        await linked(home, data)
        await knows(home, "data/others")
        job = await opened(home, SessionRequest(kind="sql", conf={"spark.island.inputs": "data/galaxies"}))
        assert any("fetched and verified" in line for line in await home.jobs.log(job))
        found = await run(home, job, "select count(*) as n from data__galaxies")
        assert found["data"]["application/json"]["data"] == [[3]]
        error = await run(home, job, "select * from data__others")
        assert "spark.island.inputs = data/galaxies,data/others" in error["evalue"]


class StockEngine(LivyEngine):
    """The real engine behaving like a stock Livy: it has no instance id and does not support inputs."""

    @property
    def seen(self) -> str:
        return ""

    async def instance(self) -> str:
        await super().instance()
        return ""

    async def create(self, kind: str, body: Mapping[str, Any]) -> RemoteJob:
        conf = {key: value for key, value in body["conf"].items() if not key.startswith("spark.island.")}
        return await super().create(kind, {**body, "conf": conf})


async def test_views_are_created_in_a_stock_livy_by_statements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(engine_for(tmp_path / "home"))
        livy = LivyClient(engine.url, engine.token)
        monkeypatch.setattr("tests.islands.user_port.LivyEngine", StockEngine)
        home = await stack.enter_async_context(site(tmp_path / "home", "home", livy))
        await home.catalog.publish("administrator", write_galaxies(tmp_path / "files"), "galaxies")
        job = await opened(home, SessionRequest(kind="pyspark", conf={"spark.island.inputs": "home/galaxies"}))
        assert job.statements == 0
        found = await run(home, job, "spark.table('galaxies').count() + spark.table('home__galaxies').count()")
        assert found["data"]["text/plain"] == "6"
        assert (await home.jobs.named(USER, job.id)).statements == 1


async def test_results_are_kept_when_a_killed_engine_ends_the_session(tmp_path: Path) -> None:
    async with engine_for(tmp_path / "home") as first:
        clients = [LivyClient(first.url, first.token)]
        async with site(tmp_path / "home", "home", clients[0]) as home:
            job = await opened(home, SessionRequest(kind="pyspark"))
            assert (await run(home, job, "6 * 7"))["data"]["text/plain"] == "42"
            lost = await home.jobs.post(job, "import time; time.sleep(600)", None)
            async with asyncio.timeout(60):
                while (await home.jobs.statement(job, lost.number))[1].state != "running":
                    await asyncio.sleep(0.05)
            first.process.kill()
        async with (
            engine_for(tmp_path / "home") as second,
            site(tmp_path / "home", "home", LivyClient(second.url, second.token)) as home,
        ):
            async with asyncio.timeout(60):
                while (job := await home.jobs.named(USER, job.id)).live:
                    await asyncio.sleep(0.05)
            assert job.state == "dead" and "was restarted, which ended its Spark sessions" in job.reason
            done, gone = [(await home.jobs.statement(job, number))[0] for number in (0, lost.number)]
            assert json.loads(done.output)["data"]["text/plain"] == "42"
            assert gone.state == "error" and json.loads(gone.output)["ename"] == "SessionLost"
